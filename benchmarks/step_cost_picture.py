"""The picture of ``step_cost.py``: the cost of a step against the number of tensors, and of parameters."""

from __future__ import annotations

from typing import Any

from digits_picture import as_png
from harness import Spread

Lines = dict[str, dict[int, Spread]]  # by contender and place on the axis: microseconds
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#d55e00", "marker": "o"},
    {"color": "#0072b2", "marker": "s"},
    {"color": "black", "marker": "^"},
    {"color": "#009e73", "marker": "D"},
    {"color": "#7a7a7a", "linestyle": "--"},
)


def picture(by_tensors: Lines, by_size: Lines, elements: int) -> bytes:
    """A PNG. The tensors of the left panel have so many elements each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, lines in ((left, by_tensors), (right, by_size)):
        axes.set(xscale="log", yscale="log")
        draw(axes, lines)
    left.set(title=f"Many tensors of {elements} elements", xlabel="number of tensors", ylabel="one step, microseconds")
    counts = [*next(iter(by_tensors.values()))]
    left.set_xticks(counts, labels=map(str, counts))
    left.minorticks_off()
    right.set(title="One tensor", xlabel="number of parameters")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return as_png(figure)


def draw(axes: Any, lines: Lines) -> None:
    """Medians, and the quartiles as a band."""
    for (name, spreads), look in zip(lines.items(), LOOKS, strict=True):
        low, median, high = zip(*spreads.values(), strict=True)
        axes.plot([*spreads], median, **look, markersize=5, linewidth=1.8, label=name)
        axes.fill_between([*spreads], low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
