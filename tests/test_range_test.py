"""The LR range test: nothing is left behind, it stops when it should, and says only what the curve says."""

import copy
import functools
import io
import math
import random
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from left_behind import same
from torch.utils.data import DataLoader, TensorDataset

from cyclic_optim import (
    CyclicSGD,
    LRRangeTest,
    NoSuggestionError,
    OneCycle,
    Triangular,
    lr_range_test,
    supervised_step,
)
from cyclic_optim.range_test.contents import Place
from cyclic_optim.range_test.rates import RULES

OPTIMIZERS = {
    "CyclicSGD": lambda groups: CyclicSGD(groups, lr=0.1, policy=Triangular(step_size_up=5)),
    "CyclicSGD without a policy": lambda groups: CyclicSGD(groups, lr=0.1, momentum=0.9),
    "CyclicSGD, tensor lr": lambda groups: CyclicSGD(groups, lr=torch.tensor(0.1), policy=OneCycle(100)),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "SGD, fused": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.1, amsgrad=True),
    "AdamW, tensor lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.1)),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=0.1, momentum=0.5, centered=True),
}


class Noise(torch.nn.Module):
    """Draws from Python's and NumPy's generators, as an augmentation may."""

    def forward(self, x):
        return x * (1 + 0.1 * random.random() + 0.1 * np.random.rand())


class Setting:
    """A network with BatchNorm and dropout, in the middle of its training."""

    def __init__(self, optimizer="SGD", *, trained=2, scaler=None):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        layers = [torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 3)]
        self.model = torch.nn.Sequential(*layers, torch.nn.Dropout(0.3), Noise())
        self.model[2].eval()
        data = TensorDataset(torch.randn(24, 4), torch.randint(3, (24,)))
        self.loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))
        groups = [{"params": self.model[0].parameters()}, {"params": self.model[3].parameters(), "lr": 0.01}]
        self.optimizer = OPTIMIZERS[optimizer](groups)
        self.scaler = scaler
        self.step = supervised_step(self.model, torch.nn.functional.cross_entropy, self.loader, scaler=scaler)
        self.train(trained)

    def train(self, steps):
        """Steps whose random draws touch every generator there is."""
        self.step.restart()
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.step()
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()

    def snapshot(self):
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "grads": [param.grad for param in self.model.parameters()],
                "optimizer": self.optimizer.state_dict(),
                "modes": [module.training for module in self.model.modules()],
                "scaler": self.scaler.state_dict() if self.scaler else None,
                "random": (random.getstate(), np.random.get_state()[1], torch.get_rng_state()),
                "generator": self.loader.generator.get_state(),
            }
        )


def run(setting, train_step=None, **options):
    options = {"num_steps": 30, "progress": False} | options
    return lr_range_test(setting.model, setting.optimizer, train_step or setting.step, **options)


@pytest.mark.parametrize("keep", get_args(Place))
@pytest.mark.parametrize("trained", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_is_left_behind(optimizer, trained, keep):
    """Every weight, buffer, gradient, state, mode and random generator is what it was, to the bit."""
    setting = Setting(optimizer, trained=trained)
    before = setting.snapshot()
    tensors = [*setting.model.parameters(), *setting.model.buffers(), *(p.grad for p in setting.model.parameters())]
    lr = setting.optimizer.param_groups[0]["lr"]
    result = run(setting, keep=keep)
    assert len(result.losses) > 5
    assert same(before, setting.snapshot())
    after = [*setting.model.parameters(), *setting.model.buffers(), *(p.grad for p in setting.model.parameters())]
    assert all(one is other for one, other in zip(tensors, after, strict=True))
    assert not isinstance(lr, torch.Tensor) or setting.optimizer.param_groups[0]["lr"] is lr


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_after_equals_training_without(optimizer):
    """A training with a range test in the middle ends with the weights of the one without."""
    ends = []
    for test_first in (True, False):
        setting = Setting(optimizer)
        if test_first:
            run(setting)
        setting.train(4)
        ends.append(setting.snapshot())
    assert same(*ends)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("at", [0, 7])
def test_an_interrupt_leaves_nothing_behind(error, at):
    """Ctrl-C or an exception in the middle is passed on, and everything is as it was."""
    setting = Setting("CyclicSGD")
    before = setting.snapshot()
    calls = []

    @functools.wraps(setting.step)
    def train_step():
        calls.append(1)
        loss = setting.step()
        if len(calls) > at:
            raise error
        return loss

    with pytest.raises(error):
        run(setting, train_step)
    assert same(before, setting.snapshot())


@pytest.mark.parametrize("trained", [0, 2])
@pytest.mark.parametrize("fused", [None, True])
def test_a_grad_scaler_is_put_back(fused, trained):
    """With a GradScaler, steps are scaled and may be skipped, and the scaler is as before, also if it was new."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=3)
    setting = Setting("SGD, fused" if fused else "SGD", scaler=scaler, trained=trained)
    before, inside = setting.snapshot(), copy.deepcopy(vars(scaler))
    result = run(setting)
    assert len(result.losses) > 5
    assert same(before, setting.snapshot())
    assert same(inside, vars(scaler))


def test_rates_climb_from_start_to_end():
    """The recorded rates are the ramp's, the groups keep their ratio, and momentum stays what it was."""
    setting = Setting("CyclicSGD")
    momentum = setting.optimizer.param_groups[0]["momentum"]
    seen = []
    setting.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    )
    result = run(setting, start_lr=1e-4, end_lr=1e-2, num_steps=5)
    np.testing.assert_allclose(result.lrs, [1e-4 * 10 ** (i / 2) for i in range(5)], rtol=1e-12)
    assert [first[0] for first, _ in seen] == result.lrs
    np.testing.assert_allclose([second[0] for _, second in seen], np.multiply(result.lrs, 0.1), rtol=1e-12)
    assert {value for step in seen for _, value in step} == {momentum}
    assert result.ratios == pytest.approx((1.0, 0.1))
    assert "the first group's" in repr(result)


def test_a_linear_ramp():
    """In linear mode the rates are evenly spaced."""
    result = run(Setting(), start_lr=0.1, end_lr=0.5, num_steps=5, mode="linear")
    np.testing.assert_allclose(result.lrs, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-12)


def scripted(losses, **options):
    """A range test whose losses are given."""
    param = torch.nn.Parameter(torch.zeros(1))
    model = torch.nn.Module()
    model.param = param
    rest = iter(losses)

    def train_step():
        param.grad = torch.ones(1)
        return next(rest)

    options = {"num_steps": len(losses), "progress": False} | options
    return lr_range_test(model, torch.optim.SGD([param], lr=0.1), train_step, **options)


FALLING = [2.0] * 10 + [2.0 - 0.1 * i for i in range(15)]


@pytest.mark.parametrize("shift", [0.0, -100.0, 1000.0])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_divergence_stops_it_whatever_the_losses_size_and_sign(shift, scale):
    """Losses that climb far above their lowest stop the test; negative ones, or huge ones, do not by themselves."""
    losses = [shift + scale * loss for loss in [*FALLING, *(1.5**i for i in range(30))]]
    result = scripted(losses)
    assert result.stopped.startswith("the loss diverged at lr=")
    assert 25 < len(result.losses) < 40


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_it(value):
    """NaN and infinities stop the test at once, without an update, and the result says so."""
    result = scripted([*FALLING, value, 1.0])
    assert len(result.losses) == len(FALLING) + 1
    assert result.stopped.startswith(f"the loss was {value}")
    assert result.suggest()[1] == pytest.approx(result.lrs[len(FALLING) - 1] / 2, rel=1.0)


@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_losses_that_do_not_diverge_run_to_the_end(shift):
    """A noisy falling curve, of negative losses too, is not taken for divergence."""
    generator = random.Random(0)
    losses = [shift + 2 - i / 50 + generator.gauss(0, 0.2) for i in range(100)]
    result = scripted(losses)
    assert len(result.losses) == 100
    assert result.stopped == "end_lr=10 was reached"


NO_SUGGESTION = {
    "too few points": ([2.0, 1.0, 3.0], "need at least 10 finite losses, got 3"),
    "nothing but nan": ([math.nan] * 50, "need at least 10 finite losses, got 0"),
    "flat": ([1.0] * 100, "did not fall"),
    "noise": ([1 + math.sin(37.0 * i**2) / 5 for i in range(100)], "did not fall"),
    "ever falling": ([2.0 - i / 100 for i in range(100)], "had not risen again"),
    "ever climbing": ([1.0 + i / 100 for i in range(100)], "did not fall"),
}


@pytest.mark.parametrize("case", NO_SUGGESTION)
def test_no_invented_suggestion(case):
    """Where the curve does not show a range, it is said why, and neither repr nor csv breaks."""
    losses, statement = NO_SUGGESTION[case]
    result = scripted(losses)
    with pytest.raises(NoSuggestionError, match=statement):
        result.suggest()
    assert "no suggestion" in repr(result)
    with pytest.raises(NoSuggestionError, match=statement):
        result.triangular(100)
    result.to_csv(io.StringIO())


def curve(start_of_fall, end_of_fall, blow_up, noise, seed, points=100):
    """A plateau at 2, a fall to 0.5 between two rates, a blow-up from a third on, and noise."""
    generator = random.Random(seed)
    losses = []
    for i in range(points):
        log_lr = -7 + 8 * i / (points - 1)
        fallen = min(1.0, max(0.0, (log_lr - start_of_fall) / (end_of_fall - start_of_fall)))
        risen = max(0.0, log_lr - blow_up)
        losses.append(2 - 1.5 * fallen + 20 * risen**2 + generator.gauss(0, noise))
    return losses


@given(
    start=st.floats(-5.5, -3),
    fall=st.floats(1, 2),
    flat=st.floats(0, 1),
    noise=st.sampled_from([0.0, 0.05, 0.15]),
    seed=st.integers(0, 10**6),
)
def test_the_pair_brackets_the_fall_of_a_known_curve(start, fall, flat, noise, seed):
    """On curves with known answers, base_lr is where the fall starts and max_lr before the blow-up, noise or not."""
    blow_up = min(start + fall + flat, 0.0)
    base_lr, max_lr = scripted(curve(start, start + fall, blow_up, noise, seed)).suggest()
    assert 10 ** (start - 0.7) < base_lr < 10 ** (start + 0.5 * fall + 0.3)
    assert 10 ** (start + 0.5 * fall - 0.3) < max_lr < 10 ** (blow_up + 0.3)
    assert base_lr < max_lr


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("curvature", [0.5, 10.0, 1000.0])
def test_the_pair_brackets_a_quadratics_range(curvature, momentum):
    """On a quadratic the suggested peak is below the divergence threshold 2(1+m)/L, and the base below the peak."""
    torch.manual_seed(0)
    curvatures = torch.logspace(math.log10(curvature) - 2, math.log10(curvature), 20, dtype=torch.float64)
    model = torch.nn.ParameterList([torch.full((20,), 3.0, dtype=torch.float64)])

    def train_step():
        loss = (curvatures * model[0] ** 2).sum() / 2
        loss.backward()
        return loss

    optimizer = CyclicSGD(model.parameters(), lr=0.1, momentum=momentum)
    result = lr_range_test(model, optimizer, train_step, end_lr=1000.0, num_steps=200, progress=False)
    base_lr, max_lr = result.suggest()
    threshold = 2 * (1 + momentum) / curvature
    assert base_lr < max_lr < threshold
    assert max_lr > (1 - momentum) * threshold / 20


def test_it_returns_ready_policies():
    """triangular and one_cycle give the keywords for CyclicSGD: rates move between the suggested two."""
    result = scripted(curve(-4, -2, -1, 0.0, 0))
    base_lr, max_lr = result.suggest()
    triangular = result.triangular(step_size_up=10, cycle_momentum=False)
    assert triangular == {
        "lr": max_lr,
        "policy": Triangular(step_size_up=10, div_factor=max_lr / base_lr, cycle_momentum=False),
    }
    optimizer = CyclicSGD([torch.nn.Parameter(torch.ones(1))], momentum=0.9, **result.one_cycle(total_steps=50))
    assert optimizer.policy == OneCycle(total_steps=50, div_factor=max_lr / base_lr)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(base_lr)


def test_rules_of_the_field():
    """The single-number rules, on a curve on which they can be worked out by hand."""
    lrs = [10.0**i for i in range(-20, 20)]
    # Flat, then falling by 1, 3 and 1 (steepest from the 16th to the 17th, counted from 0), slowly on, and up.
    losses = [9.0] * 15 + [8.0, 7.0, 4.0, 3.0] + [2.9 - 0.1 * i for i in range(11)] + [20.0] * 10
    result = LRRangeTest(lrs, losses, "exponential", "", smoothing=0.0)
    assert result.suggest_lr("steepest") == lrs[16]
    assert result.suggest_lr("minimum") == lrs[29] / 10
    assert result.suggest_lr("torch_lr_finder") == lrs[16]  # central differences tie at 16 and 17
    # The longest falling stretch has 16 values and ends at 29: a half into its middle third.
    assert result.suggest_lr("valley") == lrs[13 + 5 + 2]
    # Against lr itself a slope is told by its denominator, the step before it: the first lower value wins.
    assert result.suggest_lr("lightning") == lrs[15]
    assert set(RULES) == {"steepest", "minimum", "slide", "torch_lr_finder", "valley", "lightning"}
    with pytest.raises(ValueError, match=r"need rule to be one of 'steepest', .*got rule='best'"):
        result.suggest_lr("best")


def test_smoothing_does_not_shift_the_curve():
    """The averaged losses of a curve that is symmetric about its middle are symmetric too."""
    losses = [abs(i - 20.0) for i in range(41)]
    smoothed = LRRangeTest([1.0] * 41, losses, "linear", "", smoothing=0.8).smoothed
    np.testing.assert_allclose(smoothed, smoothed[::-1], rtol=1e-12)
    constant = LRRangeTest([1.0] * 5, [3.0] * 5, "linear", "", smoothing=0.8).smoothed
    np.testing.assert_allclose(constant, 3.0, rtol=1e-12)


def test_smoothing_weighs_by_distance():
    """A loss k steps away counts smoothing**k as much, over the sum of the weights."""
    smoothed = LRRangeTest([1.0] * 4, [0.0, 0.0, -1.0, 0.0], "linear", "", smoothing=0.5).smoothed
    assert smoothed == pytest.approx([-0.25 / 1.875, -0.5 / 2.25, -1 / 2.25, -0.5 / 1.875])


@pytest.mark.parametrize("shift", [0.0, -50.0])
@pytest.mark.parametrize("blow_up", [[3.0], [1e3, 1e9], [1e3, 1e30, math.nan], [1e300] * 5, [math.inf]])
def test_a_blow_up_at_the_end_does_not_leak_into_the_losses_before_it(blow_up, shift):
    """However high the loss climbs in the end, the smoothed losses before are those of one that is back at its start.

    They differ from those of the curve without the blow-up by no more than the weight of what is behind it, and that
    falls by the smoothing with each step.
    """
    generator = random.Random(0)
    fall = [shift + 2 - 1.5 * max(0, i - 40) / 40 + generator.gauss(0, 0.1) for i in range(80)]
    highest, smoothing = max(fall[:8]), 0.8

    def smoothed(losses):
        return np.array(LRRangeTest([1.0] * len(losses), losses, "linear", "", smoothing).smoothed[:80])

    with_it, without = (
        smoothed([loss + (shift if i > 79 else 0) for i, loss in enumerate(fall + blow_up)]),
        smoothed(fall),
    )
    finite = [loss for loss in blow_up if math.isfinite(loss)]
    np.testing.assert_allclose(with_it, smoothed(fall + [highest] * len(finite)), rtol=1e-12)
    # All losses behind the blow-up weigh s / (1 - s) together at most, of a whole of at least 1 / (1 - s).
    weight = smoothing ** np.arange(80, 0, -1)
    assert (abs(with_it - without) <= weight * (highest - min(fall))).all()


@pytest.mark.parametrize("fall", [0.0, 1.0])
def test_noise_is_hardly_ever_taken_for_a_fall_or_a_rise(fall):
    """Of 200 noisy curves that are flat, and of 200 that only fall, at most 2 get a suggestion."""
    suggested = 0
    for seed in range(200):
        generator = random.Random(seed)
        try:
            scripted([2 - fall * i / 100 + generator.gauss(0, 0.3) for i in range(100)]).suggest()
        except NoSuggestionError:
            continue
        suggested += 1
    assert suggested <= 2


def test_csv_holds_the_curve(tmp_path):
    """The csv has a row for each step, to a path or an open file; a NaN has no average."""
    result = scripted([*FALLING, math.nan])
    result.to_csv(tmp_path / "curve.csv")
    opened = io.StringIO()
    result.to_csv(opened)
    rows = (tmp_path / "curve.csv").read_text().splitlines()
    assert rows == opened.getvalue().splitlines()
    assert rows[0] == "lr,loss,smoothed"
    assert [float(row.split(",")[0]) for row in rows[1:]] == result.lrs
    assert rows[-1].endswith(",nan,")


def test_validation_is_recorded_in_place_of_the_batch_loss():
    """With a validation function its loss is what is recorded, measured after each update."""
    setting = Setting()
    seen = []

    def validation():
        seen.append(setting.model[0].weight.sum().item())
        return 1.0

    result = run(setting, validation=validation, num_steps=4)
    assert result.losses == [1.0] * 4
    assert len(set(seen)) == 4


def test_accumulation_is_one_batch_of_all():
    """Over accumulated batches, loss and gradients are those of the mean."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    loss = supervised_step(model, torch.nn.functional.cross_entropy, batches, accumulation_steps=2)()
    whole = torch.nn.functional.cross_entropy(model(x), y)
    (expected,) = torch.autograd.grad(whole, [model.weight])
    assert loss == pytest.approx(whole.item())
    torch.testing.assert_close(model.weight.grad, expected)


def test_autocast_runs_the_forward_pass_in_its_dtype():
    """With autocast the model computes in the given dtype, on batches moved to the device."""
    model, dtypes = torch.nn.Linear(4, 3), []
    model.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    batches = [[torch.randn(2, 4), torch.tensor([0, 1])]]
    supervised_step(model, torch.nn.functional.cross_entropy, batches, device="cpu", autocast=torch.bfloat16)()
    assert dtypes == [torch.bfloat16]


def test_a_loader_starts_over_when_it_ends_and_an_empty_one_is_refused():
    """More steps than batches go round the loader; a loader without batches is an error, not a hang."""
    model = torch.nn.Linear(4, 3)
    step = supervised_step(model, torch.nn.functional.cross_entropy, [(torch.ones(2, 4), torch.tensor([0, 1]))])
    assert len({step() for _ in range(3)}) == 1
    with pytest.raises(ValueError, match="need a loader with at least one batch"):
        supervised_step(model, torch.nn.functional.cross_entropy, [])()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_lr": 1.0, "end_lr": 0.1}, "need 0 < start_lr < end_lr < inf, got start_lr=1.0"),
        ({"num_steps": 1}, "need 2 <= num_steps, got num_steps=1"),
        ({"num_steps": 10.0}, "need num_steps to be an int, got num_steps=10.0"),
        ({"mode": "cubic"}, "need mode to be one of 'exponential', 'linear', got mode='cubic'"),
        ({"smoothing": 1.0}, "need 0 <= smoothing < 1, got smoothing=1.0"),
        ({"divergence_factor": 0}, "need 0 < divergence_factor, got divergence_factor=0"),
        ({"keep": "cloud"}, "need keep to be one of 'device', 'cpu', 'disk', got keep='cloud'"),
    ],
)
def test_bad_arguments_name_rule_and_value(options, message):
    """A wrong argument says the rule and the value, before anything has happened."""
    setting = Setting()
    before = setting.snapshot()
    with pytest.raises((ValueError, TypeError), match=message):
        run(setting, **options)
    assert same(before, setting.snapshot())


def test_a_first_group_without_a_rate_is_refused():
    """The other groups' rates relate to the first one's, which therefore cannot be 0."""
    setting = Setting()
    setting.optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match="need a first param group with 0 < lr"):
        run(setting)


def test_a_model_in_eval_mode_is_trained_in_train_mode():
    """The test puts an evaluated model in train mode, and back."""
    setting = Setting()
    setting.model.eval()
    modes = []

    @functools.wraps(setting.step)
    def train_step():
        modes.append(setting.model.training)
        return setting.step()

    run(setting, train_step, num_steps=3)
    assert modes == [True] * 3
    assert not any(module.training for module in setting.model.modules())
