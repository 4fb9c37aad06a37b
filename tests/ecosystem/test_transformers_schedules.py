"""transformers' learning-rate schedules: the policy in docs/moving_over.md for each is the function's schedule."""

import pytest
import torch
from frameworks import LR, framework
from readme import MOVES

from cyclic_optim import (
    Constant,
    CosineDecay,
    CosineRestarts,
    InverseTimeDecay,
    LinearRamp,
    PolynomialDecay,
    Warmup,
    WarmupStableDecay,
)
from cyclic_optim.policies import POLICIES

transformers = framework("transformers")
pytestmark = pytest.mark.ecosystem

T = 24
WARMUPS = [0, 1, 6, T]


def sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def assert_same(policy, schedule, *arguments, steps=T, **options):
    """The policy's rate at each step of the run is the one that the real function's scheduler sets."""
    optimizer = sgd()
    assert_follows(policy, optimizer, getattr(transformers, f"get_{schedule}")(optimizer, *arguments, **options), steps)


def assert_follows(policy, optimizer, scheduler, steps=T):
    for step in range(steps):
        if step > 0:
            optimizer.step()
            scheduler.step()  # not after the last step, for which some of the functions divide by 0
        expected = optimizer.param_groups[0]["lr"]
        assert LR * policy.at(step).lr_factor == pytest.approx(expected, rel=1e-12, abs=1e-15), step


@pytest.mark.parametrize("w", WARMUPS)
@pytest.mark.parametrize(
    ("theirs", "ours"), [move for move in MOVES if move[0].startswith("get_")], ids=lambda code: code.split("(")[0]
)
def test_what_to_write_instead(theirs, ours, w):
    """The table's policy for each function gives its rates at every step of a run, without and with all warm-up."""
    rest, optimizer = T - w, sgd()
    given = {"w": w, "T": T, "d": min(8, rest), "c": 3 if rest % 3 == 0 else 1, "t": 40, "m": 0.1, "e": 0.03, "p": 2.0}
    function = getattr(transformers, theirs.split("(")[0])
    scheduler = eval(theirs, {function.__name__: function, "opt": optimizer, **given})
    policy = eval(f"dict({ours})", {**POLICIES, **given, "lr": LR})["policy"]
    assert_follows(policy, optimizer, scheduler)


def test_constant():
    """The plain constant rate."""
    assert_same(Constant(), "constant_schedule")


@pytest.mark.parametrize("w", WARMUPS)
def test_constant_with_warmup(w):
    """A line up from 0, then the constant rate, beyond the end of the run, too."""
    assert_same(Warmup(Constant(), w), "constant_schedule_with_warmup", w, steps=2 * T)


@pytest.mark.parametrize("w", WARMUPS)
def test_linear(w):
    """Up from 0 and down to 0, where it stays."""
    assert_same(Warmup(LinearRamp(T - w, 1.0, 0.0), w), "linear_schedule_with_warmup", w, T, steps=2 * T)


@pytest.mark.parametrize("w", WARMUPS)
def test_cosine(w):
    """Up from 0, then half a cosine down to 0."""
    assert_same(Warmup(CosineDecay(T - w), w), "cosine_schedule_with_warmup", w, T)


@pytest.mark.parametrize("w", WARMUPS)
def test_cosine_with_a_least_rate(w):
    """Up from 0, then half a cosine down to the least rate."""
    policy = Warmup(CosineDecay(T - w, min_factor=0.1), w)
    assert_same(policy, "cosine_with_min_lr_schedule_with_warmup", w, T, min_lr_rate=0.1)


@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("w", WARMUPS)
def test_cosine_with_hard_restarts(w, cycles):
    """Up from 0, then restarts: exactly where the number of cycles divides the steps that are left."""
    policy = Warmup(CosineRestarts((T - w) // cycles or 1), w)
    steps = T if (T - w) % cycles == 0 else w
    assert_same(policy, "cosine_with_hard_restarts_schedule_with_warmup", w, T, cycles, steps=steps)


@pytest.mark.parametrize(("power", "lr_end"), [(1.0, 1e-7), (2.0, 0.03)])
@pytest.mark.parametrize("w", WARMUPS)
def test_polynomial(w, power, lr_end):
    """Up from 0, then a power of the steps that are left, down to ``lr_end``."""
    policy = Warmup(PolynomialDecay(T - w, power=power, min_factor=lr_end / LR), w)
    assert_same(policy, "polynomial_decay_schedule_with_warmup", w, T, lr_end=lr_end, power=power)


@pytest.mark.parametrize("timescale", [None, 40])
@pytest.mark.parametrize("w", WARMUPS)
def test_inverse_square_root(w, timescale):
    """Up from 0, then 1 / sqrt(1 + steps / timescale); the timescale is by default the warm-up, without one 10,000."""
    policy = Warmup(InverseTimeDecay(1 / (timescale or w or 10_000), power=0.5), w)
    assert_same(policy, "inverse_sqrt_schedule", w, timescale=timescale, steps=2 * T)


@pytest.mark.parametrize("least", [0.0, 0.1])
@pytest.mark.parametrize(("decay_type", "shape"), [("linear", "linear"), ("cosine", "cosine"), ("1-sqrt", "sqrt")])
@pytest.mark.parametrize("w", WARMUPS)
def test_warm_up_stable_decay(w, decay_type, shape, least):
    """Up from the least rate, constant, down to the least rate, where it stays."""
    d = min(8, T - w)
    policy = Warmup(WarmupStableDecay(T - w, warmup=0, decay=d, shape=shape, min_factor=least), w, start_factor=least)
    options = {"num_training_steps": T, "decay_type": decay_type, "min_lr_ratio": least}
    assert_same(policy, "wsd_schedule", w, d, **options, steps=2 * T)
