"""The pictures of ``convergence.py``: differences by arm, accuracy by rate, accuracy by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convergence_statistics import Difference, Estimate
from digits_picture import as_png

COLOURS = {  # a hue for each family of arms
    "SGD, lr=1e-3, untuned": "#8a8a8a",
    "SGD, constant": "#000000",
    "step decay": "#56b4e9",
    "1/t decay": "#56b4e9",
    "plateau": "#56b4e9",
    "cosine": "#0072b2",
    "warm restarts": "#4dbd9a",
    "Triangular": "#00805c",
    "Triangular2": "#4dbd9a",
    "ExpRange": "#4dbd9a",
    "growing cycles": "#4dbd9a",
    "OneCycle": "#d55e00",
    "OneCycle, constant momentum": "#f0a35e",
    "SGDScheduleFree": "#b0568f",
}
HIGHLIGHTED = ("SGD, lr=1e-3, untuned", "SGD, constant", "cosine", "Triangular", "OneCycle", "SGDScheduleFree")
SHORT = {"SGD, lr=1e-3, untuned": "SGD untuned", "OneCycle, constant momentum": "OneCycle, const. mom."}
LEAST = 0.1  # percent, of an error that a logarithmic axis can show


def differences(panels: Mapping[str, Mapping[str, Mapping[str, Difference]]], title: str) -> bytes:
    """A PNG: by panel, arm and rule, the difference to the reference as a point with its interval."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 5.2), layout="constrained")
    axes_of = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, arms) in zip(axes_of, panels.items(), strict=True):
        draw_differences(axes, arms)
        axes.set_title(name, fontsize=11)
    axes_of[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    rules = max(panels[name].values(), key=len)  # the colours are the arms', so here grey
    look = {"color": "#707070", "marker": "o", "linestyle": "none"}
    by_rule = {
        rule: Line2D([], [], markerfacecolor=face, **look)
        for rule, face in zip(rules, ("#707070", "white"), strict=False)
    }
    scale = "points of test accuracy, paired by seed, with 95 % intervals (linear from -1 to 1, logarithmic beyond)"
    add_legend(figure, by_rule, scale)
    return as_png(figure, colours=96)


def draw_differences(axes: Any, arms: Mapping[str, Mapping[str, Difference]]) -> None:
    for place, (arm, rules) in enumerate(arms.items()):
        offsets = (-0.17, 0.17) if len(rules) == 2 else (0.0,)
        for offset, face, (rule, found) in zip(offsets, (COLOURS[arm], "white"), rules.items(), strict=False):
            reach = [[found.mean - found.low], [found.high - found.mean]]
            look = {"color": COLOURS[arm], "markerfacecolor": face, "markersize": 5, "elinewidth": 1.5}
            axes.errorbar(found.mean, place + offset, xerr=reach, fmt="o", label=rule, **look)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=1, linscale=0.9)
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    all_ticks = (-50, -10, -1, 0, 1, 3, 10) if low < -10 else (-10, -3, -1, 0, 1, 3, 10)
    ticks = [tick for tick in all_ticks if low <= tick <= high]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(arms)), labels=[SHORT.get(arm, arm) for arm in arms])
    tidy(axes)


def sensitivity(panels: Mapping[str, Mapping[str, Mapping[float, Estimate]]]) -> bytes:
    """A PNG: by task and arm, the error at each factor of the range test's rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.4), layout="constrained")
    lines: dict[str, Any] = {}
    for axes, (task, arms) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for arm, estimates in arms.items():
            lines |= draw_errors(axes, arm, [*estimates], [*estimates.values()])
        axes.set_xscale("log")
        axes.set_xticks([*estimates], labels=[f"{factor:g}" for factor in estimates])
        axes.minorticks_off()
        axes.set_title(task, fontsize=11)
    figure.supylabel("test error, %", fontsize=10)
    add_legend(figure, lines, "learning rate, as a multiple of the range test's")
    return as_png(figure, colours=96)


def curves(arms: Mapping[str, list[Estimate]], title: str) -> bytes:
    """A PNG: the error after each epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes, lines = figure.subplots(), {}
    for arm, estimates in arms.items():
        lines |= draw_errors(axes, arm, [*range(1, len(estimates) + 1)], estimates)
    axes.set(ylabel="test error, %")
    axes.set_title(title, fontsize=11)
    add_legend(figure, lines, "epoch")
    return as_png(figure, colours=96)


def draw_errors(axes: Any, arm: str, places: list[Any], accuracies: list[Estimate]) -> dict[str, Any]:
    """Mean and interval; the others without, and in grey. The line by the name that the legend has for it."""
    means, lows, highs = ([max(100 - value, LEAST) for value in values] for values in zip(*accuracies, strict=True))
    is_main = arm in HIGHLIGHTED
    look = {"color": COLOURS[arm], "linewidth": 1.8} if is_main else {"color": "#c4c4c4", "linewidth": 0.8, "zorder": 1}
    (line,) = axes.plot(places, means, **look)
    if is_main:
        axes.fill_between(places, lows, highs, color=COLOURS[arm], alpha=0.12, linewidth=0)
    axes.set_yscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100]
    low, high = axes.dataLim.intervaly
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_ylim(0.9 * low, 1.1 * high)
    axes.minorticks_off()
    tidy(axes)
    return {SHORT.get(arm, arm) if is_main else "others": line}


def add_legend(figure: Any, lines: Mapping[str, Any], of_axes: str) -> None:
    """Under what the horizontal axes show."""
    names = sorted(lines, key="others".__eq__)
    look = {"loc": "outside lower center", "ncols": min(4, len(lines)), "frameon": False}
    figure.legend([lines[name] for name in names], names, title=of_axes, **look)


def tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
