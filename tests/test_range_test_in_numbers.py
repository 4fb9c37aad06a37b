"""The LR range test, number by number: every value it reports is that of its documented rule, worked out apart."""

import _pyio
import io
import math
import os
import sys

import numpy as np
import pytest
import torch
import tqdm.auto
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from cyclic_optim import (
    CyclicAdamW,
    CyclicSGD,
    LRRangeTest,
    NoSuggestionError,
    OneCycle,
    Triangular,
    cyclic,
    lr_range_test,
    plotting,
    supervised_step,
)
from cyclic_optim.range_test.things import generators_of
from cyclic_optim.range_test.watch import Average


def made(losses, smoothing=0.0, stopped="that was all", lrs=None, **others):
    lrs = [1e-4 * 1.25**i for i in range(len(losses))] if lrs is None else lrs
    return LRRangeTest(lrs, losses, "exponential", stopped, smoothing, **others)


# --- one rate, by the rules of the field


@st.composite
def curves(draw, fewest=27):
    """Rising rates at uneven distances, and a loss for each."""
    losses = draw(st.lists(st.integers(-1000, 1000), min_size=fewest, max_size=60))
    logs = np.cumsum(draw(st.lists(st.floats(0.05, 0.5), min_size=len(losses), max_size=len(losses))))
    return made([loss / 7 for loss in losses], lrs=[float(lr) for lr in 1e-6 * np.exp(logs)])


@given(curves())
@example(made([float(-i) for i in range(40)]))
@example(made([float(i * i) for i in range(40)]))
@example(made([0.0] * 39 + [-9.0]))
@example(made([0.0] * 38 + [-9.0, -9.0]))
@example(made([0.0] * 33 + [-9.0] * 7))
@example(made([9.0] * 33 + [4.3] * 5 + [-4.7] * 2))
@example(made([0.0] * 11 + [-9.0] * 29))
def test_steepest_rates_are_where_numpys_slopes_are_lowest(result):
    """The three rules of steepest descent agree with numpy's differences and gradients, skipped steps included."""
    lrs, losses = np.array(result.lrs), np.array(result.losses)
    size = len(losses)
    slopes = {
        "steepest": (0, np.diff(losses) / np.diff(np.log(lrs))),
        "torch_lr_finder": (10, np.gradient(losses[10 : size - 5])),
        "lightning": (10, np.gradient(losses[10 : size - 1], lrs[10 : size - 1])),
    }
    for rule, (skipped, slope) in slopes.items():
        place = result.lrs.index(result.suggest_lr(rule)) - skipped
        assert 0 <= place < len(slope), rule
        assert slope[place] == pytest.approx(slope.min(), rel=1e-9, abs=1e-9), rule
    assert result.suggest_lr("minimum") == lrs[losses.argmin()] / 10


def valley(losses):
    """Where fastai's ``valley`` lies: one and a half thirds into the longest falling subsequence."""
    lengths, start, end = [1] * len(losses), 0, 0
    for i in range(1, len(losses)):
        for j in range(i):
            if losses[i] < losses[j] and lengths[i] < lengths[j] + 1:
                lengths[i] = lengths[j] + 1
            if lengths[end] < lengths[i]:
                end, start = i, i - lengths[i]
    third = (end - start) / 3
    return start + int(third) + int(third / 2)


@given(curves())
@example(made([float(-i) for i in range(40)]))
@example(made([5.0] * 10 + [4.0, 3.0, 3.0, 3.0, 2.0, 1.0, 0.0] + [7.0] * 20))
def test_the_valley_is_fastais(result):
    """The valley is the one that fastai's loops find; where those count to one before the first, it is the first."""
    assert result.suggest_lr("valley") == result.lrs[max(0, valley(result.losses))]


def test_a_valley_at_the_very_start_is_the_first_rate():
    """A loss that falls once and then climbs has its valley at the first rate, not at the last."""
    result = made([5.0, 4.0, *map(float, range(6, 40))])
    assert valley(result.losses) == -1
    assert result.suggest_lr("valley") == result.lrs[0]


def slide(losses):
    """Where fastai's ``slide`` lies: its interval of 15 steps, slid down while the slopes at its two ends differ."""
    slopes, right, left = np.gradient(losses), -1, -16
    chosen = left
    while left >= -len(losses) and abs(slopes[right] - slopes[left]) > 0.005:
        chosen, right, left = left, right - 1, left - 1
    return len(losses) + chosen


@given(curves())
@example(made([float(i * i) for i in range(40)]))
@example(made([0.0] * 20 + [float(i * i) for i in range(20)]))
@example(made([1.0] * 40))
def test_the_slide_is_fastais(result):
    """The interval slides as far as fastai's loop slides it, to the first rate at most."""
    assert result.suggest_lr("slide") == result.lrs[slide(np.array(result.losses))]


def test_a_rule_needs_27_finite_losses():
    """With 26 finite losses no rule answers, and the error counts them; with 27 each does."""
    for rule in ("steepest", "valley", "minimum", "slide", "torch_lr_finder", "lightning"):
        with pytest.raises(NoSuggestionError) as raised:
            made([*map(float, range(26)), math.nan]).suggest_lr(rule)
        assert str(raised.value) == "need at least 27 finite losses, got 26 (that was all)"
        assert made([*map(float, range(27))]).suggest_lr(rule) > 0


def test_a_rule_reads_the_blow_up_too():
    """The packages' rules get the losses averaged as they are, up to the ceiling; only ``suggest`` counts fewer."""
    result = made([5.0, 9.0] * 10 + [float(-i) for i in range(20)] + [30.0, 1e9], 0.5, ceiling=40.0)
    assert result.suggest_lr("minimum") == result.lrs[averaged(result, 40.0).argmin()] / 10
    assert result.suggest_lr("slide") == result.lrs[slide(averaged(result, 40.0))]


def test_an_unknown_rule_is_refused_by_name():
    """The error lists the rules there are."""
    with pytest.raises(ValueError, match="need rule") as raised:
        made([1.0]).suggest_lr("best")
    assert str(raised.value) == (
        "need rule to be one of 'steepest', 'valley', 'minimum', 'slide', 'torch_lr_finder', 'lightning', "
        "got rule='best'"
    )


# --- the pair


def averaged(result, highest):
    losses = np.minimum(result.finite_losses, highest)
    place = np.arange(len(losses))
    weights = result.smoothing ** np.abs(place[:, None] - place) if len(losses) else np.zeros((0, 0))
    return weights @ losses / weights.sum(1)


def smooth(result):
    losses = result.finite_losses
    highest = max(losses[: max(1, len(losses) // 10)], default=math.inf)
    blow_up = len(losses)
    while blow_up > 0 and losses[blow_up - 1] > highest:
        blow_up -= 1
    return np.append(averaged(result, highest)[:blow_up], averaged(result, result.ceiling)[blow_up:])


def suggestion(result):
    """The documented rule, written down with numpy; a word where there is none."""
    losses, lrs, s = smooth(result), result.lrs, result.smoothing
    if len(losses) < 10:
        return "few"
    start, lowest = losses[: max(1, len(losses) // 10)].mean(), int(losses.argmin())
    fall = start - losses[lowest]
    early = np.array(result.losses[: max(10, len(losses) // 2)])
    weights = s ** np.abs(np.arange(-400, 401.0))
    single = math.sqrt((np.diff(early) ** 2).mean() / 2)
    noise = single * math.sqrt((weights**2).sum()) / weights.sum()
    if lowest < len(losses) // 10 or fall <= max(4 * noise, 1e-12 * abs(start)):
        return "no fall"
    if len(losses) == len(result.losses) and losses[-1] - losses[lowest] <= max(4 * noise, 0.02 * fall):
        return "not risen"
    high = [i for i in range(lowest) if losses[i] >= start - 0.3 * fall]
    base_lr = lrs[high[-1]] if high else lrs[0]
    if lrs[lowest] <= 2 * base_lr:
        return "narrow"
    max_lr = peak(lrs, start - losses, lowest) / max(1.0, 100 * single / fall) ** (1 / 4)
    return min(base_lr, max_lr / 2), max_lr


def peak(lrs, depths, lowest):
    """The middle, on a log scale, of the end of the dip and its centre, by 2.5."""
    first = last = lowest
    while first > 0 and depths[first - 1] >= 0.5 * depths[lowest]:
        first -= 1
    while last < len(depths) - 1 and depths[last + 1] >= 0.5 * depths[lowest]:
        last += 1
    dip = slice(first, last + 1)
    centre = np.average(np.log(lrs[dip]), weights=depths[dip])
    return float(np.exp((centre + np.log(lrs[last])) / 2)) / 2.5


SAID = {
    "few": "need at least 10 finite losses",
    "no fall": "the loss did not fall",
    "not risen": "the loss had not risen again",
    "narrow": "the loss falls and rises within a factor",
}


def check_suggestion(result):
    expected = suggestion(result)
    if isinstance(expected, str):
        with pytest.raises(NoSuggestionError, match=SAID[expected]):
            result.suggest()
    else:
        base_lr, max_lr = result.suggest()
        assert (base_lr, max_lr) == pytest.approx(expected, rel=1e-9)
        assert base_lr < max_lr
    return expected if isinstance(expected, str) else "pair"


@given(
    flat=st.integers(1, 60),
    fall=st.lists(st.integers(0, 40), min_size=1, max_size=40),
    rise=st.lists(st.integers(0, 60), max_size=20),
    noise=st.sampled_from([0, 0, 1, 3, 9]),
    smoothing=st.sampled_from([0.0, 0.3, 0.8]),
    ceiling=st.sampled_from([math.inf, 90.0]),
    ended=st.sampled_from([[], [], [math.nan], [math.inf, 1.0]]),
    seed=st.integers(0, 1000),
)
def test_the_pair_is_that_of_the_documented_rule(flat, fall, rise, noise, smoothing, ceiling, ended, seed):
    """On curves of any shape, base_lr, max_lr or the reason why there are none are those that the docstring gives."""
    steps = [0] * flat + [-step for step in fall] + rise
    jitter = np.random.default_rng(seed).integers(-noise, noise + 1, len(steps))
    losses = [float(x) / 3 for x in 100 + np.cumsum(steps) + jitter]
    check_suggestion(made(losses + ended, smoothing, ceiling=ceiling))


FALL = [20.0 - i for i in range(20)]  # a noise of 1 / sqrt(2)


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([20.0] * 9, "few"),
        ([20.0] * 10, "no fall"),
        ([8.0] * 20 + [4.0, 9.0], "narrow"),
        ([*FALL, *(float(i) for i in range(1, 8))], "pair"),
        ([*FALL, 1.0, 3.5], "not risen"),
        ([*FALL, 1.0, 4.0], "pair"),
        ([*FALL], "not risen"),
        ([*FALL, math.nan], "pair"),
        # The lowest in the first tenth, and just after it.
        ([5.0, 1.0] + [9.0] * 18, "no fall"),
        ([5.0, 5.0, 1.0] + [9.0] * 17, "no fall"),
        ([50.0] * 12 + [1.0] + [50.0] * 12, "narrow"),
        ([50.0] * 12 + [40.0, 30.0, 20.0, 10.0, 1.0] + [50.0] * 12, "pair"),
        # A rise of two hundredths of the fall, and hardly more, where there is no noise.
        ([100.0] * 50 + [float(x) for x in np.linspace(100, 0, 21)] + [2.0], "not risen"),
        ([100.0] * 50 + [float(x) for x in np.linspace(100, 0, 21)] + [2.5], "pair"),
        # A fall of rounding errors' size is none.
        ([1e15] * 20 + [1e15 - i / 8 for i in range(20)] + [2e15], "no fall"),
    ],
)
def test_curves_at_the_edge_of_each_rule(losses, verdict):
    """Curves just on either side of each condition get the documented verdict."""
    assert check_suggestion(made(losses)) == verdict


def test_the_lowest_loss_may_not_be_among_the_first_tenth():
    """With the lowest loss just behind the first tenth there is a pair, with it at that tenth's end there is none."""
    for points in (100, 109):  # the first ten are a tenth of both
        for flat, verdict in ((10, "pair"), (9, "no fall")):
            losses = [5.0] * flat + [1.0] * (points - 1 - flat) + [9.0]
            assert check_suggestion(made(losses, lrs=[10.0 ** (i - 50) for i in range(points)])) == verdict


def test_of_ten_losses_the_first_alone_is_the_start():
    """Where the first tenth is one loss, the fall is told from that one."""
    losses = [10.0, 8.0, 6.5, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0, math.nan]
    result = made(losses, lrs=[10.0**i for i in range(11)])
    assert check_suggestion(result) == "pair"
    assert result.suggest()[0] == result.lrs[1]


def test_the_peak_of_a_quiet_dip_worked_out_by_hand():
    """A dip of three rates: 2.5 times below the middle of its weighted centre and its last rate, on a log scale."""
    losses = [10.0] * 12 + [8.0, 4.0, 0.0, 2.0, 8.0, 30.0]
    lrs = [10.0**i for i in range(len(losses))]
    centre = (6 * 13 + 10 * 14 + 8 * 15) / (6 + 10 + 8)
    base_lr, max_lr = made(losses, lrs=lrs).suggest()
    assert (base_lr, max_lr) == (lrs[12], pytest.approx(10 ** ((centre + 15) / 2) / 2.5))


def test_noise_lowers_the_peak_by_its_fourth_root():
    """A noise of 16 % of the fall halves the peak, and one of less than 1 % leaves it; base_lr makes room for it."""
    dip = [8.0, 4.0, 0.0, 2.0, 8.0, 30.0]

    def suggested(noise, factor=10.0):
        # Losses that alternate by d have differences of d, and a noise of d over the root of 2.
        flat = [10.0, *(10 - noise * math.sqrt(2) * (i % 2) for i in range(1, 20))]
        start = sum(flat[:2]) / 2
        losses = flat + [start - 10 + loss for loss in dip]
        return made(losses, lrs=[factor**i for i in range(len(losses))]).suggest()

    quiet = suggested(0.0)[1]
    assert suggested(0.09)[1] == pytest.approx(quiet, rel=1e-9)
    assert suggested(1.6)[1] == pytest.approx(quiet / 2, rel=1e-9)
    base_lr, max_lr = suggested(1.6, factor=1.5)
    assert base_lr == max_lr / 2 < 1.5**20


def test_two_ends_that_are_one_rate_are_no_pair():
    """A fall within one step that doubles the rate leaves nothing between base_lr and max_lr."""
    assert check_suggestion(made([50.0] * 12 + [1.0] + [50.0] * 12, lrs=[2.0**i for i in range(25)])) == "narrow"


def test_the_noise_is_the_smoothed_losses_standard_error():
    """What neighbours in the first half say of one loss's noise, shrunk as a mean of these weights shrinks it."""
    # 15 differences of 0 and 15 of 20 before the half: a mean square of 200, a noise of 10.
    result = made([1.0] * 16 + [21.0, 1.0] * 7 + [21.0] + [40.0 * i for i in range(1, 32)], smoothing=0.5)
    # The weights ..., 1/4, 1/2, 1, 1/2, 1/4, ... sum up to 3, and their squares to 5/3.
    with pytest.raises(NoSuggestionError, match=f"with a noise of {10 * math.sqrt(5 / 3) / 3:.3g};"):
        result.suggest()


def test_what_is_said_where_there_is_no_pair():
    """Each reason reads exactly so, with the rates of the curve."""
    lrs = [10.0**i for i in range(-20, 10)]

    def said(losses):
        with pytest.raises(NoSuggestionError) as raised:
            made(losses, lrs=lrs[: len(losses)]).suggest()
        return str(raised.value)

    assert said([1.0, math.nan]) == "need at least 10 finite losses, got 1 (that was all)"
    assert said([2.0] * 15 + [math.nan]) == (
        "the loss did not fall at any rate from 1e-20 to 1e-06: it fell by 0, with a noise of 0; "
        "try a lower start_lr or more steps"
    )
    assert said(FALL) == "the loss had not risen again at the highest rate, 0.1: try a higher end_lr"
    close = made([50.0] * 12 + [1.0] + [50.0] * 12)
    with pytest.raises(NoSuggestionError) as raised:
        close.suggest()
    assert str(raised.value) == "the loss falls and rises within a factor of 2 of the rate: try more steps"


def test_a_result_says_what_it_holds():
    """The repr has the pair or the reason, the rates, why it stopped, and what the other groups' rates are."""
    lrs = [1e-4 * 2.0**i for i in range(22)]
    assert repr(made([*FALL, 5.0, 20.0], lrs=lrs)) == (
        "LRRangeTest(base_lr=0.0064, max_lr=6.42; 22 steps, lr 0.0001 to 210; stopped: that was all)"
    )
    assert repr(made([], ratios=(1.0, 0.5, 0.1))) == (
        "LRRangeTest(no suggestion: need at least 10 finite losses, got 0 (that was all); 0 steps; "
        "stopped: that was all; rates are the first group's, the others' are 0.5, 0.1 times it)"
    )


def test_the_csv_to_the_letter(tmp_path, monkeypatch):
    """Rows end as csv's do, on every platform, and what was not finite has no average."""
    result = made([1.0, 3.0, math.nan], lrs=[0.1, 0.2, 0.4])
    expected = "lr,loss,smoothed\r\n0.1,1.0,1.0\r\n0.2,3.0,3.0\r\n0.4,nan,\r\n"
    opened = io.StringIO()
    result.to_csv(opened)
    assert opened.getvalue() == expected
    # The io module that is written in Python can be told that lines end as on Windows.
    monkeypatch.setattr("cyclic_optim.range_test.result.open", _pyio.open, raising=False)
    monkeypatch.setattr(os, "linesep", "\r\n")
    for path in (tmp_path / "a.csv", str(tmp_path / "b.csv")):
        result.to_csv(path)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes() == expected.encode()


def test_a_plot_is_plottings(monkeypatch):
    """plot hands the result and the axes to the plotting module, and returns what that returns."""
    monkeypatch.setattr(plotting, "plot_range_test", lambda result, ax: (result, ax))
    result = made([1.0])
    assert result.plot() == (result, None)
    assert result.plot(3) == (result, 3)


def test_ready_keywords_take_the_policys_options():
    """triangular and one_cycle pass on the policy's other arguments."""
    result = made([*FALL, 5.0, 20.0])
    base_lr, max_lr = result.suggest()
    ratio = max_lr / base_lr
    assert result.triangular(7, step_size_down=9) == {"lr": max_lr, "policy": Triangular(7, 9, div_factor=ratio)}
    assert result.one_cycle(70, pct_start=0.4) == {"lr": max_lr, "policy": OneCycle(70, 0.4, div_factor=ratio)}


# --- while it runs


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.sampled_from([0.0, 0.5, 0.8, 0.98]))
def test_the_moving_average_weighs_the_past(values, smoothing):
    """A value k additions ago counts smoothing**k as much, over the sum of the weights."""
    average = Average(smoothing)
    for count in range(1, len(values) + 1):
        weights = smoothing ** np.arange(count - 1, -1, -1.0)
        expected = weights @ np.array(values[:count]) / weights.sum()
        assert average.add(values[count - 1]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


class Scripted:
    """A training step with given losses, and a record of what was done with it."""

    def __init__(self, losses):
        self.param = torch.nn.Parameter(torch.zeros(1))
        self.model = torch.nn.Module()
        self.model.param = self.param
        self.optimizer = torch.optim.SGD([self.param], lr=0.1)
        self.losses, self.calls, self.updates = iter(losses), [], 0
        self.optimizer.register_step_post_hook(lambda *_: self.calls.append("update"))

    def restart(self):
        self.calls.append("restart")

    def __call__(self):
        self.calls.append("loss")
        self.param.grad = torch.ones(1)
        return next(self.losses)


def run(losses, **options):
    scripted = Scripted(losses)
    options = {"num_steps": len(losses), "progress": False} | options
    return lr_range_test(scripted.model, scripted.optimizer, scripted, **options), scripted


def watched(losses, num_steps, smoothing, factor):
    """The number of losses until they have diverged, and the ceiling then: the documented rule with numpy."""
    few, lowest, ceiling = max(5, num_steps // 10), math.inf, math.inf
    first = np.array(losses[:few])
    for count in range(1, len(losses) + 1):
        weights = smoothing ** np.arange(count - 1, -1, -1.0)
        average = weights @ np.array(losses[:count]) / weights.sum()
        lowest = min(lowest, average)
        if count > few:
            fallen, scatter = first.mean() - lowest, first.max() - first.min()
            ceiling = lowest + factor * max(fallen, scatter, 1e-12 * np.abs(first).max())
            if average > ceiling:
                return count, ceiling
    return len(losses), ceiling


@given(
    st.lists(st.integers(-20, 20), min_size=2, max_size=60),
    st.sampled_from([0.0, 0.5, 0.8]),
    st.sampled_from([0.01, 0.5, 2, 2.0, math.inf]),
    st.sampled_from([0.0, 7.0, 1e6]),
)
@example([0] * 7, 0.0, 2.0, 1.0)
@example([5, 5, 5, 5, 5, 5, 6], 0.0, 2.0, 1.0)
@example([9, 9, 9, 9, 9, 5, 13, 14, 1], 0.0, 2.0, 0.0)
def test_it_stops_when_the_documented_rule_says(steps, smoothing, factor, offset):
    """Divergence is noticed at the very step, and the ceiling is the one, that the docstring's rule gives."""
    losses = [offset + loss + 0.37 * i * (i % 3) for i, loss in enumerate(steps)]
    count, ceiling = watched(losses, len(losses), smoothing, factor)
    result, _ = run(losses, smoothing=smoothing, divergence_factor=factor)
    assert len(result.losses) == count
    assert result.ceiling == pytest.approx(ceiling, rel=1e-9)


def test_what_stopped_it():
    """The result says whether the rates ran out, a loss was not finite, or the losses diverged, and where."""
    assert run([1.0] * 4, end_lr=0.5)[0].stopped == "end_lr=0.5 was reached"
    assert run([1.0, math.inf], start_lr=0.1, end_lr=0.2)[0].stopped == "the loss was inf at lr=0.2"
    result, _ = run([1.0] * 5 + [9.0] * 5, start_lr=0.001, end_lr=0.1)
    assert result.stopped == f"the loss diverged at lr={result.lrs[5]:.3g}"
    assert len(result.losses) == 6


def test_a_long_test_takes_a_tenth_of_its_steps_for_the_first_ones():
    """Of 100 steps, or 109, the first ten set the scale: a blow-up among them is no divergence yet, the 11th's is."""
    for steps in (100, 109):
        assert len(run([1.0] * 9 + [1e6] + [1.0] * (steps - 10))[0].losses) == steps
        assert len(run([1.0] * 10 + [1e6] + [1.0] * (steps - 11))[0].losses) == 11


def test_as_much_as_it_had_fallen_is_not_more():
    """After a fall by 6 from losses that do not scatter, a rise by twice that is allowed, and a higher one is not."""
    result, _ = run([10.0] * 5 + [4.0, 15.0, 16.0, 16.5, 1.0], smoothing=0.0)
    assert result.losses[-1] == 16.5
    assert result.ceiling == 16.0


@pytest.mark.parametrize("loss", [0.0, 0.1, -1e15 / 3])
def test_equal_losses_do_not_diverge(loss):
    """A loss that stays the same, at any size and at 0 too, runs to the end, though its averages are rounded."""
    assert len(run([loss] * 100)[0].losses) == 100


def test_what_it_does_in_order():
    """The loader is restarted before and after; an update follows each loss but one that is not finite."""
    _, scripted = run([1.0, 2.0, math.nan, 3.0])
    assert scripted.calls == ["restart", "loss", "update", "loss", "update", "loss", "restart"]


def test_a_loss_that_is_not_finite_is_not_validated():
    """After a NaN neither update nor validation is made; the recorded loss is the NaN."""
    result, _ = run([1.0, math.nan], validation=lambda: torch.tensor(5.0))
    assert result.losses[0] == 5.0
    assert math.isnan(result.losses[1])


def test_the_defaults():
    """100 steps from 1e-7 to 10, on a logarithmic axis, smoothed by 0.8, in copies kept on the device."""
    scripted = Scripted([1.0] * 100)
    result = lr_range_test(scripted.model, scripted.optimizer, scripted)
    np.testing.assert_allclose(result.lrs, np.logspace(-7, 1, 100), rtol=1e-12)
    assert result.lrs[-1] == 10.0
    assert (result.mode, result.smoothing, result.ratios) == ("exponential", 0.8, (1.0,))
    defaults = lr_range_test.__kwdefaults__
    assert {key: defaults[key] for key in ("divergence_factor", "validation", "scaler", "keep", "progress")} == {
        "divergence_factor": 2.0,
        "validation": None,
        "scaler": None,
        "keep": "device",
        "progress": True,
    }
    assert (made([]).ceiling, made([]).ratios) == (math.inf, (1.0,))


def test_the_least_that_is_allowed():
    """Two steps, no smoothing, and the smallest start are taken."""
    result, _ = run([1.0, 2.0], smoothing=0, start_lr=5e-324, end_lr=5e-323, mode="linear")
    assert len(result.losses) == 2


def test_rates_that_span_no_range_are_refused():
    """The first rate may not be 0, the last not be the first again, nor infinite."""
    for start_lr, end_lr in ((0.0, 1.0), (1.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match=f"need 0 < start_lr < end_lr < inf, got {start_lr=}, {end_lr=}"):
            run([1.0] * 2, start_lr=start_lr, end_lr=end_lr)


def test_a_bar_shows_the_steps_and_goes_away(monkeypatch):
    """tqdm gets the steps, a name and the order to clear up; it is not asked where no bar is wanted, nor missed."""
    bars = []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, **options):
            bars.append((self, options))
            super().__init__(**options)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    run([1.0] * 3, progress=True)
    ((bar, options),) = bars
    assert options == {
        "total": 3,
        "desc": "lr range test",
        "leave": False,
        "miniters": 1,
        "bar_format": "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}",
    }
    assert bar.n == 3
    assert bar.disable  # closed
    run([1.0] * 3, progress=False)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert len(run([1.0] * 3, progress=True)[0].losses) == 3
    assert len(bars) == 1


def test_ratios_are_those_of_the_peaks():
    """An edit of a rate in force, for one step, does not change how the groups relate."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = CyclicSGD([{"params": [params[0]]}, {"params": [params[1]], "lr": 0.3}], lr=0.1, policy=Triangular(5))
    optimizer.param_groups[0]["lr"] = 7.0
    model = torch.nn.ParameterList(params)
    result = lr_range_test(model, optimizer, lambda: 1.0, num_steps=3, progress=False)
    assert result.ratios == (1.0, 0.3 / 0.1)
    assert optimizer.param_groups[0]["lr"] == 7.0


def test_momentum_in_a_tensor_is_held_too():
    """With capturable the rates and the momentum of each step are written into the tensors that the step reads."""
    model = torch.nn.ParameterList([torch.ones(2), torch.ones(2)])
    groups = [{"params": [model[0]]}, {"params": [model[1]], "lr": 0.05}]
    optimizer = CyclicSGD(groups, lr=0.1, policy=Triangular(4), capturable=True)
    tensors = [(group["lr"], group["momentum"]) for group in optimizer.param_groups]
    held, seen = tensors[0][1].item(), []

    def train_step():
        now = [(group["lr"], group["momentum"]) for group in optimizer.param_groups]
        assert all(a is b for row, before in zip(now, tensors, strict=True) for a, b in zip(row, before, strict=True))
        seen.append([(lr.item(), momentum.item()) for lr, momentum in now])
        model[0].grad, model[1].grad = torch.ones(2), torch.ones(2)
        return 1.0

    result = lr_range_test(model, optimizer, train_step, num_steps=6, progress=False)
    np.testing.assert_allclose([[lr for lr, _ in step] for step in seen], np.outer(result.lrs, (1, 0.5)), rtol=1e-6)
    assert {momentum for step in seen for _, momentum in step} == {held}
    assert {momentum.item() for _, momentum in tensors} == {held}


@pytest.mark.parametrize("make", [CyclicAdamW, cyclic(torch.optim.Adam), torch.optim.AdamW])
def test_beta1_is_held_too(make):
    """An optimizer with betas has the first of them at its current value at every step, and as before after it."""
    model = torch.nn.ParameterList([torch.ones(2)])
    options = {} if make is torch.optim.AdamW else {"policy": OneCycle(20)}
    optimizer, seen = make(model.parameters(), lr=0.1, **options), []
    held = optimizer.param_groups[0]["betas"]
    optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["betas"]))

    def train_step():
        model[0].grad = torch.ones(2)
        return 1.0

    lr_range_test(model, optimizer, train_step, num_steps=6, progress=False)
    assert seen == [held] * 6
    assert optimizer.param_groups[0]["betas"] is held


def test_a_scaler_of_ones_own_training_step():
    """A scaler that is handed over unscales what a training step of one's own has scaled with it, and grows with it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    model = torch.nn.ParameterList([torch.zeros((), dtype=torch.float64)])
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), []

    def train_step():
        seen.append((model[0].item(), scaler.get_scale()))
        scaler.scale(model[0]).backward()  # a slope of 1
        return 1.0

    result = lr_range_test(model, optimizer, train_step, num_steps=3, scaler=scaler, progress=False)
    np.testing.assert_allclose([weight for weight, _ in seen], -np.cumsum([0, *result.lrs[:2]]), rtol=1e-12)
    assert [scale for _, scale in seen] == [8.0, 16.0, 32.0]
    assert scaler.get_scale() == 8.0


def test_gradients_are_cleared_inside_and_outside_the_model():
    """No gradient is left when the training step begins: of the model's parameters, nor of others the optimizer has."""
    inside, outside = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    not_optimized = torch.nn.Parameter(torch.ones(1))
    model, optimizer = torch.nn.ParameterList([inside, not_optimized]), torch.optim.SGD([inside, outside], lr=0.1)
    seen = []

    def train_step():
        seen.append([param.grad for param in (inside, outside, not_optimized)])
        for param in (inside, outside, not_optimized):
            param.grad = torch.ones(1)
        return 1.0

    lr_range_test(model, optimizer, train_step, num_steps=3, progress=False)
    assert seen == [[None] * 3] * 3


def test_a_frozen_part_stays_frozen():
    """A model in train mode with a part in eval mode is tested as it is."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1).eval())
    modes = []

    def train_step():
        modes.append((model.training, model[1].training))
        return 1.0

    lr_range_test(model, torch.optim.SGD(model.parameters(), lr=0.1), train_step, num_steps=2, progress=False)
    assert modes == [(True, False)] * 2


# --- a training step from a loader


def test_every_generator_of_a_loader_is_found_once():
    """The random states of a loader, of its sampler, and of a sampler inside a batch sampler, are all known."""
    data = torch.zeros(8, 1)

    def found(loader):
        return [id(one) for one in generators_of(loader)]

    own, of_sampler, inner = (torch.Generator() for _ in range(3))
    assert found([]) == []
    assert found(DataLoader(data, shuffle=True, generator=own)) == [id(own)]
    sampler = RandomSampler(data, generator=of_sampler)
    assert found(DataLoader(data, sampler=sampler, generator=own)) == [id(own), id(of_sampler)]
    assert found(DataLoader(data, sampler=sampler)) == [id(of_sampler)]
    assert found(DataLoader(data, sampler=sampler, batch_size=None)) == [id(of_sampler)]
    batches = BatchSampler(RandomSampler(data, generator=inner), 2, False)
    assert found(DataLoader(data, batch_sampler=batches)) == [id(inner)]


class Spy(torch.Tensor):
    """Remembers how it was moved."""

    moves = ()

    def to(self, *args, **options):
        self.moves = (*self.moves, (args, options))
        return self


def test_a_batch_is_moved_whatever_it_is_made_of():
    """Tensors in dicts, lists and tuples go to the device, without waiting; what is no tensor is passed on."""
    spies = [torch.zeros(2).as_subclass(Spy) for _ in range(4)]
    inputs = {"x": spies[0], "more": [spies[1], (spies[2], "text")], "n": 3}
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, given):
            seen.append(given)
            return self.weight.sum()

    step = supervised_step(Model(1, 1), lambda output, target: output, [(inputs, spies[3])], device="cpu")
    step()
    assert all(spy.moves == (((torch.device("cpu"),), {"non_blocking": True}),) for spy in spies)
    assert seen[0]["x"] is spies[0]
    assert seen[0]["more"] == [spies[1], (spies[2], "text")]
    assert seen[0]["n"] == 3


def test_a_step_goes_to_the_models_device_and_may_be_told_otherwise():
    """Without a device named it is that of the model's first parameter."""
    model = torch.nn.Linear(1, 1, device="meta")
    assert supervised_step(model, torch.sub, []).device == torch.device("meta")
    assert supervised_step(model, torch.sub, [], device="cpu").device == torch.device("cpu")


def test_what_a_step_returns_and_leaves_with_a_scaler():
    """The loss is the mean over the accumulated batches, unscaled; the gradients are scaled."""
    model, scaler = torch.nn.Linear(1, 1, bias=False), torch.amp.GradScaler("cpu", init_scale=8.0)
    torch.nn.init.ones_(model.weight)
    batches = [(torch.tensor([[float(x)]]), torch.tensor(0)) for x in (1, 2, 6)]
    step = supervised_step(model, lambda output, _: output.sum(), batches, accumulation_steps=3, scaler=scaler)
    assert step() == pytest.approx(3.0)
    assert model.weight.grad.item() == pytest.approx(8 * 3.0)
    assert step.scaler is scaler


def test_autocast_is_of_the_devices_type_and_the_given_dtype():
    """The forward pass runs under torch.autocast for the device that the batches are on."""
    seen = []

    def criterion(output, target):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return output.sum()

    batches = [(torch.ones(1, 1), torch.tensor(0))]
    for dtype in (torch.float16, None):
        supervised_step(torch.nn.Linear(1, 1), criterion, batches, autocast=dtype)()
    assert seen[0] == (True, torch.float16)
    assert seen[1][0] is False
