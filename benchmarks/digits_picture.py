"""The picture of ``digits.py``: the range test, the schedules, the learning curves."""

from __future__ import annotations

import io
import statistics
from typing import Any

COLOURS = ("black", "#9a9a9a", "#8c564b", "#0072b2", "#56b4e9", "#009e73", "#d55e00")
DASHES = ("-", "-", "--", "-", "--", "-", "-")  # for those that run along another for a while
Style = dict[str, Any]
Trace = tuple[list[float], list[float], list[float]]  # epoch, rate and momentum of every step


def picture(found: Any, traces: dict[str, Trace], accuracies: dict[str, list[list[float]]]) -> bytes:
    """A PNG. ``traces`` and ``accuracies`` (a curve per seed) belong to the same trainings, by name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    looks = zip(accuracies, COLOURS, DASHES, strict=True)
    styles = {name: {"color": colour, "linestyle": dash, "linewidth": 1.8} for name, colour, dash in looks}
    figure = plt.figure(figsize=(14, 5.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    grid = figure.add_gridspec(2, 3, height_ratios=(2, 1))
    left, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[:, 2])
    upper = figure.add_subplot(grid[0, 1])
    found.plot(left)
    # In so narrow a panel the usual one would cover the dip of the curve.
    left.legend(loc="lower left", fontsize="x-small", framealpha=0.8, edgecolor="none")
    draw_schedules(upper, figure.add_subplot(grid[1, 1], sharex=upper), traces, styles)
    draw_learning_curves(right, accuracies, styles)
    handles, labels = right.get_legend_handles_labels()
    style = {"frameon": False, "columnspacing": 1.4, "handlelength": 1.7, "handletextpad": 0.5}
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), **style)
    plt.close(figure)
    return as_png(figure)


def as_png(figure: Any, colours: int = 256) -> bytes:
    """A palette of so many colours takes a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    from PIL import Image  # matplotlib has it

    smaller = io.BytesIO()
    Image.open(buffer).convert("RGB").quantize(colours).save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def draw_schedules(rate_axes: Any, momentum_axes: Any, traces: dict[str, Trace], styles: dict[str, Style]) -> None:
    for name, (epochs, rates, momenta) in traces.items():
        rate_axes.plot(epochs, rates, **styles[name])
        momentum_axes.plot(epochs, momenta, **styles[name])
    rate_axes.set(ylabel="learning rate")
    rate_axes.set_title("Schedules")
    rate_axes.tick_params(labelbottom=False)
    rate_axes.xaxis.get_major_locator().set_params(integer=True)
    momentum_axes.set(xlabel="epoch", ylabel="momentum")


def draw_learning_curves(axes: Any, accuracies: dict[str, list[list[float]]], styles: dict[str, Style]) -> None:
    for name, curves in accuracies.items():
        errors = [[100 - accuracy for accuracy in epoch] for epoch in zip(*curves, strict=True)]
        axes.plot([statistics.mean(error) for error in errors], label=name, **styles[name])
        low, high = [min(error) for error in errors], [max(error) for error in errors]
        axes.fill_between(range(len(errors)), low, high, color=styles[name]["color"], alpha=0.1, linewidth=0)
    axes.set(yscale="log", xlabel="epoch", ylabel="test error, %")
    axes.set_title("Learning curves: mean and range over seeds")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.xaxis.get_major_locator().set_params(integer=True)
