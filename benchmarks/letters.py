"""Letters of the alphabet as small noisy images: a data set made where it is needed, with nothing downloaded.

Run it with::

    pip install '.[bench]'
    python benchmarks/letters.py            # a minute
    python benchmarks/letters.py --quick    # fewer images, shorter trainings

and find in ``build/benchmarks`` (or where ``--out`` says) ``letters.png``, some images of each letter, and
``letters.json``: the fonts, the versions, the digest of the data and how difficult it is, for a logistic regression
and for the residual network of ``make_network``.

A class is a letter, upper or lower case, and an image of it has 16 x 16 grey pixels. The letter is drawn in one of
``FONTS``, turned, sheared, stretched, moved and bent, blurred, and lit from one side with some contrast and noise; a
tenth has a stroke across it. The parts share the fonts, not the images: each draws its own, also if others grow.
Learning rates and the like are chosen on the validation part, the test part is for the numbers reported.

The fonts are some that matplotlib brings, so that everybody has them. ``--fonts`` adds those in a folder, say
/usr/share/fonts: more variety, and data that is one machine's own. A seed gives the same images every time, unless
another version of FreeType, Pillow or numpy draws differently; the digest tells.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import string
import time
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from harness import add_out, as_json, command_line, environment, run_benchmark, version, write_results
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from cyclic_optim import CyclicSGD, OneCycle

CACHE = Path(__file__).parent / "cache"
CASES = string.ascii_uppercase, string.ascii_lowercase
CLASSES = len(CASES[0])
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmti10", "cmmi10", "cmss10", "cmtt10"),
)

SIDE = 16  # of an image, in pixels
POINTS = 2  # a pixel is the mean of so many times so many points
PICTURE = 64  # side of the picture that a letter is drawn on before it is warped
EM = 48  # the font's size there
BLOCK = 500  # images made at once, for the sake of memory

Array = NDArray[np.float64]
Part = tuple[Tensor, Tensor]
Arrays = list[NDArray[np.uint8]]  # images and labels of one part after another


class Letters(NamedTuple):
    """Images (float32, N x 1 x 16 x 16, with mean 0 and deviation 1 over the training images) and labels (int64)."""

    train: Part
    validation: Part
    test: Part
    digest: str  # of the images as bytes, and of their labels
    fonts: tuple[str, ...]


def letters(
    size: tuple[int, int, int] = (10_000, 5_000, 5_000),
    seed: int = 0,
    cache: Path = CACHE,
    fonts: Path | None = None,
) -> Letters:
    """The data set, kept in the folder ``cache``, with so many images to train, to validate and to test.

    ``fonts`` is a folder whose fonts are used too.
    """
    if min(size) < 1:
        raise ValueError(f"need at least one image in each part, got {size=}")
    files = font_files(fonts)
    path = cache / f"letters-{recipe(size, seed, files)}.npz"
    arrays = load(path)
    if arrays is None:
        arrays = make(size, seed, files)
        save(path, arrays)
    mean, deviation = arrays[0].mean(), arrays[0].std()

    def part(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Part:
        normal = torch.tensor((images - mean) / deviation, dtype=torch.float32)
        return normal.unsqueeze(1), torch.tensor(labels, dtype=torch.int64)

    train, validation, test = (part(*arrays[start : start + 2]) for start in (0, 2, 4))
    return Letters(train, validation, test, digest(arrays), tuple(file.stem for file in files))


# -- the fonts --------------------------------------------------------------------------------------


def font_files(folder: Path | None = None) -> list[Path]:
    """``FONTS``, then those in the folder that have other names and all the letters, by name."""
    import matplotlib

    bundled = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [bundled / f"{name}.ttf" for name in FONTS]
    found = sorted(folder.rglob("*.[ot]tf"), key=lambda file: file.stem) if folder else []
    others = {file.stem: file for file in found if file.stem not in FONTS and has_letters(file)}
    return [*files, *others.values()]


def has_letters(file: Path) -> bool:
    """Whether the font has a glyph for each letter, and not the same one for several."""
    from matplotlib.ft2font import FT2Font

    glyphs = FT2Font(file).get_charmap()
    return len({glyphs.get(ord(letter), 0) for letter in string.ascii_letters} - {0}) == len(string.ascii_letters)


def pictures_of(file: Path) -> Array:
    """The letters of a font, by case and class, each in the middle of a picture: 1 where there is ink, else 0."""
    from PIL import ImageFont

    font = ImageFont.truetype(str(file), EM, layout_engine=ImageFont.Layout.BASIC)
    return np.array([[picture(font, letter) for letter in case] for case in CASES]) / 255


def picture(font: Any, letter: str) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (PICTURE, PICTURE))
    corner = (PICTURE - left - right) // 2, (PICTURE - top - bottom) // 2
    ImageDraw.Draw(image).text(corner, letter, fill=255, font=font)
    return np.asarray(image)


# -- the images -------------------------------------------------------------------------------------


def make(size: Sequence[int], seed: int, files: Sequence[Path]) -> Arrays:
    """Each part from random numbers of its own, so that it does not depend on the others' sizes."""
    pictures = np.stack([pictures_of(file) for file in files])
    rngs = np.random.default_rng(seed).spawn(len(size))
    return [array for count, rng in zip(size, rngs, strict=True) for array in make_part(pictures, count, rng)]


def make_part(pictures: Array, count: int, rng: Generator) -> Arrays:
    """As many images of each letter, of each case and of each font as can be, in random order."""
    order = rng.permutation(count)
    shape, letter = order // CLASSES, order % CLASSES
    case, font = shape % len(CASES), (shape // len(CASES) + letter) % len(pictures)
    blocks = [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]
    images = [photograph(rng, warp(rng, pictures[font[block], case[block], letter[block]])) for block in blocks]
    return [np.concatenate(images), letter.astype(np.uint8)]


def warp(rng: Generator, pictures: Array) -> Array:
    """The letters turned, sheared, stretched, moved and bent, in as many pixels as an image has."""
    drawn = partial(rng.uniform, size=(len(pictures), 1, 1))

    def wave(along: Array) -> Array:
        return drawn(0, 0.05) * np.sin(drawn(2, 6) * along + drawn(0, 2 * np.pi))

    at = centres(POINTS * SIDE)
    x, y = at - drawn(-0.12, 0.12), at[:, None] - drawn(-0.12, 0.12)
    angle, shear, zoom, stretch = drawn(-0.2, 0.2), drawn(-0.2, 0.2), drawn(1.25, 1.6), drawn(0.9, 1.1)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    x, y = (x + shear * y) / (zoom * stretch), y * stretch / zoom
    points = read(pictures, x + wave(y), y + wave(x))
    return points.reshape(-1, SIDE, POINTS, SIDE, POINTS).mean((2, 4))


def centres(count: int) -> Array:
    """Of so many pixels in a row that reaches from -1 to 1."""
    return (2 * np.arange(count) + 1) / count - 1


def read(pictures: Array, x: Array, y: Array) -> Array:
    """The pictures at those places, linearly between the pixels and 0 beyond the edge."""
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1)))
    column, row = (np.clip((at + 1) * PICTURE / 2 + 0.5, 0, PICTURE + 0.999) for at in (x, y))
    left, top = column.astype(int), row.astype(int)
    column, row = column - left, row - top
    width = PICTURE + 2
    corner = (np.arange(len(pictures))[:, None, None] * width + top) * width + left
    upper, lower = ((1 - column) * padded.take(at) + column * padded.take(at + 1) for at in (corner, corner + width))
    return (1 - row) * upper + row * lower


def photograph(rng: Generator, ink: Array) -> NDArray[np.uint8]:
    """The letters blurred, in a light of some contrast and direction, one in ten with a stroke across, with noise."""
    drawn = partial(rng.uniform, size=(len(ink), 1, 1))

    def across() -> Array:
        """How far each pixel lies in a direction that is drawn for each image."""
        angle = drawn(0, 2 * np.pi)
        return np.cos(angle) * centres(SIDE) + np.sin(angle) * centres(SIDE)[:, None]

    ink = ink + drawn(0, 1) * (blurred(ink) - ink)
    image = 0.5 + drawn(0.4, 1) * (ink - 0.5) + drawn(0, 0.2) * across()
    stroke = (np.abs(across() - drawn(-1, 1)) < 1 / 8) & (drawn(0, 1) < 0.1)
    image = np.where(stroke, drawn(0, 1), image)
    image = image + drawn(0, 0.04) * rng.standard_normal(image.shape)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def blurred(images: Array) -> Array:
    """The mean over each pixel and its eight neighbours."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


# -- the cache --------------------------------------------------------------------------------------


def recipe(size: Sequence[int], seed: int, files: Sequence[Path]) -> str:
    """Names all that the images depend on: what was asked for, this file, the fonts and who draws them."""
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (Path(__file__), *files)]
    return hashlib.sha256(repr((*size, seed, contents, versions())).encode()).hexdigest()[:16]


def versions() -> dict[str, str | None]:
    from PIL import features

    return {"numpy": version("numpy"), "pillow": version("pillow"), "freetype": features.version("freetype2")}


def digest(arrays: Arrays) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def load(path: Path) -> Arrays | None:
    """What was saved there, or None: there is nothing, or it is broken."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            arrays = [file[f"arr_{index}"] for index in range(6)]
            return arrays if str(file["digest"]) == digest(arrays) else None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def save(path: Path, arrays: Arrays) -> None:
    """Whole or not at all, also where several processes do so at once."""
    buffer = io.BytesIO()
    np.savez(buffer, *arrays, digest=digest(arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# -- how difficult it is ----------------------------------------------------------------------------

BATCH_SIZE = 128


class Residual(nn.Module):
    """Two convolutions beside the identity, or beside a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first, second = convolution(inputs, outputs, 3, stride), convolution(outputs, outputs, 3, 1)
        self.body = nn.Sequential(*first, nn.ReLU(), *second)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


def make_network() -> nn.Module:
    """A small ResNet. It looks at patches of 4 x 4 pixels, for the sake of speed."""
    blocks = Residual(16, 16, stride=1), Residual(16, 32, stride=2)
    return nn.Sequential(*convolution(1, 16, 5, stride=4), nn.ReLU(), *blocks, nn.Flatten(), nn.Linear(128, CLASSES))


def make_logistic() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, CLASSES))


MODELS = {"logistic regression": (make_logistic, 0.02, 20), "residual network": (make_network, 0.3, 10)}


def accuracies(name: str, data: Letters, epochs: int | None = None) -> dict[str, Any]:
    """Of one training, in percent, with what it took."""
    build, lr, usual = MODELS[name]
    torch.manual_seed(0)
    model, epochs = build(), epochs or usual
    images, labels = data.train
    steps = len(images) // BATCH_SIZE
    policy = OneCycle(total_steps=epochs * steps)
    optimizer = CyclicSGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, policy=policy)
    started = time.process_time()
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: steps * BATCH_SIZE].view(steps, BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    seconds = (time.process_time() - started) / epochs
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "epochs": epochs,
        "lr": lr,
        "processor_seconds_per_epoch": round(seconds, 3),
        **{f"{part}_accuracy": round(accuracy(model.eval(), *images), 2) for part, images in parts.items()},
    }


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * (model(images).argmax(1) == labels).float().mean().item()


# -- running it -------------------------------------------------------------------------------------


def sheet(part: Part, rows: int = 16, zoom: int = 2) -> bytes:
    """A PNG with the first images of each letter in its column, in 16 greys to keep the file small."""
    from PIL import Image

    images, labels = part
    columns = [torch.cat([*images[labels == label, 0][:rows]]) for label in range(CLASSES)]
    joined = torch.cat(columns, dim=1)
    grey = (15 * (joined - images.min()) / (images.max() - images.min())).round().byte().mul(17).numpy()
    image = Image.fromarray(grey)
    buffer = io.BytesIO()
    image.resize((zoom * image.width, zoom * image.height), Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def experiment(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # the tensors are small; and the accuracies must not depend on the number of cores
    options.out.mkdir(parents=True, exist_ok=True)
    where = environment("numpy", "pillow", "matplotlib") | {"freetype": versions()["freetype"]}
    size, epochs = ((520, 260, 260), 1) if options.quick else ((10_000, 5_000, 5_000), None)
    started = time.perf_counter()
    data = letters(size, options.seed, options.cache, options.fonts)
    print(f"{len(data.fonts)} fonts, {sum(size)} images in {time.perf_counter() - started:.1f} s, digest {data.digest}")
    difficulty = {name: accuracies(name, data, epochs) for name in MODELS}
    for name, found in difficulty.items():
        print(f"{name}, {found['epochs']} epochs: {found['test_accuracy']} % of the test images")
    record = {
        "command": command_line(__file__),
        "environment": where,
        "seed": options.seed,
        "size": dict(zip(("train", "validation", "test"), size, strict=True)),
        "digest": data.digest,
        "fonts": data.fonts,
        "difficulty": difficulty,
    }
    write_results(options.out, {"letters.json": as_json(record), "letters.png": sheet(data.train)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images, one epoch")
    parser.add_argument("--seed", type=int, default=0, help="of the images (default: 0)")
    parser.add_argument("--fonts", type=Path, metavar="FOLDER", help="whose fonts are used besides matplotlib's")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where images are kept (default: benchmarks/cache)")
    add_out(parser)
    options = parser.parse_args()
    return run_benchmark(lambda: experiment(options), needs=("PIL", "matplotlib"))


if __name__ == "__main__":
    raise SystemExit(main())
