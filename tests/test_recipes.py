"""Real training recipes: the policy as a user writes it gives the recipe's own formula at every step, to 1e-12."""

import math

import pytest
import torch
from recipes import RECIPES, speedrun

from cyclic_optim import Constant, CyclicSGD, Warmup, WarmupStableDecay


@pytest.mark.parametrize("name", RECIPES)
def test_the_policy_is_the_recipes_formula(name):
    """At every step of the run, rate, momentum and weight decay are what the recipe says, to 1e-12."""
    recipe = RECIPES[name]
    for step in range(recipe.steps):
        values = recipe.policy.at(recipe.start + step)
        due = [recipe.factor, recipe.momentum, recipe.weight_decay]
        for value, formula in zip(values, due, strict=True):
            assert (value is None) == (formula is None)
            assert value is None or value == pytest.approx(formula(step), rel=1e-12, abs=1e-12), step


def parameters(count):
    params = [torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(count)]
    for param in params:
        param.grad = torch.zeros_like(param)
    return params


def test_rates_of_their_own_for_groups():
    """Biases at 64 times the rate of the rest, or a classifier at 10 times: both follow the one policy."""
    weight, bias = parameters(2)
    groups = [{"params": [weight]}, {"params": [bias], "lr": 64 * 0.01}]
    optimizer = CyclicSGD(groups, lr=0.01, momentum=0.85, nesterov=True, policy=RECIPES["CIFAR-10 speedrun"].policy)
    for step in range(401):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.01 * speedrun(step), 0.64 * speedrun(step)], rel=1e-12)
        optimizer.step()


def test_a_run_may_start_inside_a_cycle():
    """Fast geometric ensembling starts at the top of the triangle: the group says at which step its clock stands."""
    recipe = RECIPES["fast geometric ensembling"]
    (weight,) = parameters(1)
    optimizer = CyclicSGD([{"params": [weight], "schedule_step": recipe.start}], lr=0.05, policy=recipe.policy)
    for step in range(recipe.steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * recipe.factor(step), rel=1e-12)
        optimizer.step()


def test_a_cooldown_from_a_checkpoint():
    """Train at a constant rate without knowing how long; cool down from any checkpoint, as often as you like."""
    trunk = Warmup(Constant(), 100)
    first = CyclicSGD(parameters(1), lr=0.1, policy=trunk)
    for step in range(500):
        assert first.param_groups[0]["lr"] == pytest.approx(0.1 * min(step / 100, 1), rel=1e-12, abs=1e-15)
        first.step()
    checkpoint = first.state_dict()
    for length in (50, 200):
        branch = CyclicSGD(parameters(1), lr=0.1, policy=trunk)
        branch.load_state_dict(checkpoint)
        branch.reschedule(policy=WarmupStableDecay(length, warmup=0, decay=length, shape="sqrt"), step=0)
        for step in range(length + 1):
            rate = 0.1 * (1 - math.sqrt(step / length))
            assert branch.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12, abs=1e-15)
            branch.step()
