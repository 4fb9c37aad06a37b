"""Too low, good, too high: three trainings, and where their learning rates lie on the range test's curve.

Run it with::

    pip install '.[bench]'
    python benchmarks/low_good_high.py            # half a minute
    python benchmarks/low_good_high.py --quick    # fewer seeds, shorter trainings

and find in ``build/benchmarks`` (or where ``--out`` says) ``low_good_high.png``, the picture;
``low_good_high.md``, the table; ``low_good_high.json``, every number behind them.

1. ``lr_range_test`` with its defaults runs on the digits and the network of ``digits.py``. The good rate is the
   ``max_lr`` that it suggests, and nothing else was tried to find it.
2. The too low one is ``1 / TOO_LOW`` of it. The too high one is the first of ``MULTIPLES`` times it at which training
   fails: in every seed, the loss over the last epoch is no better than that of guessing, log(10).
3. Each trains at its rate, held constant, by the same steps as the range test's. Seeds change weights and batch order,
   and are the same for all rates; the range test's is the first of them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import COMMON, Data, evaluate, load_data, make_loader, make_model, mean_and_std, range_test
from digits_picture import as_png
from harness import (
    add_out,
    as_json,
    command_line,
    environment,
    environment_line,
    markdown_table,
    progress,
    run_benchmark,
    write_results,
)
from torch import nn

from cyclic_optim import CyclicSGD, LRRangeTest, supervised_step

TOO_LOW = 300
MULTIPLES = (10, 30, 100)
GUESSING = math.log(10)  # the loss of who gives each of the ten digits the same probability
NEIGHBOURS = 2  # on both sides, over which the drawn losses are averaged
HIGHEST = 4  # of the losses drawn; single ones of the too high rate are out of any scale


# -- the trainings ----------------------------------------------------------------------------------


class Run(NamedTuple):
    """One training: the loss of each batch, and what came of it."""

    lr: float
    seed: int
    losses: list[float]
    end_loss: float  # over the last epoch
    test_accuracy: float

    @property
    def failed(self) -> bool:
        return not self.end_loss < GUESSING  # NaN is a failure, too


Train = Callable[[float], list[Run]]  # a run for every seed


def train(lr: float, seed: int, epochs: int, data: Data) -> Run:
    model, loader = make_model(seed), make_loader(data, seed)
    optimizer = CyclicSGD(model.parameters(), lr=lr, **COMMON)  # without a policy: SGD
    forward_backward, losses = supervised_step(model, nn.CrossEntropyLoss(), loader), []
    for _ in range(epochs * len(loader)):
        optimizer.zero_grad()
        losses.append(forward_backward())
        optimizer.step()
    return Run(lr, seed, losses, statistics.mean(losses[-len(loader) :]), evaluate(model, data.test)[1])


class Trainings(NamedTuple):
    low: list[Run]
    good: list[Run]
    high: list[Run]
    multiple: int  # of the good rate, that the too high one is
    in_between: dict[int, list[Run]]  # by multiple: those that did not fail


def trainings(good: float, train: Train) -> Trainings:
    in_between: dict[int, list[Run]] = {}
    for multiple in MULTIPLES:
        runs = train(multiple * good)
        if all(run.failed for run in runs):
            return Trainings(train(good / TOO_LOW), train(good), runs, multiple, in_between)
        in_between[multiple] = runs
    raise RuntimeError(f"need a rate that fails, but trainings at up to {MULTIPLES[-1]} times {good:.2g} learned")


# -- the table --------------------------------------------------------------------------------------


def report(made: Trainings, base_lr: float, command: str, where: str) -> str:
    seeds, steps = len(made.good), len(made.good[0].losses)
    named = {f"too low: good / {TOO_LOW}": made.low, "good: the suggested max lr": made.good}
    named |= {f"{multiple} times good": runs for multiple, runs in made.in_between.items()}
    named[f"too high: {made.multiple} times good"] = made.high
    rows = [
        [
            name,
            f"{runs[0].lr:.2g}",
            mean_and_std([run.end_loss for run in runs], 4),
            mean_and_std([run.test_accuracy for run in runs], 1),
        ]
        for name, runs in named.items()
    ]
    header = ["rate", "lr", "training loss", "test accuracy, %"]
    return f"""\
`{command}`

The digits and the network of `digits.py`, for which one range test suggests base lr {base_lr:.2g} and
max lr {made.good[0].lr:.2g}. After {steps} steps at a constant rate, mean ± standard deviation over {seeds} seeds (the
loss is that of the last epoch's batches; guessing has {GUESSING:.2f}, and an accuracy of 10 %):

{markdown_table(header, rows)}

{where}
"""


# -- the picture ------------------------------------------------------------------------------------


class Look(NamedTuple):
    """How a rate is drawn. Offsets are in points."""

    colour: str
    outcome: str  # in words
    above: float  # the end of its training's curve, the words
    beside: tuple[float, float]  # its mark on the range test, its name


LOOKS = {
    "too low": Look("#0072b2", "crawls", -18, (9, 7)),
    "good": Look("#009e73", "converges fast", 8, (-11, -6)),
    "too high": Look("#d55e00", "never learns", 10, (-7, 6)),
}


def picture(found: LRRangeTest, made: Trainings) -> bytes:
    """A PNG: the trainings on the left; the range test, with their rates marked on its curve, on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.7), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.25))
    drawn = dict(zip(LOOKS, (made.low, made.good, made.high), strict=True))
    origins = f"good / {TOO_LOW}", "max lr", f"{made.multiple} times good"
    for (name, runs), origin in zip(drawn.items(), origins, strict=True):
        draw_training(left, runs, name, f"lr {runs[0].lr:.2g} = {origin}")
    left.axhline(GUESSING, color="black", linewidth=1, linestyle=":", label="guessing", zorder=1)
    left.set(xlabel="step", ylabel="training loss")
    left.set_title(f"Training: {len(made.good)} seeds and their mean\n", fontsize="medium")
    left.spines[["top", "right"]].set_visible(False)
    left.grid(alpha=0.25)
    draw_range_test(right, found, {name: runs[0].lr for name, runs in drawn.items()})
    left.set_ylim(0, HIGHEST)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return as_png(figure)


def draw_training(axes: Any, runs: list[Run], name: str, label: str) -> None:
    """The loss of each batch thin, the mean over seeds and neighbouring steps bold."""
    look = LOOKS[name]
    for run in runs:
        axes.plot(run.losses, color=look.colour, alpha=0.25, linewidth=0.7)
    mean = averaged([run.losses for run in runs])
    axes.plot(mean, color=look.colour, linewidth=2.4, label=label)
    end = (len(mean) - 1, mean[-1])
    write(axes, f"{name}: {look.outcome}", end, (0, look.above), look.colour, ha="right")


def averaged(curves: list[list[float]]) -> list[float]:
    means = [statistics.mean(step) for step in zip(*curves, strict=True)]
    return [statistics.mean(means[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1]) for i in range(len(means))]


def draw_range_test(axes: Any, found: LRRangeTest, rates: dict[str, float]) -> None:
    found.plot(axes)
    for line in axes.lines[:2]:  # the losses, whose blue is a rate's here
        line.set_color("black")
    for mark in [axes.get_legend(), *axes.collections]:  # the three rates take the places of its marks
        mark.remove()
    axes.set_ylabel("")
    smoothed = found.smoothed
    for name, rate in rates.items():
        look = LOOKS[name]
        place = rate, smoothed[min(range(len(smoothed)), key=lambda i: abs(math.log(found.lrs[i] / rate)))]
        axes.plot(*place, "o", color=look.colour, markersize=11, markeredgecolor="white", zorder=5)
        write(axes, name, place, look.beside, look.colour, ha="left" if look.beside[0] > 0 else "right")


def write(axes: Any, text: str, place: tuple[float, float], offset: tuple[float, float], colour: str, ha: str) -> None:
    style = {"color": colour, "weight": "bold", "textcoords": "offset points", "ha": ha}
    axes.annotate(text, place, xytext=offset, **style)


# -- running it -------------------------------------------------------------------------------------


def experiment(out: Path, seeds: range, epochs: int) -> None:
    torch.set_num_threads(1)  # the tensors are tiny; and the table must not depend on the number of cores
    out.mkdir(parents=True, exist_ok=True)
    started, command, where = time.perf_counter(), command_line(__file__), environment("scikit-learn", "matplotlib")
    data = load_data()
    found = range_test(data, seeds[0])
    print(found, flush=True)
    base_lr, max_lr = found.suggest()

    def train_all(lr: float) -> list[Run]:
        return [train(lr, seed, epochs, data) for seed in progress([*seeds], label=f"lr={lr:.2g}")]

    made = trainings(max_lr, train_all)
    text = report(made, base_lr, command, environment_line(where))
    record = {
        "command": command,
        "environment": where,
        "seconds": round(time.perf_counter() - started, 1),
        "configuration": {"seeds": [*seeds], "epochs": epochs, "too_low": TOO_LOW, "multiples": MULTIPLES, **COMMON},
        "range_test": {"base_lr": base_lr, "max_lr": max_lr, **vars(found), "smoothed": found.smoothed},
        "multiple": made.multiple,
        **{name: [run._asdict() for run in getattr(made, name)] for name in ("low", "good", "high")},
        "in_between": {multiple: [run._asdict() for run in runs] for multiple, runs in made.in_between.items()},
    }
    files = {"json": as_json(record), "md": text.encode(), "png": picture(found, made)}
    write_results(out, {f"low_good_high.{kind}": content for kind, content in files.items()})
    print(f"\n{text}\n{record['seconds']} seconds; results in {out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds and 4 epochs, not 3 and 10")
    add_out(parser)
    options = parser.parse_args()
    seeds, epochs = (range(2), 4) if options.quick else (range(3), 10)
    return run_benchmark(lambda: experiment(options.out, seeds, epochs), needs=("sklearn", "matplotlib"))


if __name__ == "__main__":
    raise SystemExit(main())
