"""The experiment on cycling: its trainings are what they are taken for, its report says what the record says."""

import importlib
import json
import math
import sys
from contextlib import nullcontext

import pytest
import torch
from readme import README, ROOT

FOLDER = ROOT / "benchmarks"
RECORD = FOLDER / "results" / "convergence.json"

# The benchmarks import one another as scripts do.
sys.path.insert(0, str(FOLDER))
convergence = importlib.import_module("convergence")
report = importlib.import_module("convergence_report")
sys.path.remove(str(FOLDER))

ENDLESS = [name for name, arm in convergence.ARMS.items() if not arm.has_end]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def training(arm, epochs=2, task="wine", **options):
    return convergence.Training(task, arm, 0.1, epochs, seed=3, div_factor=10.0, **options)


# -- the trainings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ENDLESS)
def test_an_arm_without_an_end_has_its_shorter_trainings_within_a_longer_one(arm):
    """What it is after each of 2 epochs, it is after the first 2 of 4: one training stands for every budget."""
    short, long = (convergence.train(training(arm, epochs, "digits")) for epochs in (2, 4))
    assert long.test[:2] == short.test


@pytest.mark.parametrize("arm", convergence.ARMS)
def test_a_training_is_the_same_when_made_anew(arm):
    """Weights, order and split come from the seed, and from nothing that other trainings leave behind."""
    once = convergence.train(training(arm))
    torch.rand(7)
    convergence.train(training(arm, order=convergence.FIXED))
    assert convergence.train(training(arm)) == once


@pytest.mark.parametrize(("arm", "rounding"), [("SGD, constant", 0), ("OneCycle", 0), ("SGDScheduleFree", 1e-5)])
def test_evaluating_does_not_disturb_a_training(arm, rounding, monkeypatch):
    """The weights in the end are the same with it and without; to rounding where it swaps the weights and back."""
    models = []
    made = convergence.made
    monkeypatch.setattr(convergence, "made", lambda *given: models.append(made(*given)) or models[-1])
    convergence.train(training(arm))
    monkeypatch.setattr(convergence, "evaluated", lambda *given: nullcontext())
    convergence.train(training(arm))
    evaluated, left_alone = models
    torch.testing.assert_close(evaluated.state_dict(), left_alone.state_dict(), rtol=rounding, atol=rounding)


def test_a_diverged_training_has_an_accuracy_for_every_epoch(monkeypatch):
    """It ends where the loss is no number any more; what it was then is what it stays."""
    lost = training("SGD, constant", epochs=5)._replace(lr=1e38)
    epochs = []
    train_epoch = convergence.train_epoch
    monkeypatch.setattr(convergence, "train_epoch", lambda *given: epochs.append(1) or train_epoch(*given))
    validation, test = convergence.train(lost)
    assert len(epochs) == 1
    assert test == [test[0]] * 5
    assert math.isfinite(validation)


def test_what_was_kept_is_taken_up_after_a_line_that_was_not_finished(tmp_path, monkeypatch):
    """A process killed as it wrote loses that one result: it is asked for again, the others are not."""
    monkeypatch.syspath_prepend(FOLDER)  # for the other process
    kept = convergence.Kept(tmp_path)
    whole = [json.dumps([json.dumps(question), question * 10]) for question in (1, 2)]
    kept.path.write_text("\n".join([*whole, whole[0][:5]]))
    kept = convergence.Kept(tmp_path)
    assert (kept[1], kept[2], len(kept.known)) == (10, 20, 2)
    assert kept.path.read_text() == "\n".join(whole) + "\n"
    kept.ask(abs, [1, 2, -3], "again", jobs=1)
    assert (kept[1], kept[2], kept[-3]) == (10, 20, 3)
    assert convergence.Kept(tmp_path).known == kept.known


# -- the report -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence():
    return report.Evidence(json.loads(RECORD.read_text()))


def test_the_readme_says_what_the_record_says(evidence):
    """Its section on the evidence is the one that the committed record gives, to the letter."""
    assert report.with_section(README, report.section(evidence)) == README


def tables(text):
    """The first cells of the rows of each table."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[row.split("|")[1].strip() for row in block[2:]] for block in blocks]


def test_every_arm_is_in_every_table(evidence):
    """All but the one that others are compared with, and the untuned one where there is no factor to its rate."""
    by_arm = [rows for rows in tables(report.report(evidence)) if "step decay" in rows]
    assert len(by_arm) == 1 + 2 + 7 * len(evidence.tasks) + len(evidence.tasks)
    for rows in by_arm:
        missing = convergence.ARMS.keys() - rows
        assert len(rows) + len(missing) == len(convergence.ARMS)
        assert missing <= {convergence.UNTUNED} or missing in ({convergence.CONSTANT}, {report.COSINE})
    assert tables(report.section(evidence)) == [[*convergence.ARMS]]


@pytest.mark.parametrize(
    ("hard", "small", "standing"),
    [
        ([1, 1, 1, 1], [1, 0], report.HOLDS),
        ([1, 1, 1, 1], [0, 0], report.IN_PART),
        ([1, 1, 1, 1], [1, 1, 1, 1, -1], report.IN_PART),
        ([1, 0, 0, -1], [0, 0], report.NOT_SHOWN),
        ([0, 0, 0, 0], [0, 0], report.NOT_SHOWN),
        ([1], [1, -1, -1], report.NOT_SHOWN),
        ([-1, -1, 0, 1], [-1, 0], report.OPPOSITE),
    ],
)
def test_a_claim_stands_where_its_comparisons_put_it(hard, small, standing):
    """What loses, or cannot be told apart, comes out as clearly as what wins."""
    claim = report.Claim("beating", "it", {report.HARD: hard, "digits": small})
    assert claim.standing == standing
    assert (f"{hard.count(-1)} against" in str(claim)) == (-1 in hard)
