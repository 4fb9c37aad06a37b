"""What a notebook shows of a policy, an optimizer and a range test: small SVG pictures, right to the pixel."""

import copy
import math
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from helpers import FALLING, made
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from strategies import POLICY_STRATEGIES, policies

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CyclicAdamW,
    CyclicSGD,
    LambdaPolicy,
    OneCycle,
    Plateau,
    Policy,
    Scaled,
    Triangular,
    Values,
    cyclic,
    plot_policy,
)
from cyclic_optim import svg as drawing
from cyclic_optim.plotting import default_steps

SVG = "{http://www.w3.org/2000/svg}"
LARGEST = 15_000
LEFT, RIGHT = drawing.LEFT, drawing.WIDTH - drawing.RIGHT


def parsed(html):
    """The display as a tree; an error where it is no well-formed XML, which is stricter than HTML."""
    return ElementTree.fromstring(html)


def pictures(html):
    return parsed(html).findall(f"div/{SVG}svg")


def texts(element):
    return [text.text for text in element.iter(f"{SVG}text")]


def polylines(picture):
    """The points of each curve, in pixels."""
    lines = [line.get("points").split() for line in picture.iter(f"{SVG}polyline")]
    return [[tuple(map(float, point.split(","))) for point in line] for line in lines]


def dots(picture):
    return [(float(dot.get("cx")), float(dot.get("cy"))) for dot in picture.iter(f"{SVG}circle")]


def rows(html):
    """The tables' rows, as text."""
    return [[cell.text for cell in row] for row in parsed(html).iter("tr")]


def parameter():
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.ones(1)
    return param


def assert_is_a_display(html):
    """Small, well-formed, named for those who hear it, and nothing in it that a page could run or confuse."""
    assert len(html) < LARGEST
    for picture in pictures(html):
        assert picture.get("role") == "img"
        assert [child.tag for child in picture][:2] == [f"{SVG}title", f"{SVG}desc"]
        assert all(child.text for child in [*picture][:2])
    tags = {element.tag.removeprefix(SVG) for element in parsed(html).iter()}
    assert tags <= {"div", "code", "strong", "svg", "title", "desc", "rect", "line", "text", "polyline", "circle"} | {
        *("table", "thead", "tbody", "tr", "th", "td")
    }
    attributes = {name for element in parsed(html).iter() for name in element.attrib}
    assert not {name for name in attributes if name in ("id", "class", "href") or name.startswith("on")}


# --- colours


def contrast(one, other):
    """The contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(luminance(colour) + 0.05 for colour in (one, other))
    return high / low


@pytest.mark.parametrize("background", ["#ffffff", "#f7f7f7", "#111111", "#1e1e1e", "#383838"])
def test_curves_are_readable_in_light_and_dark_themes(background):
    """Their colours have the contrast of 3 that WCAG asks of graphics, on the pages of Jupyter, VS Code and Colab."""
    assert min(contrast(colour, background) for colour in (drawing.BLUE, drawing.ORANGE, drawing.GREEN)) >= 3


@pytest.mark.parametrize("policy", [OneCycle(100), Combined(lr=Constant(), weight_decay=CosineDecay(9))], ids=repr)
def test_all_else_has_the_colour_of_the_page(policy):
    """Text, axes and marks are in currentColor: no colour of theirs could fit every theme."""
    (picture,) = pictures(policy._repr_html_())
    assert picture.get("fill") == "currentColor"
    colours = {element.get(key) for element in picture.iter() for key in ("fill", "stroke")}
    assert colours <= {None, "none", "currentColor", drawing.BLUE, drawing.ORANGE, drawing.GREEN}


# --- a policy


@pytest.mark.parametrize("name", [*POLICY_STRATEGIES])
@given(data=st.data())
def test_every_policy_shows_itself(name, data):
    """There is a picture for each of the library's policies, whatever its arguments, and it is small."""
    html = data.draw(POLICY_STRATEGIES[name])._repr_html_()
    assert_is_a_display(html)
    assert len(pictures(html)) == 1


@given(policy=policies())
def test_the_curve_starts_ends_and_turns_where_the_policy_does(policy):
    """Its first and last point are the first and last step's, and its heights reach the lowest and highest value."""
    last = default_steps(policy) - 1
    (picture,) = pictures(policy._repr_html_())
    first, *_ = polylines(picture)
    assert first[0][0] == pytest.approx(LEFT, abs=0.1)
    assert first[-1][0] == pytest.approx(RIGHT, abs=0.1)
    factors = [moment.lr for moment in drawing.trace(policy, drawing.sampled(last + 1, drawing.LOOKED_AT), 1.0)]
    if not drawing.needs_log(factors):
        scale = max(factors) if max(factors) > drawing.SMALLEST else 1.0
        heights = [drawing.TOP + drawing.HIGH * (1 - factor / scale) for factor in factors]
        assert [y for _, y in (first[0], first[-1])] == pytest.approx([heights[0], heights[-1]], abs=0.1)
        off = drawing.TOLERANCE + 0.1
        assert min(y for _, y in first) == pytest.approx(min(heights), abs=off)
        assert max(y for _, y in first) == pytest.approx(max(heights), abs=off)


def test_turning_points_are_kept():
    """The corners of three cycles are at their steps and heights, however many steps a cycle has."""
    (points,) = polylines(*pictures(Triangular(5000, cycle_momentum=False)._repr_html_()))
    low, high = drawing.TOP + 0.9 * drawing.HIGH, drawing.TOP
    corners = [(LEFT + (RIGHT - LEFT) * i / 6, high if i % 2 else low) for i in range(7)]
    assert len(points) <= 2 * len(corners)
    assert [min(math.dist(point, corner) for point in points) for corner in corners] == pytest.approx([0] * 7, abs=0.5)


@given(heights=st.lists(st.floats(0, 100), min_size=2, max_size=60))
def test_a_line_is_close_to_the_points_left_out(heights):
    """None of them is further above or below the line than the tolerance."""
    points = [(float(x), y) for x, y in enumerate(heights)]
    kept = drawing._simplified(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    for (x, y), (to_x, to_y) in pairwise(kept):
        for between, height in points[int(x) : int(to_x) + 1]:
            assert abs(y + (to_y - y) * (between - x) / (to_x - x) - height) <= drawing.TOLERANCE * (1 + 1e-9)


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (CosineDecay(9), ["lr / peak"]),
        (OneCycle(100), ["lr / peak", "momentum"]),
        (Combined(lr=CosineDecay(9), weight_decay=CosineDecay(9)), ["lr / peak", "weight decay"]),
        (Combined(lr=OneCycle(9), weight_decay=CosineDecay(9)), ["lr / peak", "momentum", "weight decay"]),
    ],
    ids=["neither", "momentum", "weight decay", "both"],
)
def test_momentum_and_weight_decay_have_panels_where_they_move(policy, names):
    """There is a panel for each value that the policy changes, and none for another."""
    (picture,) = pictures(policy._repr_html_())
    assert [text for text in texts(picture) if text in ("lr / peak", "momentum", "weight decay")] == names
    assert len(polylines(picture)) == len(names)


def test_values_too_small_to_scale_are_drawn_as_0():
    """The smallest floats have no tenth."""
    (picture,) = pictures(Scaled(Constant(), 5e-324)._repr_html_())
    assert {y for _, y in polylines(picture)[0]} == {drawing.TOP + drawing.HIGH}


class Momentary(Policy):
    """It changes momentum at even hundreds of steps alone."""

    def at(self, step):
        return Values(1.0, 0.9 if step // 100 % 2 == 0 else None)


def test_steps_at_which_momentum_is_left_alone_are_gaps():
    """The curve of momentum is broken there, not drawn through."""
    (picture,) = pictures(Momentary()._repr_html_())
    assert len(polylines(picture)) == 1 + 5  # of 1000 steps


@dataclass(frozen=True)
class Sawtooth(Policy):
    length: int

    def at(self, step):
        return Values(1 - step % self.length / self.length)


class Half(Policy):
    """No dataclass, and a tuple in place of Values."""

    def at(self, step):
        return 0.5, 0.9


@pytest.mark.parametrize(
    "policy",
    [Sawtooth(30), Half(), LambdaPolicy(lambda step: 1 / (1 + step))],
    ids=lambda policy: type(policy).__name__,
)
def test_a_policy_of_the_users_shows_itself(policy):
    """An ``at`` is all that it takes."""
    assert_is_a_display(policy._repr_html_())


class Broken(Policy):
    def __init__(self, answer):
        self.answer = answer

    def at(self, step):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [None, (math.nan, None), (-1.0, None), (1.0, "0.9"), IndexError("no such step"), RuntimeError("no")],
    ids=repr,
)
def test_a_display_does_not_raise(answer):
    """Where ``at`` fails there is no picture, None in IPython's protocol, and the notebook shows the text."""
    policy = Broken(answer)
    assert policy._repr_html_() is None
    assert repr(policy)


class Named(Half):
    def __repr__(self):
        return "<script>alert('&')</script>"


def test_the_text_of_a_policy_is_escaped():
    """A repr is text, also one that looks like HTML."""
    html = Named()._repr_html_()
    assert_is_a_display(html)
    assert parsed(html).find("div/code").text == repr(Named())


def test_a_policy_shows_itself_without_torch_and_matplotlib():
    """The picture needs neither."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "from cyclic_optim import OneCycle; print(OneCycle(100)._repr_html_()[:5])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "<div>\n"


@given(policy=policies(), steps=st.integers(1, 200), lr=st.floats(1e-3, 1.0))
def test_plot_is_plot_policy(policy, steps, lr):
    """``policy.plot(...)`` draws what ``plot_policy(policy, ...)`` draws, and returns the Axes given."""
    ax, expected = Figure().subplots(), Figure().subplots()
    assert policy.plot(steps, lr, ax) is ax
    plot_policy(policy, steps, lr, expected)
    for mine, other in zip(ax.figure.axes, expected.figure.axes, strict=True):
        assert [str(line.get_xydata().tolist()) for line in mine.lines] == [
            str(line.get_xydata().tolist()) for line in other.lines
        ]
        assert (mine.get_title(), mine.get_ylabel(), mine.get_yscale()) == (
            other.get_title(),
            other.get_ylabel(),
            other.get_yscale(),
        )


def test_plot_has_the_errors_of_plot_policy():
    """Wrong arguments are refused by name."""
    with pytest.raises(ValueError, match="need 1 <= steps, got steps=0"):
        OneCycle(100).plot(0)
    with pytest.raises(ValueError, match="need lr to be a finite number"):
        OneCycle(100).plot(10, lr=math.nan)


# --- an optimizer


def trained(policy, steps, cls=CyclicSGD, **options):
    optimizer = cls([parameter()], lr=0.1, policy=policy, **options)
    for _ in range(steps):
        optimizer.step()
    return optimizer


@given(policy=policies(without=("Plateau",)), step=st.integers(0, 10**7) | st.sampled_from([0, 1, 2**40, 2**62 - 1]))
def test_the_dot_is_where_the_clock_stands(policy, step):
    """Wherever the clock is, its step is in the picture, and the dot is on the curve there."""
    optimizer = CyclicSGD([parameter()], lr=0.1, policy=policy, momentum=0.9, weight_decay=0.1)
    optimizer.reschedule(step=step)
    html = optimizer._repr_html_()
    assert_is_a_display(html)
    (picture,) = pictures(html)
    steps = drawing.shown_steps(policy, [step])
    assert step in steps
    ((x, _),) = dots(picture)
    assert x == pytest.approx(LEFT + (RIGHT - LEFT) * (step - steps[0]) / (steps[-1] - steps[0]), abs=0.1)
    assert f"step {step:,}" in texts(picture)


def test_the_dot_is_on_the_curve():
    """Its height is that of the current rate."""
    optimizer = trained(Triangular(100), 50)
    (picture,) = pictures(optimizer._repr_html_())
    ((_, y),) = dots(picture)
    factor = optimizer.param_groups[0]["lr"] / 0.1
    assert y == pytest.approx(drawing.TOP + drawing.HIGH * (1 - factor), abs=0.1)


def test_of_many_cycles_those_around_the_clock_are_shown():
    """A clock far out is not lost in a band of cycles."""
    assert drawing.shown_steps(Triangular(50), [100_020]) == range(99_900, 100_201)
    assert drawing.shown_steps(Triangular(50), [120]) == range(301)


def test_the_table_has_the_current_values():
    """Each group's row has the clock, the peak, and what the next step uses, also of values set by hand."""
    groups = [{"params": [parameter()], "lr": 0.01}, {"params": [parameter()]}]
    optimizer = CyclicSGD(groups, lr=0.1, policy=OneCycle(1000), weight_decay=5e-4)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0625
    optimizer.param_groups[1]["max_lr"] = 0.5
    head, first, second = rows(optimizer._repr_html_())
    assert head == ["group", "step", "peak", "lr", "momentum", "weight_decay"]
    rate = f"{0.5 * OneCycle(1000).at(1).lr_factor:.4g}"
    momentum = f"{OneCycle(1000).at(1).momentum:.4g}"
    assert first == ["0", "1", "0.01", "0.0625", momentum, "0.0005"]
    assert second == ["1", "1", "0.5", rate, momentum, "0.0005"]


def test_each_schedule_has_its_picture():
    """Groups with the same policy share one, with a dot for each clock; a group without a policy has none."""
    groups = [
        {"params": [parameter()]},
        {"params": [parameter()], "policy": Triangular(100)},
        {"params": [parameter()], "schedule_step": 20},
        {"params": [parameter()], "policy": None},
    ]
    html = CyclicSGD(groups, lr=0.1, policy=OneCycle(1000))._repr_html_()
    assert_is_a_display(html)
    assert [len(dots(picture)) for picture in pictures(html)] == [2, 1]
    assert [code.text for code in parsed(html).iter("code")] == [
        "OneCycle(total_steps=1000)",
        "Triangular(step_size_up=100)",
    ]
    assert [row[0] for row in rows(html) if row[0] != "group"] == ["0", "2", "1", "3"]
    assert "no policy" in html


@pytest.mark.parametrize("own", [False, True], ids=["one policy", "a policy each"])
def test_many_groups_do_not_make_it_large(own):
    """Of a hundred groups the first ones are shown, and the others counted."""
    groups = [{"params": [parameter()], **({"policy": OneCycle(100 + i)} if own else {})} for i in range(100)]
    html = CyclicSGD(groups, lr=0.1, policy=OneCycle(1000))._repr_html_()
    assert_is_a_display(html)
    assert f"and {97 if own else 90} more param groups" in html


def test_the_reports_so_far_count():
    """Of a policy that listens the curve is that of the reports it has had."""
    optimizer = trained(Plateau(patience=0), 3)
    for loss in (1.0, 2.0):
        optimizer.report(loss)
    html = optimizer._repr_html_()
    (picture,) = pictures(html)
    assert "lr / peak: 0.1 at the first" in picture.find(f"{SVG}desc").text
    assert rows(html)[1][:4] == ["0", "3", "0.1", "0.01"]


@pytest.mark.parametrize(
    ("cls", "policy", "name"),
    [
        (CyclicSGD, OneCycle(100), "momentum"),
        (CyclicAdamW, OneCycle(100), "betas[0]"),
        (cyclic(torch.optim.RMSprop), CosineDecay(100), "momentum"),
        (cyclic(torch.optim.Adagrad), CosineDecay(100), None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_table_names_the_place_of_momentum(cls, policy, name):
    """It is the optimizer's own name for it, and no column where there is none."""
    head, row = rows(trained(policy, 5, cls)._repr_html_())
    assert head == ["group", "step", "peak", "lr", *([name] if name else []), "weight_decay"]
    assert len(row) == len(head)


def test_a_capturable_optimizer_shows_itself():
    """Its clock is read from the device, and the display is that of the same optimizer on the host."""
    here, there = (trained(OneCycle(1000), 30, capturable=capturable) for capturable in (False, True))
    assert there._repr_html_() == here._repr_html_()


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
def test_a_display_changes_nothing(capturable):
    """The state is as before, and the steps after it are those of an optimizer that was not shown."""
    shown, other = (trained(OneCycle(100), 10, momentum=0.9, capturable=capturable) for _ in range(2))
    for optimizer in (shown, other):
        optimizer.param_groups[0]["lr"] = 0.0625  # for one step
    before = copy.deepcopy(shown.state_dict())
    shown._repr_html_()
    assert str(shown.state_dict()) == str(before)
    for optimizer in (shown, other):
        optimizer.step()
    assert str(shown.state_dict()) == str(other.state_dict())
    assert torch.equal(*(one.param_groups[0]["params"][0] for one in (shown, other)))


def test_without_a_policy_it_is_shown_as_torch_shows_it():
    """There is nothing to draw."""
    assert CyclicSGD([parameter()], lr=0.1)._repr_html_() is None


def test_a_value_that_is_not_valid_is_shown_as_text():
    """None, and the next step says what is wrong."""
    optimizer = trained(OneCycle(100), 1)
    optimizer.param_groups[0]["max_lr"] = math.nan
    assert optimizer._repr_html_() is None
    with pytest.raises(ValueError, match="max_lr"):
        optimizer.step()


def test_a_policy_that_breaks_later_is_shown_as_text():
    """The optimizer is used as before; its display is its text."""
    optimizer = trained(LambdaPolicy([1.0, 0.5].__getitem__), 0)
    assert optimizer._repr_html_() is None
    assert "LambdaPolicy" in repr(optimizer)


# --- a range test


def scaled(result, lr):
    """Where a rate is in the picture."""
    first, last = map(math.log, (result.lrs[0], result.lrs[-1]))
    return LEFT + (RIGHT - LEFT) * (math.log(lr) - first) / (last - first)


@pytest.mark.parametrize(
    "losses",
    [FALLING, [*FALLING, math.nan], [1.0] * 40, [2.0, 1.0], [math.nan], [-math.inf] * 3, []],
    ids=["range", "nan", "flat", "two", "one", "infinite", "none"],
)
def test_every_range_test_shows_itself(losses):
    """There is a picture for every result, with why the test stopped."""
    html = made(losses)._repr_html_()
    assert_is_a_display(html)
    (picture,) = pictures(html)
    assert "the loss diverged at lr=1" in picture.find(f"{SVG}desc").text
    assert "the loss diverged at lr=1" in parsed(html)[-1].text


@pytest.mark.parametrize("maximize", [False, True])
def test_the_suggested_range_is_marked(maximize):
    """The band reaches from base_lr to max_lr, and both are written above it."""
    result = made([-loss for loss in FALLING] if maximize else FALLING, maximize=maximize)
    base_lr, max_lr = result.suggest()
    (picture,) = pictures(result._repr_html_())
    (band,) = picture.iter(f"{SVG}rect")
    left, width = float(band.get("x")), float(band.get("width"))
    assert [left, left + width] == pytest.approx([scaled(result, base_lr), scaled(result, max_lr)], abs=0.11)
    assert {f"base lr {base_lr:.2g}", f"max lr {max_lr:.2g}"} <= {*texts(picture)}


def test_the_best_single_loss_has_a_dot():
    """It is at the rate of the lowest loss, of a maximized one at that of the highest."""
    for sign in (1, -1):
        result = made([sign * loss for loss in FALLING], maximize=sign < 0)
        ((x, _),) = dots(*pictures(result._repr_html_()))
        assert x == pytest.approx(scaled(result, result.lrs[35]), abs=0.1)


def test_a_range_test_without_a_suggestion_says_why():
    """No band, and the reason in words."""
    html = made([1.0] * 40)._repr_html_()
    assert not [*parsed(html).iter(f"{SVG}rect")]
    assert "the loss did not fall at any rate" in html


def test_losses_beyond_the_axes_do_not_flatten_the_rest():
    """After a blow-up of any size the descent has the picture's height."""
    (picture,) = pictures(made([*FALLING[:-1], 1e30])._repr_html_())
    _, smoothed = polylines(picture)
    assert max(y for _, y in smoothed) - smoothed[0][1] > 0.5 * drawing.HIGHEST


def test_a_range_test_shows_itself_without_matplotlib(monkeypatch):
    """The picture is drawn here."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_is_a_display(made(FALLING)._repr_html_())
