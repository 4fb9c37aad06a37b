"""The benchmark of the suggestions: its truth, its curves and its tables are what they say."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclic_optim import lr_range_test
from cyclic_optim.range_test.rates import RULES

pytestmark = pytest.mark.benchmarks

FOLDER = Path(__file__).parent.parent / "benchmarks"
RECORD, TABLES = FOLDER / "results" / "suggestions.json", FOLDER / "results" / "suggestions.md"


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield [importlib.import_module(f"suggestions{part}") for part in ("", "_report", "_tasks")]


@pytest.fixture(scope="module")
def suggestions(modules):
    return modules[0]


@pytest.fixture(scope="module")
def report(modules):
    return modules[1]


@pytest.fixture(scope="module")
def tasks(modules):
    return modules[2]


@pytest.fixture(autouse=True)
def one_thread():
    """As in the benchmark: the tensors are tiny, and sums must not depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_tables_are_those_of_the_record_and_of_the_present_rules(report):
    """What every rule, as it is now, suggests on the recorded curves is what the committed tables say."""
    assert report.report(json.loads(RECORD.read_text())) == TABLES.read_text()


def test_the_record_has_every_case_and_enough_of_each(suggestions):
    """Three range tests a case, two rates to a decade over five decades, more around the best, each with all seeds."""
    record = json.loads(RECORD.read_text())
    assert [*record["cases"]] == [case.name for case in suggestions.CASES]
    for name, case in record["cases"].items():
        assert [case[key] for key in suggestions.Case._fields] == [*suggestions.case_named(name)]
        assert len(case["curves"]) == 3
        assert case["rates"] == [suggestions.rate(number) for number in case["numbers"]]
        assert case["rates"][-1] / case["rates"][0] == pytest.approx(1e5)
        assert max(np.diff(case["numbers"])) == suggestions.COARSE
        assert {len(ends) for ends in case["ends"]} == {len(case["initial"])} == {3}
        truth = suggestions.Truth.of(case)
        best = case["rates"].index(truth.best)
        assert case["numbers"][max(0, best - 1) : best + 2] == [
            number for number in range(case["numbers"][best] - 1, case["numbers"][best] + 2) if number in range(-30, 7)
        ]


def test_the_page_says_what_the_record_says(report):
    """The shares in docs/find_your_rate.md are those of the record, and ours is ahead of every other rule in both."""
    cases = [report.Case.of(name, case) for name, case in json.loads(RECORD.read_text())["cases"].items()]

    def shares(name, some=cases):
        return [report.share(some, name, is_right) for is_right in (report.Case.is_good, report.Case.is_near)]

    named = {"minimum": "`minimum`, in its own package, with", "steepest": "`steep` with"}
    named["torch_lr_finder"] = "pytorch-lr-finder's with"
    page = (FOLDER.parent / "docs" / "find_your_rate.md").read_text()
    paragraph = " ".join(page.split("## How good is the suggestion?")[1].split("## ")[0].split())
    ours, others = shares(report.OURS), [f"`{rule}`{where}" for rule in RULES for where in ("", ", as in its package")]
    assert all(mine > max(theirs) for mine, theirs in zip(ours, zip(*map(shares, others), strict=True), strict=True))
    good, near = (f"{100 * part:.0f} %" for part in ours)
    assert f"On {len(cases)} small trainings" in paragraph
    assert f"trains well in {good} of the range tests" in paragraph
    assert f"In {near} `max_lr` is within a factor of 2" in paragraph
    held_out = "{:.0%} and {:.0%}".format(*shares(report.OURS, cases[1::2])).replace("%", " %")
    assert f"that its constants were not chosen on it is {held_out}" in paragraph
    for rule, text in named.items():
        percent = "{:.0%} and {:.0%}".format(*shares(f"`{rule}`, as in its package")).replace("%", " %")
        assert f"{text} {percent}" in paragraph
    multiples = [*report.times_best(cases, report.OURS)]
    assert max(multiples) <= report.NEAR
    assert f"in the others it is too low, by up to {1 / min(multiples):.1f} times." in paragraph
    bad = sum(not case.is_good(rates[report.OURS]) for case in cases for rates in case.found)
    assert f"In {bad} of {len(multiples)} tests `max_lr` is too high to train well" in paragraph


def quick(suggestions):
    return suggestions.Scope([suggestions.case_named("wine, perceptron, SGD, 16")], seeds=1, is_quick=True)


def test_an_interrupted_benchmark_is_taken_up_again(suggestions, tmp_path, monkeypatch):
    """With half of the answers lost it measures those, to the same record; with none lost it measures nothing."""
    path, scope = tmp_path / "kept.jsonl", quick(suggestions)
    cases = suggestions.experiment(scope, 1, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])
    assert suggestions.experiment(scope, 1, path) == cases
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)
    monkeypatch.setattr("multiprocessing.get_context", None)
    assert suggestions.experiment(scope, 1, path) == cases


def test_a_written_record_is_read_again(suggestions, report, tmp_path):
    """Every number comes back, a loss that is not finite as None, and the tables made from the file are the same."""
    record = json.loads(RECORD.read_text())
    text = suggestions.write(tmp_path, record)
    assert json.loads((tmp_path / "suggestions.json").read_text()) == record
    assert (tmp_path / "suggestions.md").read_text() == text == report.report(record)


def test_the_same_training_ends_the_same_and_a_hopeless_one_is_stopped(suggestions):
    """A training depends on its seed alone; where the loss is far above the first there is no end to report."""
    training = suggestions.Training("wine, perceptron, SGD, 16", 1, -6)
    assert suggestions.train(training) == suggestions.train(training) < 0.1
    assert suggestions.train(training._replace(seed=2)) != suggestions.train(training)
    assert suggestions.train(training._replace(number=12)) is None


def test_a_range_test_of_the_record_is_the_librarys(suggestions, report):
    """The recorded curve goes on after divergence; cut by the library's own rule it is the default range test's."""
    question = suggestions.Curve("wine, perceptron, SGD, 16", 0)
    case = suggestions.case_named(question.case)
    model = suggestions.make_model(case, 0)
    batches = suggestions.Batches(suggestions.load(case.data), case.batch_size, 0)
    step = suggestions.supervised_step(model, suggestions.criterion, batches)
    optimizer = suggestions.make_optimizer(case, model, lr=1.0)
    expected = lr_range_test(model, optimizer, step, progress=False)
    curve = suggestions.curve(question)
    found = report.default_test([math.nan if loss is None else loss for loss in curve])
    assert len(found.losses) < len(curve)
    assert (found.lrs, found.stopped) == (pytest.approx(expected.lrs), expected.stopped)
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)
    assert found.suggest() == pytest.approx(expected.suggest(), rel=1e-4)


def truth_of(report, initial, ends, rates=(0.01, 0.1, 1.0, 10.0)):
    return report.Truth.of({"initial": initial, "rates": list(rates), "ends": ends})


def test_the_good_rates_end_where_the_loss_between_two_of_the_grid_is_too_high(report):
    """Between a good rate and the next, the loss is taken to be straight over log lr; a diverged end is the initial."""
    truth = truth_of(report, [2.0, 2.0], [[1.0, 1.0], [0.0, 0.0], [0.1, 0.1], [None, 9.0]])
    assert truth.losses == [1.0, 0.0, 0.1, 2.0]
    assert truth.enough == pytest.approx(0.1)
    assert (truth.best, truth.good) == (0.1, (pytest.approx(10**-1.1), pytest.approx(1.0)))


def test_the_good_rates_are_those_around_the_best_one(report):
    """A second stretch of good rates, behind one that trains badly, does not count; the grid's ends do."""
    low, high = truth_of(report, [2.0], [[0.0], [0.01], [2.0], [0.02]]).good
    assert low == 0.01
    assert 0.1 < high < 1.0


def test_packages_averages_weigh_the_past(report):
    """fastai's and Lightning's average is corrected for its start, pytorch-lr-finder's starts at the first loss."""
    losses = np.random.default_rng(0).normal(2.0, 0.1, 30)
    for count in (1, 7, 30):
        weights = 0.98 ** np.arange(count - 1, -1, -1.0)
        corrected = report.averages_in_package(list(losses), 0.98, True, 4)[count - 1]
        assert corrected == pytest.approx(np.average(losses[:count], weights=weights))
    average = losses[0]
    for loss in losses:
        average = 0.05 * loss + 0.95 * average
    assert report.averages_in_package(list(losses), 0.95, False, 5)[-1] == pytest.approx(average)
    assert len(report.averages_in_package([1.0] * 5 + [1e9] * 5, 0.98, True, 4)) == 6


def test_every_rule_is_compared_and_none_stops_the_report(report):
    """Both curves of each rule have a row, also where a range test ended too soon for any of them."""
    names = {report.OURS, report.BASE, *(f"`{rule}`{where}" for rule in RULES for where in ("", ", as in its package"))}
    assert report.suggestions([2.0] * 5 + [None]).keys() == names
    assert {*report.suggestions([2.0, None]).values()} == {None}
    curve = [2.0] * 50 + [2.0 - 0.05 * i for i in range(30)] + [0.5 + 0.3 * i for i in range(20)]
    assert all(rate > 0 for rate in report.suggestions(curve).values())


def test_signals_are_drawn_by_their_seed_and_tell_their_class(tasks):
    """40 points each, as many of each digit, the same from the same seed; the nearest class's mean is often right."""
    signals, labels = tasks.mnist1d(1000, seed=3)
    assert signals.shape == (1000, 1, 40)
    assert torch.equal(labels.bincount(), torch.full((10,), 100))
    assert torch.equal(signals, tasks.mnist1d(1000, seed=3)[0])
    assert not torch.equal(signals, tasks.mnist1d(1000, seed=4)[0])
    spectra = torch.fft.rfft(signals[:, 0]).abs()  # which do not depend on where the signal is
    means = torch.stack([spectra[labels == label][:50].mean(0) for label in range(10)])
    unseen = torch.cat([torch.nonzero(labels == label)[50:, 0] for label in range(10)])
    right = torch.cdist(spectra[unseen], means).argmin(1) == labels[unseen]
    assert right.float().mean() > 0.2


def test_batches_are_full_and_go_round_the_data(tasks):
    """Each round has every example once, but those left over; a batch larger than the data is all of it."""
    data = torch.arange(10), torch.arange(10) * 2
    batches = iter(tasks.Batches(data, 4, seed=0))
    rounds = [torch.cat([next(batches)[0] for _ in range(2)]) for _ in range(3)]
    assert all(len(one) == len(one.unique()) == 8 for one in rounds)
    assert not torch.equal(rounds[0], rounds[1])
    inputs, targets = next(iter(tasks.Batches(data, 512, seed=0)))
    assert torch.equal(inputs.sort().values, data[0])
    assert torch.equal(targets, 2 * inputs)
