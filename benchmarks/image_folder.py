"""Your own images: find the learning rate, and see what it brings against the default and what cycling adds.

Run it with::

    pip install '.[bench]'
    python benchmarks/image_folder.py DIR            # some minutes for some thousands of images
    python benchmarks/image_folder.py DIR --quick    # fewer seeds, shorter trainings

where ``DIR`` has a sub-folder of images for each class: faces in one folder per person, say. Find in
``build/benchmarks`` (or where ``--out`` says) ``image_folder.md``, the table; ``image_folder.png``, the range
test and the learning curves; ``image_folder.json``, every number behind them.

1. Images that Pillow can read become small squares in RGB; other files are named and skipped, hidden ones ignored.
   A quarter of each class is held out, always the same images.
2. ``lr_range_test`` finds the range to cycle in, on the training images alone.
3. A small convolutional network is trained with each optimizer in ``ARMS``. With one seed, all of them start from
   the same weights and see the same batches in the same order, so differences are paired.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from digits import COMMON, CONSTANT, UNTUNED, Data, Loader, Run, mean_and_std, paired, train_epoch
from digits_picture import COLOURS, as_png, draw_learning_curves
from harness import add_out, as_json, command_line, environment, markdown_table, progress, run_benchmark, write_results
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from cyclic_optim import CyclicSGD, LRRangeTest, NoSuggestionError, lr_range_test, supervised_step

HELD_OUT = 0.25
FEWEST = 2  # images of a class: one to train on, one to hold out


# -- the images -------------------------------------------------------------------------------------


class FolderError(Exception):
    """The folder holds nothing to learn from; the message says what it would need."""


class Images(NamedTuple):
    pixels: Tensor  # bytes: image, channel, row, column
    labels: Tensor
    classes: list[str]
    skipped: list[str]  # files, each with the reason


def read_folder(folder: Path, size: int, out: Path) -> Images:
    """All images of all classes. ``out`` is no class, should it lie among them."""
    if not folder.is_dir():
        raise FolderError(f"need a folder with a sub-folder of images for each class, but {folder} is not a folder")
    inside = [path for path in visible(folder) if path.resolve() != out.resolve()]
    classes = [path for path in inside if path.is_dir()]
    if len(classes) < 2:
        raise FolderError(f"need a sub-folder of images for each of 2 classes or more, but {folder} has {len(classes)}")
    skipped = [f"{path}: not in the folder of a class" for path in inside if not path.is_dir()]
    pixels, labels = [], []
    files = [(label, path) for label, of_class in enumerate(classes) for path in visible(of_class)]
    for label, path in progress(files, label="reading", unit="file"):
        if isinstance(image := read_image(path, size), Tensor):
            pixels.append(image)
            labels.append(label)
        else:
            skipped.append(f"{path}: {image}")
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    counts = {path.name: labels.count(label) for label, path in enumerate(classes)}
    if few := [f"{name!r} has {count}" for name, count in counts.items() if count < FEWEST]:
        named = ", ".join(few[:5]) + (f", and {len(few) - 5} more have too few" if few[5:] else "")
        raise FolderError(f"need {FEWEST} images or more in every class, to train on and to hold out, but {named}")
    return Images(torch.stack(pixels), torch.tensor(labels), list(counts), skipped)


def visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_image(path: Path, size: int) -> Tensor | str:
    """The image, or why there is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * size, 2 * size))  # large JPEGs are decoded no larger than needed
            if image.mode.startswith("I"):  # 16 bits of grey: Pillow would cut off what is above 255
                image = image.convert("I").point(lambda value: value / 256).convert("L")
            small = image.convert("RGB").resize((size, size))
    except UnidentifiedImageError:
        return "not an image that Pillow can read"
    except Exception as error:  # broken files raise errors of every type
        return " ".join(str(error).split()) or type(error).__name__
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)


def split(images: Images) -> Data:
    """``HELD_OUT`` of each class for the test; both parts scaled by what the training images say."""
    shuffle = torch.Generator().manual_seed(0)
    parts = []
    for label in range(len(images.classes)):
        of_class = (images.labels == label).nonzero().flatten()
        of_class = of_class[torch.randperm(len(of_class), generator=shuffle)]
        held_out = max(1, round(HELD_OUT * len(of_class)))
        parts.append((of_class[held_out:], of_class[:held_out]))
    train, test = map(torch.cat, zip(*parts, strict=True))
    pixels = images.pixels / 255
    std, mean = torch.std_mean(pixels[train], dim=(0, 2, 3), keepdim=True)
    pixels = (pixels - mean) / std.clamp_min(1e-3)
    return Data(*(TensorDataset(pixels[part], images.labels[part]) for part in (train, test)))


# -- the training -----------------------------------------------------------------------------------


class Task(NamedTuple):
    data: Data
    classes: int
    batch_size: int

    def loader(self, seed: int) -> Loader:
        order = torch.Generator().manual_seed(seed)
        batch_size = min(self.batch_size, max(1, len(self.data.train) // 4))  # a small folder makes some steps, too
        return DataLoader(self.data.train, batch_size, shuffle=True, drop_last=True, generator=order)

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
            convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 4 * 4, self.classes))


def range_test(task: Task) -> LRRangeTest:
    model = task.model(seed=0)
    optimizer = CyclicSGD(model.parameters(), lr=1.0, **COMMON)  # the range test sets the rate
    return lr_range_test(model, optimizer, supervised_step(model, nn.CrossEntropyLoss(), task.loader(seed=0)))


class Plan(NamedTuple):
    """How long a training is, and what the range test found."""

    epochs: int
    total_steps: int
    found: LRRangeTest

    @property
    def half_cycle(self) -> int:  # of about five epochs, so that the training ends where a cycle does
        return max(1, self.total_steps // (2 * max(1, round(self.epochs / 5))))


TRIANGULAR, ONE_CYCLE = "CyclicSGD, Triangular", "CyclicSGD, OneCycle"
ARMS: dict[str, Callable[[Iterator[nn.Parameter], Plan], Optimizer]] = {
    UNTUNED: lambda params, plan: SGD(params, lr=1e-3, **COMMON),
    CONSTANT: lambda params, plan: SGD(params, lr=plan.found.suggest()[1], **COMMON),
    TRIANGULAR: lambda params, plan: CyclicSGD(params, **plan.found.triangular(plan.half_cycle), **COMMON),
    ONE_CYCLE: lambda params, plan: CyclicSGD(params, **plan.found.one_cycle(max(4, plan.total_steps)), **COMMON),
}
Runs = dict[str, list[Run]]  # by arm: a run for every seed


def train(arm: str, seed: int, task: Task, plan: Plan) -> Run:
    model, loader = task.model(seed), task.loader(seed)
    optimizer = ARMS[arm](model.parameters(), plan)
    measured = [evaluate(model, task.data.test)]
    for _ in range(plan.epochs):
        train_epoch(model, optimizer, loader)
        measured.append(evaluate(model, task.data.test))
    losses, accuracies = map(list, zip(*measured, strict=True))
    return Run(arm, plan.epochs, seed, losses, accuracies, train_loss=evaluate(model, task.data.train)[0])


@torch.no_grad()
def evaluate(model: nn.Module, dataset: TensorDataset) -> tuple[float, float]:
    """Mean loss, and accuracy in percent; in parts, as the folder may be large."""
    model.eval()
    images, labels = dataset.tensors
    output = torch.cat([model(part) for part in images.split(512)])
    loss, accuracy = nn.functional.cross_entropy(output, labels), (output.argmax(1) == labels).float().mean()
    return loss.item(), 100 * accuracy.item()


# -- the table and the picture ----------------------------------------------------------------------


def report(runs: Runs, plan: Plan, summary: str, command: str) -> str:
    shown = sorted({1, max(1, plan.epochs // 3), plan.epochs})
    curves = {arm: list(zip(*(run.test_accuracy for run in same), strict=True)) for arm, same in runs.items()}
    goal = statistics.fmean(curves[UNTUNED][-1])

    def row(arm: str) -> list[str]:
        scores = [mean_and_std(curves[arm][epoch], 2) for epoch in shown]
        losses = zip(*((run.test_loss[-1], run.train_loss) for run in runs[arm]), strict=True)
        scores += [f"{statistics.fmean(loss):.4f}" for loss in losses]
        reached = next((str(n) for n, score in enumerate(curves[arm]) if statistics.fmean(score) >= goal), "never")
        return [arm, *scores, reached, "" if arm == UNTUNED else paired(runs[arm], runs[UNTUNED])]

    header = ["held-out accuracy, %", *(f"epoch {epoch}" for epoch in shown), "held-out loss", "training loss"]
    header += ["epochs needed", "against untuned"]
    return f"""\
`{command}`

{summary}

Accuracy on the held-out images, mean ± standard deviation over {len(runs[UNTUNED])} seeds; at the end the mean losses,
the epochs needed to be as accurate as the untuned finally is, and the gain on it in points, paired by seed; in
parentheses the number of seeds in which it is ahead, equal, behind:

{markdown_table(header, [row(arm) for arm in ARMS])}
"""


def picture(runs: Runs, found: LRRangeTest, held_out: int) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    left, right = figure.subplots(1, 2)
    found.plot(left)
    best = 100 - 50 / held_out  # a log axis has no 0: half a wrong image stands for none
    curves = {arm: [[min(best, score) for score in run.test_accuracy] for run in same] for arm, same in runs.items()}
    colours = dict(zip(ARMS, (COLOURS[0], COLOURS[1], COLOURS[3], COLOURS[6]), strict=True))  # as in digits.png
    draw_learning_curves(right, curves, {arm: {"color": colour, "linewidth": 1.8} for arm, colour in colours.items()})
    lowest = 100 - max(score for same in curves.values() for curve in same for score in curve)
    right.set(ylabel="held-out error, %", ylim=(0.8 * lowest, 110))
    right.spines[["top", "right"]].set_visible(False)
    right.grid(alpha=0.25)
    right.legend(frameon=False)
    return as_png(figure)


# -- running it -------------------------------------------------------------------------------------


def experiment(folder: Path, out: Path, epochs: int, seeds: int, size: int, batch_size: int) -> None:
    started, command = time.perf_counter(), command_line(__file__)
    images = read_folder(folder, size, out)
    out.mkdir(parents=True, exist_ok=True)
    task = Task(split(images), len(images.classes), batch_size)
    counts = images.labels.bincount().tolist()
    summary = f"{sum(counts)} images of {task.classes} classes, {len(task.data.test)} of them held out; "
    summary += f"{len(images.skipped)} other files skipped."
    print(summary, flush=True)
    base_lr, max_lr = (found := range_test(task)).suggest()
    print(range_found := f"Range test: base lr {base_lr:.2g}, max lr {max_lr:.2g}, which is the found lr.", flush=True)
    plan = Plan(epochs, epochs * len(task.loader(seed=0)), found)
    runs: Runs = {arm: [] for arm in ARMS}
    for seed, arm in progress([(seed, arm) for seed in range(seeds) for arm in ARMS], label="training"):
        runs[arm].append(train(arm, seed, task, plan))
    text = report(runs, plan, f"{summary}\n{range_found}", command)
    record = {
        "command": command,
        "environment": environment(),
        "seconds": round(time.perf_counter() - started, 1),
        "images": {"classes": dict(zip(images.classes, counts, strict=True)), "skipped": images.skipped},
        "configuration": {"epochs": epochs, "size": size, "batch_size": batch_size, **COMMON},
        "range_test": {"base_lr": base_lr, "max_lr": max_lr, **vars(found), "smoothed": found.smoothed},
        "runs": [run._asdict() for same in runs.values() for run in same],
    }
    files = {"image_folder.json": as_json(record), "image_folder.md": text.encode()}
    write_results(out, files | {"image_folder.png": picture(runs, found, len(task.data.test))})
    print(f"\n{text}\n{record['seconds']} seconds; results in {out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="has a sub-folder of images for each class")
    parser.add_argument("--epochs", type=int, help="of each training (default: 10, with --quick 3)")
    parser.add_argument("--seeds", type=int, help="trainings of each optimizer (default: 3, with --quick 2)")
    parser.add_argument("--size", type=int, default=32, help="of the images, in pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="at most (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer seeds, shorter trainings")
    add_out(parser)
    options = vars(parser.parse_args())
    usual = {"epochs": 3, "seeds": 2} if options.pop("quick") else {"epochs": 10, "seeds": 3}
    options |= {name: value for name, value in usual.items() if options[name] is None}
    for name, least in {"epochs": 1, "seeds": 2, "size": 8, "batch_size": 1}.items():
        if options[name] < least:
            parser.error(f"need --{name.replace('_', '-')} >= {least}, got {options[name]}")
    try:
        return run_benchmark(lambda: experiment(**options), needs=("PIL", "matplotlib"))
    except (FolderError, NoSuggestionError) as error:
        refused = isinstance(error, FolderError)
        print(error if refused else f"no range found: {error}", file=sys.stderr)
        return 2 if refused else 1


if __name__ == "__main__":
    raise SystemExit(main())
