"""Pictures of a policy and of a range test. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .policies.asked import values_at
from .policies.base import Policy, class_hint
from .rules import finite, shown, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_STEPS = 5000  # drawn at most: several for each pixel of a picture's width
FEW_STEPS = 50  # up to this many, each step gets a dot
LR_COLOUR, OTHER_STYLES, RANGE_COLOUR, RANGE_TEXT = (
    "#0072b2",
    (("#d55e00", "--"), ("#007a5a", ":")),
    "#e69f00",
    "#804d00",
)
BEST_COLOUR, STOP_COLOUR = "#007a5a", "#555555"


class Moment(NamedTuple):
    """The values of one step."""

    step: int
    lr: float
    momentum: float | None
    weight_decay_factor: float | None


#: What is shown below, or at the right of, the learning rate, where the policy changes it.
OTHERS: dict[str, Callable[[Moment], float | None]] = {
    "momentum": lambda moment: moment.momentum,
    "weight decay factor": lambda moment: moment.weight_decay_factor,
}


class RangeTestCurve(Protocol):
    """What is drawn of a range test. ``suggest`` raises a ValueError where the curve suggests no range."""

    @property
    def lrs(self) -> Sequence[float]: ...
    @property
    def losses(self) -> Sequence[float]: ...
    @property
    def smoothed(self) -> Sequence[float]: ...
    @property
    def mode(self) -> str: ...
    @property
    def stopped(self) -> str: ...
    def suggest(self) -> tuple[float, float]: ...


# --- shared by both pictures and the command line


def require_matplotlib() -> None:
    """Raise an error that says how to install matplotlib, where it is missing.

    Raises:
        ImportError: matplotlib cannot be imported.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"need matplotlib to draw: pip install matplotlib, or in a checkout pip install '.[plot]' ({error})"
        ) from error


def check_arguments(policy: Policy, steps: int, lr: float) -> tuple[int, float]:
    """``steps`` and ``lr`` as plain numbers, or an error that states the rule and the value."""
    if not isinstance(policy, Policy):
        raise TypeError(f"need policy to be a Policy, got policy={shown(policy)}{class_hint(policy)}")
    return whole(1)["rule"]("steps", steps), finite("lr", lr, minimum=0)


def trace(policy: Policy, steps: Iterable[int], lr: float, state: dict[str, Any] | None = None) -> Iterator[Moment]:
    """The values at these steps, by the arithmetic and checks of the optimizer; before any report by default."""
    state = policy.initial_state() if state is None else state
    for step in steps:
        lr_factor, momentum, weight_decay_factor = values_at(policy, step, state)
        yield Moment(step, lr * lr_factor, momentum, weight_decay_factor)


#: The rule of `default_steps` in words.
DEFAULT_STEPS = (
    "the policy's end plus a tenth; without an end three cycles if it repeats exactly, otherwise six times its longest "
    "length, otherwise the first of 10, 100, ... at which the rate is below a tenth of the peak, or 1000"
)


def default_steps(policy: Policy) -> int:
    """The number of steps to show where none is given."""
    if policy.end:
        return policy.end + math.ceil(policy.end / 10) + 1
    if policy.period and policy.period > 1:
        return 3 * policy.period + 1
    longest = max(_lengths(policy), default=0)
    if longest:
        return 6 * longest
    return next((10**k for k in range(1, 7) if values_at(policy, 10**k, policy.initial_state()).lr_factor < 0.1), 1000)


def _lengths(policy: Policy) -> Iterator[int]:
    """The numbers of steps in a policy and its parts."""
    found: tuple[Field[Any], ...] = fields(policy) if is_dataclass(policy) else ()
    for field in found:
        value, rule = getattr(policy, field.name), field.metadata.get("rule")
        for item in value if isinstance(value, tuple) else [value]:
            if isinstance(item, Policy):
                yield from _lengths(item)
            elif rule is not None and rule.kind in (int, tuple) and item is not None:
                yield item


def sampled(steps: int, most: int = MOST_STEPS) -> Sequence[int]:
    """The steps 0..steps-1, or at most so many of them with the first and the last among them.

    The others are one of each of equally long intervals, at a different place in each: otherwise a cycle as long as
    the interval would look like a constant.
    """
    if steps <= most:
        return range(steps)
    golden = (math.sqrt(5) - 1) / 2
    inner = (int((i + i * golden % 1) / most * steps) for i in range(1, most - 1))
    return sorted({0, *inner, steps - 1})


def needs_log(rates: Sequence[float]) -> bool:
    """Whether rates are drawn on a log axis: where most of them would be indistinguishable from 0 on a linear one.

    That is so if none is 0, at least half of them are at most an eighth of the highest, and the lowest is below a
    thirtieth of it. It holds for most decays and range tests, but not for a cycle with a short deep tail
    (``OneCycle``), for a cycle between two rates far apart, or for a decay that ends at 0.
    """
    highest = max(rates)
    return 0 < min(rates) < highest / 30 and median(rates) <= highest / 8


def brief(policy: object, width: int = 72) -> str:
    """A policy's repr without the fields that have their default, in at most ``width`` characters."""
    text = _brief(policy)
    return text if len(text) <= width else text[: width - 3] + "..."


def _brief(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_brief, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, Policy) and is_dataclass(value):
        shown = [f for f in fields(value) if f.repr and (f.default is MISSING or getattr(value, f.name) != f.default)]
        arguments = ", ".join(f"{f.name}={_brief(getattr(value, f.name))}" for f in shown)
        return f"{type(value).__name__}({arguments})"
    if isinstance(value, Policy) and type(value).__repr__ is object.__repr__:
        return type(value).__name__  # rather than its address
    return getattr(value, "__qualname__", None) or repr(value)


# --- a policy


def plot_policy(policy: Policy, steps: int, lr: float = 1.0, ax: Axes | None = None) -> Axes:
    """Draw the learning rate, and momentum and weight decay where the policy changes them, over the steps 0..steps-1.

    Momentum, and the factor of weight decay, have axes of their own on the right. The rate's axis is logarithmic where
    most rates could not be told from 0 on a linear one; otherwise it is linear and starts at 0. Of more than 5000 steps
    at most 5000 are drawn, the first and the last among them and one of each 5000th part: turning points are then off
    by less than a pixel, and cycles shorter than a pixel fill a band. A policy that listens to a metric is drawn with
    its values before any report.

    Args:
        policy: any :class:`Policy`, also one that you wrote.
        steps: how many optimizer steps to draw, at least 1.
        lr: the peak rate, by which the policy's factor is multiplied.
        ax: where to draw (default: a new figure). Other axes of its figure are left alone.

    Returns:
        The Axes of the learning rate.

    Raises:
        ValueError, TypeError: an argument breaks its rule, or the policy returned no finite number >= 0.
        ImportError: matplotlib is not installed.
    """
    steps, lr = check_arguments(policy, steps, lr)
    moments = list(trace(policy, sampled(steps), lr))
    ax = _axes(ax)
    drawn = [moment.step for moment in moments]
    rates = [moment.lr for moment in moments]
    marker = "." if steps <= FEW_STEPS else ""
    ax.plot(drawn, rates, color=LR_COLOUR, linewidth=1.8, marker=marker)
    _scale_rates(ax, rates)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("learning rate", color=LR_COLOUR)
    ax.set_title(brief(policy), fontsize="medium", parse_math=False)
    _whole_ticks(ax)
    for (name, read), (colour, style) in zip(OTHERS.items(), OTHER_STYLES, strict=True):
        values = [math.nan if value is None else value for value in map(read, moments)]
        if not all(map(math.isnan, values)):
            _draw_other(ax, name, colour).plot(
                drawn, values, color=colour, linewidth=1.4, linestyle=style, marker=marker
            )
    return ax


def _axes(ax: Axes | None) -> Axes:
    """The given axes, or new ones, in the style of both pictures. No global setting is changed."""
    require_matplotlib()
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    return ax


def _scale_rates(ax: Axes, rates: Sequence[float]) -> None:
    if needs_log(rates):
        ax.set_yscale("log")
    else:
        # Height is then proportional to the rate. Curves that were drawn before remain visible.
        ax.update_datalim([(0, 0)], updatex=False)
        ax.autoscale_view(scalex=False)


def _whole_ticks(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_other(ax: Axes, name: str, colour: str) -> Axes:
    """New axes on the right of the rate's, outside of those that are there."""
    figure = ax.get_figure(root=True)
    current = figure.gca() if figure else ax
    # The rate's background is off from the first one on.
    is_first = ax.patch.get_visible()
    twin = ax.twinx()
    if figure:
        # What the caller draws next through pyplot goes to the same axes as without this call.
        figure.sca(current)
    twin.set_ylabel(name, color=colour)
    twin.ticklabel_format(axis="y", useOffset=False)
    twin.spines["top"].set_visible(False)
    if is_first:
        # The rate is drawn above momentum, so the background moves below both.
        twin.patch.set(visible=True, facecolor=ax.get_facecolor())
        ax.patch.set_visible(False)
    else:
        twin.spines["right"].set_position(("outward", 56))
    ax.set_zorder(twin.get_zorder() + 0.1)
    return twin


# --- a range test


def plot_range_test(result: RangeTestCurve, ax: Axes | None = None) -> Axes:
    """Draw the losses of a range test over the learning rate, and the range it suggests.

    Also marked are the lowest loss of a single step (of a maximized loss the highest), and the rate at which the test
    stopped, with the reason.

    The rate's axis is logarithmic for an exponential test. The losses' axis shows the descent and the beginning of
    the climb after it, not the highest diverging loss. Losses that are not finite are not drawn. Where the curve
    suggests no range, none is marked, and the title says why.

    Args:
        result: what :func:`lr_range_test` returned, or anything with its ``lrs``, ``losses``, ``smoothed``,
            ``mode``, ``stopped`` and ``suggest``.
        ax: where to draw (default: a new figure). Other axes of its figure are left alone.

    Returns:
        The Axes drawn into.

    Raises:
        ImportError: matplotlib is not installed.
    """
    ax = _axes(ax)
    losses, smoothed = finite_or_gap(result.losses), finite_or_gap(result.smoothed)
    maximize = getattr(result, "maximize", False)
    ax.plot(result.lrs, losses, color=LR_COLOUR, alpha=0.35, linewidth=1, label="each step")
    # The smoothed curve ends before the first loss that is not finite.
    ax.plot(result.lrs[: len(smoothed)], smoothed, color=LR_COLOUR, linewidth=2.2, label="smoothed")
    if result.mode == "exponential":
        ax.set_xscale("log")
    _scale_range_test(ax, result.lrs, losses, smoothed, maximize)
    title = textwrap.fill(f"LR range test ({result.stopped})", 72)
    try:
        base_lr, max_lr = result.suggest()
    except ValueError as error:
        title += "\n" + textwrap.fill(f"no range suggested: {error}", 72)
    else:
        title += "\n"  # the labels of the marks are on the last line
        _mark_range(ax, base_lr, max_lr)
    _mark_best(ax, result.lrs, losses, maximize)
    _mark_stop(ax, result.lrs, result.stopped)
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.set(xlabel="learning rate", ylabel="loss")  # it may be a validation function's
    # Noisy losses, and the mark of the end, may run behind it.
    ax.legend(loc="best", framealpha=0.8, edgecolor="none")
    return ax


def finite_or_gap(losses: Iterable[float]) -> list[float]:
    """The losses as floats, NaN in place of those that cannot be drawn."""
    return [float(loss) if math.isfinite(loss) else math.nan for loss in losses]


def _scale_range_test(
    ax: Axes, lrs: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], maximize: bool
) -> None:
    # Rates whose losses cannot be drawn are in view, too: they were tried.
    ax.update_datalim([(lr, 0) for lr in lrs], updatey=False)
    ax.autoscale_view()
    limits = loss_limits(losses, smoothed, maximize)
    if limits is not None:
        ax.set_ylim(*limits)


def loss_limits(
    losses: Sequence[float], smoothed: Sequence[float], maximize: bool = False
) -> tuple[float, float] | None:
    """The limits of the losses' axis: the lowest smoothed loss, the highest of the descent, and the noise around them.

    Of a maximized loss they are those of the negated losses. None where there are too few losses, or all are equal: the
    axis then shows everything.
    """
    if maximize:
        limits = loss_limits([-loss for loss in losses], [-loss for loss in smoothed])
        return None if limits is None else (-limits[1], -limits[0])
    known = [loss for loss in smoothed if not math.isnan(loss)]
    if len(known) < 2:
        return None
    low = min(known)
    length = smoothed.index(low) + 1
    # Where the loss never falls there is no descent: three quarters of the curve are shown.
    quarters = quantiles(known, n=4, method="inclusive")
    high = max(quarters[2], *(loss for loss in smoothed[:length] if not math.isnan(loss)))
    # A single outlier is cut off, or it would flatten the rest of the picture. Ordinary noise is in view.
    most = max(0.75 * (high - low), 3 * _usual_noise(losses, smoothed[:length]))
    lowest = max(low - most, min((loss for loss in losses if not math.isnan(loss)), default=low))
    highest = min(high + most, max((loss for loss in losses[:length] if not math.isnan(loss)), default=high))
    bottom, top = min(low, lowest), max(high, highest)
    room = 0.08 * (top - bottom)
    return (bottom - room, top + room) if 0 < room < math.inf else None


def _usual_noise(losses: Sequence[float], smoothed: Sequence[float]) -> float:
    """The median distance of a loss from its smoothed value."""
    distances = [abs(loss - average) for loss, average in zip(losses, smoothed, strict=False)]
    return median([distance for distance in distances if not math.isnan(distance)] or [0.0])


def _mark_range(ax: Axes, base_lr: float, max_lr: float) -> None:
    label = f"suggested range: {base_lr:.2g} to {max_lr:.2g}"
    ax.axvspan(base_lr, max_lr, color=RANGE_COLOUR, alpha=0.15, linewidth=0, label=label)
    # Above the axes, one label on each side of the range: they do not overlap, however narrow the range is.
    style: dict[str, Any] = {"xycoords": ax.get_xaxis_transform(), "xytext": (0, 4), "textcoords": "offset points"}
    for name, rate, alignment in (("base lr", base_lr, "right"), ("max lr", max_lr, "left")):
        ax.axvline(rate, color=RANGE_TEXT, linestyle="--", linewidth=1.2)
        ax.annotate(f"{name} {rate:.2g}", (rate, 1), ha=alignment, color=RANGE_TEXT, **style)


def _mark_best(ax: Axes, lrs: Sequence[float], losses: Sequence[float], maximize: bool) -> None:
    known = [i for i, loss in enumerate(losses) if not math.isnan(loss)]
    if known:
        best = (max if maximize else min)(known, key=losses.__getitem__)
        # A single outlier may lie outside of the axes: it is then marked at their edge.
        bottom, top = ax.get_ylim()
        place = [lrs[best]], [min(max(losses[best], bottom), top)]
        style: dict[str, Any] = {"marker": "^" if maximize else "v", "s": 60, "color": BEST_COLOUR}
        label = f"{'highest' if maximize else 'lowest'} single loss: lr {lrs[best]:.2g}"
        ax.scatter(*place, label=label, zorder=3, clip_on=False, edgecolor="white", **style)


def _mark_stop(ax: Axes, lrs: Sequence[float], stopped: str) -> None:
    from matplotlib.collections import LineCollection

    if lrs:
        ends = [(lrs[-1], 0), (lrs[-1], 1)]
        style: dict[str, Any] = {"color": STOP_COLOUR, "linestyle": ":", "linewidth": 1.6}
        # As high as the axes, whatever the losses: it does not count for the axes' limits.
        mark = LineCollection([ends], transform=ax.get_xaxis_transform(), label=_wrapped_stop(stopped), **style)
        ax.add_collection(mark, autolim=False)


def _wrapped_stop(stopped: str) -> str:
    return textwrap.fill(f"stopped: {stopped}", 40)
