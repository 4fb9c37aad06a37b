"""The picture of ``evidence.py``: what each schedule adds to linear decay, task by task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from digits_picture import as_png
from paired_statistics import Difference

FAMILIES = {  # a hue for each, by how an arm's name begins; the first that fits
    "constant, ": "#0072b2",
    "constant": "#000000",
    "OneCycle": "#d55e00",
    "Triangular": "#00805c",
    "warm restarts": "#00805c",
    "SGDScheduleFree": "#b0568f",
    "": "#0072b2",
}
INSIDE = 1.0  # points up to which the axis is linear
TICKS = (-20, -5, -1, 0, 1, 5, 20)


def colour(arm: str) -> str:
    return next(value for start, value in FAMILIES.items() if arm.startswith(start))


def differences(panels: Mapping[str, Mapping[str, Mapping[str, Difference]]], title: str) -> bytes:
    """A PNG: by task, arm and rule, the difference to linear decay as a point with its interval."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(12, 5.0), layout="constrained")
    axes_of = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, arms) in zip(axes_of, panels.items(), strict=True):
        draw(axes, arms)
        axes.set_title(name, fontsize=11)
    axes_of[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    rules = [*next(iter(next(iter(panels.values())).values()))]
    look = {"color": "#707070", "marker": "o", "linestyle": "none"}  # the colours are the arms', so here grey
    faces = zip(rules, ("#707070", "white"), strict=True)
    handles = [Line2D([], [], markerfacecolor=face, label=rule, **look) for rule, face in faces]
    scale = f"points of test accuracy, with 95 % intervals (linear from -{INSIDE:g} to {INSIDE:g}, logarithmic beyond)"
    figure.legend(handles=handles, title=scale, loc="outside lower center", ncols=2, frameon=False)
    return as_png(figure, colours=96)


def draw(axes: Any, arms: Mapping[str, Mapping[str, Difference]]) -> None:
    for place, (arm, rules) in enumerate(arms.items()):
        for offset, face, found in zip((-0.17, 0.17), (colour(arm), "white"), rules.values(), strict=True):
            reach = [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]
            look = {"color": colour(arm), "markerfacecolor": face, "markersize": 5, "elinewidth": 1.5}
            axes.errorbar(found.mean, place + offset, xerr=reach, fmt="o", **look)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=INSIDE, linscale=0.9)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(arms)), labels=[*arms])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
