"""Letters of the alphabet as small noisy images: a data set made where it is needed, with nothing downloaded.

A class is a letter, upper or lower case, and an image of it has 16 x 16 grey pixels. The letter is drawn with one of
``FONTS``, turned, sheared, stretched, moved and bent, then blurred and shown on uneven paper with noise, a stroke
across some of them. Training, validation and test images use the same fonts and are drawn independently of each other.

matplotlib brings the fonts, so that everybody has the same ones. ``folder`` adds those found in another one, say
/usr/share/fonts: more variety, but then the data is that of one machine. One seed gives the same images every time,
as long as the versions of Pillow, FreeType and numpy do not draw or round differently: compare the digests.
"""

from __future__ import annotations

import hashlib
import io
import os
import string
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from harness import version
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

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
POINTS = 3  # a pixel is the mean of so many times so many points
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
    folder: Path | None = None,
) -> Letters:
    """The data set, made anew where ``cache`` does not hold it; ``size`` counts its images: train, validation, test."""
    if min(size) < 1:
        raise ValueError(f"need at least one image in each part, got {size=}")
    files = font_files(folder)
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
    """Those of matplotlib, then those in the folder with other names, in order, that have all the letters."""
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


def draw(file: Path, letter: str) -> Array:
    """The letter in the middle of a picture: 1 where there is ink, 0 where there is none."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(file), EM, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (PICTURE, PICTURE))
    corner = (PICTURE - left - right) // 2, (PICTURE - top - bottom) // 2
    ImageDraw.Draw(image).text(corner, letter, fill=255, font=font)
    return np.asarray(image) / 255


# -- the images -------------------------------------------------------------------------------------


def make(size: Sequence[int], seed: int, files: Sequence[Path]) -> Arrays:
    """Each part from a stream of random numbers of its own, so that it does not depend on the others' sizes."""
    pictures = np.stack([[[draw(file, letter) for letter in case] for case in CASES] for file in files])
    streams = np.random.SeedSequence(seed).spawn(len(size))
    arrays: Arrays = []
    for count, stream in zip(size, streams, strict=True):
        rng = np.random.default_rng(stream)
        order = rng.permutation(count)  # as many of each letter, of each case and of each font as can be
        chosen = order // (2 * CLASSES) % len(files), order // CLASSES % 2, order % CLASSES
        blocks = [pictures[tuple(each[start : start + BLOCK] for each in chosen)] for start in range(0, count, BLOCK)]
        arrays += [np.concatenate([photograph(rng, warp(rng, block)) for block in blocks]), chosen[-1].astype(np.uint8)]
    return arrays


def warp(rng: Generator, pictures: Array) -> Array:
    """The letters turned, sheared, stretched, moved and bent, in as many pixels as an image has."""

    def drawn(low: float, high: float) -> Array:
        return rng.uniform(low, high, size=(len(pictures), 1, 1))

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

    def drawn(low: float, high: float) -> Array:
        return rng.uniform(low, high, size=(len(ink), 1, 1))

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
        with np.load(path) as file:
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
