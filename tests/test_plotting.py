"""What the pictures show: exactly what the policy says, and of a range test what one has to see."""

import math
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise

import matplotlib
import pytest

matplotlib.use("Agg")

from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.figure import Figure
from strategies import POLICY_STRATEGIES, policies, sawtooth

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CosineRestarts,
    ExponentialDecay,
    ExponentialRamp,
    LambdaPolicy,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Policy,
    Sequential,
    StepDecay,
    Triangular,
    Triangular2,
    Values,
    WarmupStableDecay,
)
from cyclic_optim.plotting import MOST_STEPS, brief, plot_policy, plot_range_test, sampled


@dataclass
class Curve:
    """A range test as far as the picture is concerned."""

    lrs: list
    losses: list
    smoothed: list
    mode: str = "exponential"
    stopped: str = "the loss diverged at lr=3.2"
    suggestion: tuple | None = (1e-3, 0.1)

    def suggest(self):
        if self.suggestion is None:
            raise ValueError("need a loss that falls, got a flat one")
        return self.suggestion


def curve(end=1e6, **others):
    """Flat, falling, then up to ``end`` in the last ten of 100 steps."""
    lrs = [1e-6 * 10 ** (i / 14) for i in range(100)]
    smoothed = [2.3] * 40 + [2.3 - 1.8 * i / 49 for i in range(50)]
    smoothed += [0.5 + (end - 0.5) * (i / 9) ** 3 for i in range(1, 10)] + [end]
    losses = [loss + 0.1 * (-1) ** i for i, loss in enumerate(smoothed)]
    return Curve(**{"lrs": lrs, "losses": losses, "smoothed": smoothed, **others})


def new_axes():
    return Figure().subplots()


def twin_of(ax, name="momentum"):
    """The axis of momentum, or of what is asked for, or None."""
    others = [other for other in ax.figure.axes if other is not ax and other.get_ylabel() == name]
    return others[0] if others else None


# --- a policy


@pytest.mark.parametrize("name", POLICY_STRATEGIES)
@settings(max_examples=5)
@given(data=st.data())
def test_the_lines_carry_exactly_the_values_of_the_policy(name, data):
    """Every step is drawn with the rate, momentum and weight decay that the policy has for it, for every policy."""
    policy = data.draw(POLICY_STRATEGIES[name])
    steps, lr = data.draw(st.integers(1, 300)), data.draw(st.floats(0, 100))
    ax = plot_policy(policy, steps, lr, ax=new_axes())
    values = [policy.at(step) for step in range(steps)]
    (line,) = ax.lines
    assert list(line.get_xdata()) == list(range(steps))
    assert list(line.get_ydata()) == [lr * lr_factor for lr_factor, *_ in values]
    for i, name in ((1, "momentum"), (2, "weight decay factor")):
        others = [one[i] for one in values]
        if all(other is None for other in others):
            assert twin_of(ax, name) is None
        else:
            drawn = [None if math.isnan(y) else y for y in twin_of(ax, name).lines[0].get_ydata()]
            assert drawn == others


@settings(max_examples=10)
@given(policy=policies(), steps=st.integers(1, 400))
def test_every_picture_can_be_drawn(policy, steps):
    """No policy, however steep, makes matplotlib warn or fail."""
    ax = plot_policy(policy, steps, 0.1, ax=new_axes())
    ax.figure.savefig("/dev/null", format="png", dpi=20)


def test_it_draws_into_the_given_axes_and_no_other():
    """The given Axes comes back, its neighbour stays empty, and pyplot's current axes stay current."""
    figure, (left, right) = pyplot.subplots(1, 2)
    try:
        assert pyplot.gca() is right
        assert plot_policy(OneCycle(100), 100, ax=left) is left
        assert not right.has_data()
        assert pyplot.gca() is right
    finally:
        pyplot.close(figure)


def test_without_axes_it_makes_a_figure():
    """With no Axes given there is a new figure, pyplot's own, which a notebook shows."""
    before = set(pyplot.get_fignums())
    ax = plot_policy(Constant(), 10)
    try:
        assert set(pyplot.get_fignums()) - before == {ax.figure.number}
    finally:
        pyplot.close(ax.figure)


def test_the_settings_of_matplotlib_are_left_alone():
    """The looks belong to the picture: no rcParam is changed."""
    before = dict(matplotlib.rcParams)
    plot_policy(OneCycle(100), 100, ax=new_axes())
    plot_range_test(curve(), ax=new_axes())
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("policy", "steps", "scale"),
    [
        (ExponentialRamp(100, start_factor=1e-6), 100, "log"),
        (StepDecay(30), 120, "log"),
        (MultiStepDecay((30, 60)), 90, "log"),
        (ExponentialDecay(0.99), 1000, "log"),
        (OneCycle(1000), 1000, "linear"),
        (Triangular(100, div_factor=1e4), 600, "linear"),
        (Triangular2(100), 2000, "linear"),
        (CosineRestarts(100, t_mult=2), 1500, "linear"),
        (CosineDecay(100), 110, "linear"),
        (WarmupStableDecay(100, 10, 20), 110, "linear"),
        (Constant(), 10, "linear"),
        (LinearRamp(10, 0, 0), 10, "linear"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Policy) else str(value),
)
def test_the_axis_is_logarithmic_where_it_helps(policy, steps, scale):
    """Steep decays and range tests get a log axis; cycles, and what reaches 0, a linear one that shows 0."""
    ax = plot_policy(policy, steps, 0.1, ax=new_axes())
    assert ax.get_yscale() == scale
    if scale == "linear":
        assert ax.get_ylim()[0] <= 0


@given(steps=st.integers(1, 10 * MOST_STEPS) | st.integers(1, 10**12))
def test_samples_are_few_and_evenly_spread(steps):
    """All steps up to a bound; beyond it one from each equal stretch, the ends included."""
    drawn = list(sampled(steps))
    assert drawn[0] == 0
    assert drawn[-1] == steps - 1
    assert len(drawn) == steps if steps <= MOST_STEPS else len(drawn) <= MOST_STEPS
    assert all(0 < after - before <= 1 + 2 * steps / MOST_STEPS for before, after in pairwise(drawn))


@pytest.mark.parametrize("period", [50, 200, 250, 400, 1000])
def test_a_cycle_too_short_to_see_is_a_band_and_no_line(period):
    """Sampling a million steps does not make a fast cycle look constant."""
    rates = plot_policy(Triangular(period // 2), 10**6, ax=new_axes()).lines[0].get_ydata()
    assert min(rates) < 0.15
    assert max(rates) > 0.95


def test_a_users_own_policy_is_drawn():
    """A subclass with an ``at`` is enough; momentum that comes and goes leaves a gap."""

    class Mine(Policy):
        def at(self, step):
            return Values(1 / (1 + step), 0.9 if step >= 5 else None)

    ax = plot_policy(Mine(), 10, ax=new_axes())
    assert ax.get_title() == "Mine"
    assert [math.isnan(momentum) for momentum in twin_of(ax).lines[0].get_ydata()] == [True] * 5 + [False] * 5


def test_three_axes_do_not_overlap():
    """With momentum and weight decay the second axis on the right is outside of the first, and the rate is on top."""
    policy = Combined(CosineDecay(100), momentum=LinearRamp(100, 0.8, 0.9), weight_decay=LinearRamp(50))
    ax = plot_policy(policy, 100, ax=new_axes())
    near, far = twin_of(ax), twin_of(ax, "weight decay factor")
    assert near.spines["right"].get_position() != far.spines["right"].get_position()
    assert ax.get_zorder() > max(near.get_zorder(), far.get_zorder())
    assert [axes.patch.get_visible() for axes in (ax, near, far)] == [False, True, False]


def test_labels():
    """The axes are labelled, and the title is the policy without what goes without saying."""
    ax = plot_policy(OneCycle(1000, pct_start=0.2), 1000, ax=new_axes())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("optimizer step", "learning rate")
    assert twin_of(ax).get_ylabel() == "momentum"
    assert ax.get_title() == "OneCycle(total_steps=1000, pct_start=0.2)"


def test_brief_names_functions_and_parts():
    """Functions by name, the parts of a sequence briefly too, and never more than the width."""
    assert brief(LambdaPolicy(sawtooth)) == "LambdaPolicy(fn=sawtooth)"
    sequence = Sequential([LinearRamp(10), OneCycle(90)], [10])
    whole = "Sequential(policies=(LinearRamp(total_iters=10), OneCycle(total_steps=90)), milestones=(10,))"
    assert brief(sequence, 200) == whole
    assert brief(sequence, 40) == whole[:37] + "..."


def test_a_default_that_is_made_anew_is_no_obstacle():
    """A user's dataclass may have a default_factory."""

    @dataclass(frozen=True)
    class Mine(Policy):
        table: list = field(default_factory=list)

        def at(self, step):
            return Values(1.0)

    assert brief(Mine()) == "Mine(table=[])"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((OneCycle(10), 0), ValueError, "need 1 <= steps, got steps=0"),
        ((OneCycle(10), 1.5), TypeError, "need steps to be an int"),
        ((OneCycle(10), 10, -0.1), ValueError, "need lr to be a finite number >= 0, got lr=-0.1"),
        ((OneCycle(10), 10, math.nan), ValueError, "need lr to be a finite number >= 0, got lr=nan"),
        (("OneCycle", 10), TypeError, "need policy to be a Policy, got policy='OneCycle'"),
        ((LambdaPolicy(lambda step: math.nan), 10), ValueError, r"need fn\(0\) to be a finite number"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    """Errors state the rule and the value, and nothing has been drawn by then."""
    ax = new_axes()
    with pytest.raises(error, match=message):
        plot_policy(*arguments, ax=ax)
    assert not ax.has_data()


def test_without_matplotlib_the_cure_is_named():
    """The package and the module import without matplotlib; drawing says what to install."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import cyclic_optim, cyclic_optim.plotting as plotting\n"
        "try: plotting.plot_policy(cyclic_optim.Constant(), 10)\n"
        "except ImportError as error: print(error)\n"
        "try: plotting.plot_range_test(None)\n"
        "except ImportError as error: print(error)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.count(": pip install matplotlib, or in a checkout pip install '.[plot]' (") == 2


# --- a range test


def test_a_range_test_shows_its_losses_and_the_suggestion():
    """Both curves carry the losses; the two ends are marked, labelled, and shaded between."""
    result = curve()
    ax = new_axes()
    assert plot_range_test(result, ax=ax) is ax
    raw, smoothed, base, top = ax.lines
    assert list(raw.get_xdata()) == list(smoothed.get_xdata()) == result.lrs
    assert list(raw.get_ydata()) == result.losses
    assert list(smoothed.get_ydata()) == result.smoothed
    assert smoothed.get_linewidth() > raw.get_linewidth()
    assert [line.get_xdata()[0] for line in (base, top)] == [1e-3, 0.1]
    assert [text.get_text() for text in ax.texts] == ["base lr 0.001", "max lr 0.1"]
    assert ax.patches[0].get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx([1e-3, 0.1])
    assert result.stopped in ax.get_title().replace("\n", " ")


@pytest.mark.parametrize(("mode", "scale"), [("exponential", "log"), ("linear", "linear")])
def test_the_rates_axis_is_the_tests(mode, scale):
    """The axis of the rates is spaced as the test was."""
    assert plot_range_test(curve(mode=mode), ax=new_axes()).get_xscale() == scale


@pytest.mark.parametrize("end", [10, 1e6, 1e300])
@pytest.mark.parametrize("shift", [0, -5])
def test_a_diverging_end_does_not_squash_the_curve(end, shift):
    """The descent fills at least half of the height, and is in view as a whole, negative losses included."""
    result = curve(end)
    result.losses = [loss + shift for loss in result.losses]
    result.smoothed = [loss + shift for loss in result.smoothed]
    ax = plot_range_test(result, ax=new_axes())
    low, high = ax.get_ylim()
    assert low < 0.5 + shift < 2.3 + shift < high
    assert (2.3 - 0.5) / (high - low) > 0.5
    ax.figure.savefig("/dev/null", format="png", dpi=20)


def test_one_wild_batch_does_not_squash_the_curve():
    """A single loss of 10**4 in the descent leaves the picture, not the curve."""
    result = curve()
    result.losses[20] = 1e4
    assert plot_range_test(result, ax=new_axes()).get_ylim()[1] < 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_not_drawn(bad):
    """They leave a gap; the smoothed curve may be shorter, as it ends before them."""
    result = curve()
    result.losses[-1] = bad
    result.smoothed = result.smoothed[:-1]
    raw, smoothed = plot_range_test(result, ax=new_axes()).lines[:2]
    assert math.isnan(raw.get_ydata()[-1])
    assert list(smoothed.get_xdata()) == result.lrs[:-1]


@pytest.mark.parametrize(
    "losses",
    [[math.nan] * 100, [2.3] * 100, [float(i) for i in range(100)], [float(-i) for i in range(100)], [1.0], []],
)
def test_without_a_suggestion_the_title_says_why(losses):
    """Nothing is marked, and the reason is there to read; no such curve is too odd to draw."""
    result = curve(
        lrs=[10 ** (i / 50 - 6) for i in range(len(losses))], losses=losses, smoothed=losses, suggestion=None
    )
    ax = plot_range_test(result, ax=new_axes())
    assert len(ax.lines) == 2
    assert not ax.patches
    assert "no range suggested: need a loss that falls, got a flat one" in ax.get_title().replace("\n", " ")
    ax.figure.savefig("/dev/null", format="png", dpi=20)


def legend_of(ax):
    """The texts of the legend."""
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


def marks(ax):
    """Where the lowest loss is marked, and the line where the test stopped."""
    lowest, stop = ax.collections
    return lowest.get_offsets().tolist(), [segment.tolist() for segment in stop.get_segments()]


def test_the_legend_names_every_mark_with_its_rate():
    """The two rates of the range, the rate of the lowest loss, and why the test stopped."""
    result = curve()
    assert legend_of(plot_range_test(result, ax=new_axes())) == [
        "each step",
        "smoothed",
        "suggested range: 0.001 to 0.1",
        f"lowest single loss: lr {result.lrs[89]:.2g}",
        "stopped: the loss diverged at lr=3.2",
    ]


def test_the_lowest_loss_and_the_end_are_marked():
    """The lowest loss of a single step, not of the smoothed curve; and a line of the axes' height at the last rate."""
    result = curve()
    result.losses[60] = 0.3
    ax = plot_range_test(result, ax=new_axes())
    assert marks(ax) == ([[result.lrs[60], 0.3]], [[[result.lrs[-1], 0], [result.lrs[-1], 1]]])
    assert ax.collections[1].get_transform() == ax.get_xaxis_transform()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_not_the_lowest(bad):
    """The test ended there, and the line says so; the lowest loss is the lowest of the others."""
    result = curve(stopped=f"the loss was {bad} at lr=3.2")
    result.losses[-1] = bad
    ax = plot_range_test(result, ax=new_axes())
    (((lr, loss),), (((end, _), _),)) = marks(ax)
    assert (lr, loss) == (result.lrs[89], result.losses[89])
    assert end == result.lrs[-1]
    assert f"stopped: the loss was {bad} at lr=3.2" in legend_of(ax)


def test_a_lowest_loss_below_the_axis_is_marked_at_its_edge():
    """One wild batch stretches no axis, and its rate is marked all the same, uncut."""
    result = curve()
    result.losses[20] = -1e4
    ax = plot_range_test(result, ax=new_axes())
    low, high = ax.get_ylim()
    assert high - low < 8
    assert marks(ax)[0] == [[result.lrs[20], low]]
    assert not ax.collections[0].get_clip_on()


@pytest.mark.parametrize("losses", [[math.nan] * 100, []], ids=["nan", "none"])
def test_without_a_finite_loss_there_is_no_lowest(losses):
    """Where the test stopped is marked if it made a step."""
    lrs = [10 ** (i / 50 - 6) for i in range(len(losses))]
    ax = plot_range_test(curve(lrs=lrs, losses=losses, smoothed=[], suggestion=None), ax=new_axes())
    stops = ["stopped: the loss diverged at lr=3.2"] if losses else []
    assert legend_of(ax) == ["each step", "smoothed", *stops]
    assert len(ax.collections) == len(stops)


def test_the_line_at_the_end_stretches_no_axis():
    """Losses far from 0 and 1 keep their limits, also where these are matplotlib's own."""
    result = curve(losses=[500.0] * 100, smoothed=[500.0] * 100, suggestion=None)
    low, high = plot_range_test(result, ax=new_axes()).get_ylim()
    assert 400 < low < high < 600


def test_the_noise_of_a_flat_curve_is_in_view():
    """Losses that only scatter look so: the axis is not that of the smoothed curve alone."""
    smoothed = [2.3 + 0.001 * (i % 3) for i in range(100)]
    losses = [loss + 0.1 * (-1) ** i for i, loss in enumerate(smoothed)]
    low, high = plot_range_test(curve(losses=losses, smoothed=smoothed, suggestion=None), ax=new_axes()).get_ylim()
    assert low < min(losses) < max(losses) < high + 0.002
    assert high - low < 0.3


def test_all_rates_are_on_the_axis():
    """The axis spans the rates that were tried, drawn losses or not."""
    result = curve(losses=[math.nan] * 100, smoothed=[], suggestion=None)
    low, high = plot_range_test(result, ax=new_axes()).get_xlim()
    assert low <= result.lrs[0] < result.lrs[-1] <= high
