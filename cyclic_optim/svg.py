"""What a notebook shows of a policy, an optimizer and a range test: small SVG pictures, which need no other package.

The pictures are part of the page's HTML: text and axes have the colour of the page's text, and the curves have colours
with a contrast of at least 3 to white and to the backgrounds of dark themes. One picture fits both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from .plotting import (
    OTHERS,
    RangeTestCurve,
    brief,
    default_steps,
    finite_or_gap,
    loss_limits,
    needs_log,
    sampled,
    trace,
)
from .policies.base import Policy

#: In pixels: the picture, the margins beside its panels, those above, between and below, and the panels' heights.
WIDTH, LEFT, RIGHT = 560, 66, 24
TOP, GAP, BOTTOM = 24, 18, 36
HIGH, LOW, HIGHEST = 120, 56, 200
BLUE, ORANGE, GREEN = "#3a86d6", "#d9651e", "#229a6f"
COLUMNS = 160  # a curve has at most two points in each
TOLERANCE = 0.15  # how far, in pixels, a curve's line may be from a point that is left out
LOOKED_AT = 2000  # steps of a policy, at most
SMALLEST = 1e-300  # smaller differences are drawn as none: floats have no tenth of them
MOST_PICTURES, MOST_ROWS = 3, 10  # of an optimizer

Point = tuple[float, float]
Group = dict[str, Any]


class Axis(NamedTuple):
    """The values at the two ends of an axis."""

    low: float
    high: float
    is_log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], is_log: bool = False) -> Axis:
        """An axis with all of these on it, also if they are equal, or there are none."""
        known = sorted(values) or [0.0, 1.0]
        low, high = known[0], known[-1]
        if low == high or (high - low < SMALLEST and not is_log):
            room = abs(low) / 10 or 1.0
            low, high = (low / 2, high * 2) if is_log else (low - room, high + room)
        return cls(low, high, is_log)

    def place(self, value: float) -> float:
        """Where a value is: 0 at the low end and 1 at the high one; outside at most one length away."""
        low, high, here = map(math.log, (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        return min(max((here - low) / (high - low), -1.0), 2.0)

    def ticks(self, most: int) -> list[float]:
        """Round numbers on the axis; on a log axis powers of ten, if it has two of them."""
        if self.is_log:
            exponents = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            every = max(1, math.ceil(len(exponents) / most))
            return [10.0**k for k in exponents[::every]] if len(exponents) > 1 else [self.low, self.high]
        least = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(least))
        step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= least)
        return [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


class Curve(NamedTuple):
    """A line through points, of which none is NaN."""

    points: Sequence[Point]
    colour: str
    width: float = 1.8
    opacity: float = 1.0


class Panel(NamedTuple):
    """Curves over the picture's x axis, with a y axis of their own. What is outside of the axes is cut off."""

    label: str
    height: int
    axis: Axis
    curves: Sequence[Curve]
    dots: Sequence[Point] = ()


class Mark(NamedTuple):
    """A line through all panels at some x, and its label above them, on one side of it."""

    at: float
    label: str
    anchor: str = ""  # "start" or "end"; by default, where there is more room
    dashes: str = "4 3"


class Picture(NamedTuple):
    """What is drawn; ``title`` and ``description`` are for those who hear it."""

    title: str
    description: str
    axis: Axis
    label: str
    panels: Sequence[Panel]
    marks: Sequence[Mark] = ()
    band: tuple[float, float] | None = None  # from one x to another
    columns: int = COLUMNS

    def svg(self) -> str:
        bottom = TOP + sum(panel.height + GAP for panel in self.panels) - GAP
        parts = [f"<title>{escape(self.title)}</title><desc>{escape(self.description)}</desc>"]
        if self.band is not None:
            start, stop = map(self.x, self.band)
            parts.append(
                f'<rect x="{start:.1f}" y="{TOP}" width="{max(stop - start, 1):.1f}" height="{bottom - TOP}" '
                f'fill="{ORANGE}" opacity="0.22"/>'
            )
        parts += self._panels()
        parts += (part for mark in self.marks for part in self._mark(mark, bottom))
        parts += (
            _text(f"{tick:,.12g}" if not self.axis.is_log else f"{tick:.3g}", self.x(tick), bottom + 15, "middle")
            for tick in self.axis.ticks(6)
        )
        parts.append(_text(self.label, (LEFT + WIDTH - RIGHT) / 2, bottom + 31, "middle"))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {bottom + BOTTOM}" '
            f'style="display:block;width:100%;max-width:{WIDTH}px;height:auto;overflow:visible;font:11px sans-serif" '
            f'fill="currentColor">{"".join(parts)}</svg>'
        )

    def x(self, value: float) -> float:
        return LEFT + self.axis.place(value) * (WIDTH - LEFT - RIGHT)

    def _panels(self) -> Iterator[str]:
        top = TOP
        for panel in self.panels:
            yield from self._panel(panel, top)
            top += panel.height + GAP

    def _panel(self, panel: Panel, top: int) -> Iterator[str]:
        def y(value: float) -> float:
            return top + (1 - panel.axis.place(value)) * panel.height

        for tick in panel.axis.ticks(4 if panel.height > LOW else 2):
            yield _line(LEFT, y(tick), WIDTH - RIGHT, y(tick), 'opacity="0.2"')
            yield _text(f"{tick:.3g}", LEFT - 5, y(tick) + 4, "end")
        yield _line(LEFT, top, LEFT, top + panel.height, 'opacity="0.5"')
        yield _line(LEFT, top + panel.height, WIDTH - RIGHT, top + panel.height, 'opacity="0.5"')
        middle = top + panel.height / 2
        yield _text(panel.label, 12, middle, "middle", f' transform="rotate(-90 12 {middle:g})"')
        # An svg in an svg cuts off what is outside; with a margin, which keeps lines at the edge whole.
        yield f'<svg x="0" y="{top - 4}" width="{WIDTH}" height="{panel.height + 8}" viewBox="0 {top - 4} {WIDTH} '
        yield f'{panel.height + 8}" fill="none" stroke-linejoin="round" stroke-linecap="round">'
        for curve in panel.curves:
            places = _simplified([(self.x(a), y(b)) for a, b in _thinned(curve.points, self.columns)])
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            faint = f' opacity="{curve.opacity}"' if curve.opacity < 1 else ""
            yield f'<polyline points="{points}" stroke="{curve.colour}" stroke-width="{curve.width}"{faint}/>'
        yield "</svg>"
        for a, b in panel.dots:
            place = min(max(y(b), top), top + panel.height)
            yield f'<circle cx="{self.x(a):.1f}" cy="{place:.1f}" r="4" fill="{BLUE}" stroke="currentColor"/>'

    def _mark(self, mark: Mark, bottom: int) -> Iterator[str]:
        x = self.x(mark.at)
        anchor = mark.anchor or ("start" if x < WIDTH / 2 else "end")
        yield _line(x, TOP - 4, x, bottom, f'stroke-dasharray="{mark.dashes}" opacity="0.8"')
        yield _text(mark.label, x + (3 if anchor == "start" else -3), TOP - 10, anchor)


def _text(text: str, x: float, y: float, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, more: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="currentColor" {more}/>'


def _thinned(points: Sequence[Point], columns: int) -> Sequence[Point]:
    """The first and the last point, and of each column the lowest and the highest, in their order.

    Turning points stay where they are, and cycles shorter than a column fill a band.
    """
    if len(points) <= 2 * columns:
        return points
    (first, _), (last, _) = points[0], points[-1]
    kept = {points[0], points[-1]}
    for _, column in groupby(points, lambda point: int((point[0] - first) / (last - first) * columns)):
        ordered = sorted(column, key=lambda point: point[1])
        kept |= {ordered[0], ordered[-1]}
    return sorted(kept)


def _simplified(points: Sequence[Point]) -> list[Point]:
    """Some of these points, in pixels: none of the others is more than ``TOLERANCE`` above or below the line."""
    kept, low, high = [points[0]], -math.inf, math.inf
    for before, (x, y) in pairwise(points):
        # The slopes from the last point kept to this one, and those that pass all points between at the tolerance.
        if not low <= (y - kept[-1][1]) / max(x - kept[-1][0], 1e-9) <= high:
            kept.append(before)
            low, high = -math.inf, math.inf
        length = max(x - kept[-1][0], 1e-9)
        low = max(low, (y - kept[-1][1] - TOLERANCE) / length)
        high = min(high, (y - kept[-1][1] + TOLERANCE) / length)
    return [*kept, points[-1]]


# --- a policy


def policy_html(policy: Policy) -> str:
    """The policy's text and its factor of the peak, and momentum and weight decay where it changes them."""
    return _html(_heading(policy), _policy_picture(policy, range(default_steps(policy))).svg())


def _heading(policy: Policy) -> str:
    return f"<code>{escape(brief(policy, 300))}</code>"


def _policy_picture(
    policy: Policy,
    steps: range,
    state: dict[str, Any] | None = None,
    marks: Sequence[Mark] = (),
    columns: int = COLUMNS,
) -> Picture:
    moments = list(trace(policy, (steps.start + step for step in sampled(len(steps), LOOKED_AT)), 1.0, state))
    factors = [moment.lr for moment in moments]
    is_log = needs_log(factors)
    highest = max(factors)
    axis = Axis.around(factors, is_log) if is_log else Axis(0.0, highest if highest > SMALLEST else 1.0)
    marked = {moment.step: moment.lr for moment in trace(policy, (int(mark.at) for mark in marks), 1.0, state)}
    curve = Curve([(moment.step, moment.lr) for moment in moments], BLUE)
    panels = [Panel("lr / peak", HIGH, axis, [curve], [*marked.items()])]
    described = [_described("lr / peak", factors)]
    for (name, read), colour in zip(OTHERS.items(), (ORANGE, GREEN), strict=True):
        values = [(float(moment.step), read(moment)) for moment in moments]
        known = [value for _, value in values if value is not None]
        if known:
            curves = [Curve(points, colour) for points in _unbroken(values)]
            panels.append(Panel(name.removesuffix(" factor"), LOW, Axis.around(known), curves))
            described.append(_described(name, known))
    if marks:
        described.append("next: " + ", ".join(f"step {mark.at:,}" for mark in marks))
    text = f"Steps {steps.start:,} to {steps.stop - 1:,}. {'. '.join(described)}."
    x = Axis.around((steps.start, steps.stop - 1))
    return Picture(brief(policy), text, x, "optimizer step", panels, marks, columns=columns)


def _unbroken(values: Sequence[tuple[float, float | None]]) -> Iterator[list[Point]]:
    """The parts of a curve between steps at which the policy leaves this value alone."""
    for is_gap, part in groupby(values, lambda pair: pair[1] is None):
        if not is_gap:
            yield [(x, y) for x, y in part if y is not None]


def _described(name: str, values: Sequence[float]) -> str:
    return (
        f"{name}: {values[0]:.4g} at the first, {values[-1]:.4g} at the last step, "
        f"lowest {min(values):.4g}, highest {max(values):.4g}"
    )


# --- an optimizer


class _Schedule(NamedTuple):
    """Groups with the same policy, and the same state of reports."""

    policy: Policy | None
    state: dict[str, Any] | None
    groups: dict[int, Group]


def optimizer_html(name: str, groups: Sequence[Group], columns: Mapping[str, Callable[[Group], Any]]) -> str | None:
    """Each schedule with its groups' clocks, and a table of their current values; None where no group has a policy.

    Args:
        name: of the optimizer's class.
        groups: copies of the param groups, in numbers, with the policies themselves.
        columns: the further columns of the table, by what reads them.
    """
    schedules = _schedules(groups)
    if all(schedule.policy is None for schedule in schedules):
        return None
    parts = [f"<strong>{escape(name)}</strong>"]
    drawn = schedules[:MOST_PICTURES]
    for schedule in drawn:
        parts += _schedule(schedule, columns, COLUMNS // len(drawn))
    rest = sum(len(schedule.groups) for schedule in schedules[MOST_PICTURES:])
    return _html(*parts, f"and {rest} more param groups with other policies" if rest else "")


def _schedules(groups: Sequence[Group]) -> list[_Schedule]:
    found: list[_Schedule] = []
    for i, group in enumerate(groups):
        policy, state = group.get("policy"), group.get("policy_state")
        like = (one for one in found if (one.policy is policy or one.policy == policy) and one.state == state)
        schedule = next(like, None)
        if schedule is None:
            found.append(schedule := _Schedule(policy, state, {}))
        schedule.groups[i] = group
    return found


def _schedule(schedule: _Schedule, columns: Mapping[str, Callable[[Group], Any]], width: int) -> Iterator[str]:
    policy = schedule.policy
    if policy is None:
        yield "no policy"
    else:
        yield _heading(policy)
        clocks: dict[int, list[int]] = {}
        for i, group in schedule.groups.items():
            clocks.setdefault(int(group["schedule_step"]), []).append(i)
        marks = _clock_marks(clocks)
        yield _policy_picture(policy, shown_steps(policy, [*clocks]), schedule.state, marks, width).svg()
        columns = {"step": lambda group: group["schedule_step"], "peak": lambda group: group["max_lr"], **columns}
    yield _table(schedule.groups, columns)


def _clock_marks(clocks: Mapping[int, Sequence[int]]) -> list[Mark]:
    """A mark for each clock; of several the first and the last have labels, on their outer sides: none overlap."""
    if len(clocks) == 1:
        return [Mark(step, f"step {step:,}") for step in clocks]
    steps = sorted(clocks)
    first, last = (_groups_label(clocks[step]) for step in (steps[0], steps[-1]))
    inner = [Mark(step, "") for step in steps[1:-1]]
    return [Mark(steps[0], first, "end"), *inner[: MOST_ROWS - 2], Mark(steps[-1], last, "start")]


def _groups_label(indices: Sequence[int]) -> str:
    return f"group {indices[0]}" if len(indices) == 1 else f"groups {indices[0]}, ..."


def shown_steps(policy: Policy, clocks: Sequence[int]) -> range:
    """The steps to show, all clocks among them: from 0, but of many cycles only those around the clocks."""
    first, last, usual, period = min(clocks), max(clocks), default_steps(policy), policy.period
    if last < usual:
        return range(usual)
    if period and period > 1:
        start = max(0, first // period - 1) * period
        return range(start, max(start + usual, last + period))
    return range(last + last // 20 + 2)


def _table(groups: Mapping[int, Group], columns: Mapping[str, Callable[[Group], Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("group", *columns))
    rows = [
        f'<tr><th scope="row">{i}</th>' + "".join(f"<td>{_number(read(group))}</td>" for read in columns.values())
        for i, group in [*groups.items()][:MOST_ROWS]
    ]
    rest = len(groups) - len(rows)
    more = f"and {rest} more param groups with this policy" if rest else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{'</tr>'.join(rows)}</tr></tbody></table>{more}"


def _number(value: Any) -> str:
    number = float(value)  # a tensor, too
    return f"{int(number):,}" if number.is_integer() and number >= 1 else f"{number:.4g}"


# --- a range test


def range_test_html(result: RangeTestCurve) -> str:
    """The losses over the rates, and the range that they suggest, or why they suggest none."""
    stopped = f"{len(result.lrs)} steps; stopped: {result.stopped}"
    band, marks = None, []
    try:
        base_lr, max_lr = result.suggest()
    except ValueError as error:
        verdict = f"no range suggested: {error}"
    else:
        verdict, band = f"suggested range: {base_lr:.3g} to {max_lr:.3g}", (base_lr, max_lr)
        marks = [Mark(base_lr, f"base lr {base_lr:.2g}", "end"), Mark(max_lr, f"max lr {max_lr:.2g}", "start")]
    marks += [Mark(lr, "", dashes="1 3") for lr in result.lrs[-1:]]
    x = Axis.around(result.lrs, is_log=result.mode == "exponential" and bool(result.lrs))
    text = f"Loss over the learning rate, from {x.low:.3g} to {x.high:.3g}. {verdict}. {stopped}."
    picture = Picture("LR range test", text, x, "learning rate", [_losses(result)], marks, band)
    return _html(f"<strong>LR range test</strong>: {escape(verdict)}", picture.svg(), escape(stopped))


def _losses(result: RangeTestCurve) -> Panel:
    losses, smoothed = finite_or_gap(result.losses), finite_or_gap(result.smoothed)
    known = [(lr, loss) for lr, loss in zip(result.lrs, losses, strict=True) if not math.isnan(loss)]
    averaged = [(lr, loss) for lr, loss in zip(result.lrs, smoothed, strict=False) if not math.isnan(loss)]
    maximize = getattr(result, "maximize", False)
    limits = loss_limits(losses, smoothed, maximize)
    axis = Axis(*limits) if limits else Axis.around(loss for _, loss in known)
    best = (max if maximize else min)(known, key=lambda point: point[1], default=None)
    both = Curve(known, BLUE, 1.2, 0.75), Curve(averaged, BLUE, 2.2)
    curves = [curve for curve in both if curve.points]
    return Panel("loss", HIGHEST, axis, curves, [] if best is None else [best])


# --- the HTML


def _html(*parts: str) -> str:
    return f"<div>{''.join(f'<div>{part}</div>' for part in parts if part)}</div>"


def or_none(draw: Callable[[], str | None]) -> str | None:
    """What a function draws; None if it fails, with which a notebook shows the text: a display must not raise."""
    try:
        return draw()
    except Exception:
        return None
