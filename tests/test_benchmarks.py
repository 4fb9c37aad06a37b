"""The benchmarks in their quickest form: that they write what they say, and nothing of how fast anything is."""

import argparse
import dataclasses
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cyclic_optim

pytestmark = pytest.mark.benchmarks

FOLDER = Path(__file__).parent.parent / "benchmarks"
PNG = b"\x89PNG\r\n\x1a\n"
SGDS = {"SGD, OneCycleLR", "SGD(foreach=True), OneCycleLR", "SGD(fused=True), OneCycleLR"}
PEERS = {
    "CyclicSGD, Triangular",
    "CyclicSGD, OneCycle, without its compiled part",
    *SGDS,
    *(name.replace("OneCycleLR", "CyclicLR") for name in SGDS),
    "the bare fused op over cached lists",
    "floor: small tensors serially, large ones in parallel",
}
PACKAGES = {  # which need not be installed
    "optimi SGD(foreach=False), OneCycleLR",
    "optimi SGD(foreach=True), OneCycleLR",
    "SGDScheduleFree(foreach=False)",
    "SGDScheduleFree(foreach=True)",
}
COMPILED = {
    "compiled SGD, OneCycleLR",
    "compiled SGD, OneCycleLR's values copied",
    "compiled CyclicSGD(capturable=True), OneCycle",
}


needs_git = pytest.mark.skipif(
    shutil.which("git") is None or not (FOLDER.parent / ".git").exists(), reason="compares with a commit: needs git"
)


def results(script, out, *arguments):
    """What ``script`` writes, run as a user runs it, on one thread: its record and its table, which it prints too."""
    done = subprocess.run(
        [sys.executable, FOLDER / f"{script}.py", "--quick", "--out", out, *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    table = (out / f"{script}.md").read_text(encoding="utf-8")
    assert table in done.stdout
    return json.loads((out / f"{script}.json").read_text()), table


@pytest.mark.parametrize(
    "script", [path.stem for path in sorted(FOLDER.glob("*.py")) if "def main()" in path.read_text(encoding="utf-8")]
)
def test_a_benchmark_leaves_the_quoted_results_alone(script, monkeypatch):
    """Without ``--out`` it writes to a folder that git ignores."""
    monkeypatch.syspath_prepend(FOLDER)
    harness, module = importlib.import_module("harness"), importlib.import_module(script)
    parsers = []

    def parse(parser):
        parsers.append(parser)
        raise KeyboardInterrupt

    monkeypatch.setattr("argparse.ArgumentParser.parse_args", parse)
    with pytest.raises(KeyboardInterrupt):
        module.main()
    # These decide when they know their other options.
    is_later = script in ("run_all", "evidence", "speedrun", "suggestions")
    assert parsers[0].get_default("out") == (None if is_later else harness.OUT)
    assert "(default: build/benchmarks" in " ".join(parsers[0].format_help().split())


def test_only_a_report_goes_to_the_quoted_results_by_itself(monkeypatch):
    """It reads its record there. A quick run's report does not, and ``--out`` always counts."""
    monkeypatch.syspath_prepend(FOLDER)
    harness = importlib.import_module("harness")

    def out(*arguments):
        parser = argparse.ArgumentParser()
        parser.add_argument("--quick", action="store_true")
        harness.add_out_and_report(parser, report="")
        return harness.out_of(parser.parse_args(arguments))

    assert out() == out("--quick") == out("--quick", "--report") == harness.OUT
    assert out("--report") == harness.RESULTS
    assert out("--report", "--out", "there") == out("--out", "there") == Path("there")
    assert "build/" in (FOLDER.parent / ".gitignore").read_text().splitlines()
    assert FOLDER.parent / "build" / "benchmarks" == harness.OUT


@pytest.mark.parametrize(("out", "shown"), [("results", "benchmarks/results"), ("/tmp/elsewhere", "/tmp/elsewhere")])
def test_the_command_of_a_record_is_that_of_the_root(out, shown, monkeypatch):
    """Also where the benchmark was started in another folder."""
    monkeypatch.syspath_prepend(FOLDER)
    harness = importlib.import_module("harness")
    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "--models", "4", "--out", out])
    assert harness.command_line("step_cost.py") == f"python benchmarks/step_cost.py --models 4 --out {shown}"


def test_a_record_has_a_line_for_each_list_of_numbers(monkeypatch):
    """It reads back as what it was, strings with brackets included; NaN and infinity as null."""
    monkeypatch.syspath_prepend(FOLDER)
    harness = importlib.import_module("harness")
    record = {"a": [1, 2.5, None], "b": [[1, 2], [], ["[ 3 ]", "[\n 4\n]"]], "c": {"d": [{"e": [True]}]}}
    text = harness.as_json({**record, "f": [math.nan, math.inf]}).decode()
    assert json.loads(text) == {**record, "f": [None, None]}
    assert {' "a": [1, 2.5, null],', "  [1, 2],", ' "f": [null, null]'} <= {*text.splitlines()}


def check_ratios(model, table):
    """A positive ratio with ordered quartiles for each contender, and a row in both tables."""
    for name, ratio in model["ratios"].items():
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert all(seconds > 0 for seconds in model["seconds"][name])
        assert table.count(f"\n| {name} ") == (1 if name == "CyclicSGD, OneCycle" else 2)


def test_cost_of_a_step_is_compared_with_every_peer(tmp_path):
    """Each contender has its ratio and its rows, or the reason why it was left out; the picture is there."""
    record, table = results("step_cost", tmp_path, "--models", "4")
    assert record["command"].startswith("python benchmarks/step_cost.py --quick")
    model = record["models"]["4"]
    assert model["tensors"] == 4
    check_ratios(model, table)
    assert model["ratios"].keys() - PACKAGES == PEERS | {"CyclicSGD, OneCycle"}
    assert model["left_out"].keys() - PACKAGES == COMPILED
    assert model["ratios"].keys() | model["left_out"].keys() >= PACKAGES
    assert all(f"left out {name}: {why}" in table for name, why in model["left_out"].items())
    assert (tmp_path / "step_cost.png").read_bytes().startswith(PNG)


def test_training_step_is_compared_with_torchs_sgd(tmp_path):
    """Each of its implementations has a ratio, and so has a step that updates nothing."""
    record, table = results("training_step", tmp_path, "--models", "mlp")
    model = record["models"]["mlp"]
    check_ratios(model, table)
    assert model["ratios"].keys() == {"CyclicSGD, OneCycle", "no update", *SGDS}


def test_cost_of_every_policy_is_measured(tmp_path):
    """Time per step beside torch's schedulers, time to import, and memory beside SGD's."""
    record, table = results("schedule_cost", tmp_path)
    assert record["at"].keys() == record["policies"].keys() >= {"Constant", "OneCycle", "Plateau", "Triangular"}
    for groups in ("1", "200"):
        times = record["added_by_groups"][groups]
        assert times.keys() - record["at"].keys() == {"torch's OneCycleLR", "torch's CyclicLR"}
        assert all(f"\n| {name} " in table and min(seconds) > 0 for name, seconds in times.items())
        kept = record["bytes_by_groups"][groups]
        assert kept["CyclicSGD, OneCycle"]["state tensors"] == kept["SGD"]["state tensors"] == 1000 * 32 * 4
        assert all(of_each["Python objects"] > 0 for of_each in kept.values())
    # What a user writes imports more than the package's name alone does.
    imports = {"CyclicSGD and OneCycle, after torch", "cyclic_optim alone, after torch", "torch"}
    assert record["imports"].keys() == imports
    assert all(min(seconds) > 0 for seconds in record["imports"].values())


def test_the_soak_follows_cost_and_memory_to_the_end(tmp_path):
    """Each tenth of the run has its cost, beside torch's in the same block, and its memory; nothing is left out."""
    record, table = results("soak", tmp_path)
    ours, *others = record["steps"]
    assert (ours, others) == ("CyclicSGD, Triangular", ["SGD, CyclicLR", "SGD, OneCycleLR"])
    assert set(record["steps"].values()) == {400}
    assert [*record["medians"]["step"]] == [*record["medians"]["update"]] == [*record["steps"]]
    assert [*record["medians"]["update over ours"]] == others
    for medians in record["medians"].values():
        assert all(len(each) == 10 and min(each) > 0 for each in medians.values())
    for name, step in record["medians"]["step"].items():
        assert all(update < whole for update, whole in zip(record["medians"]["update"][name], step, strict=True))
        assert len(record["blocks"][name]["step"]) == 20
    assert {"blocks of Python's", "objects"} <= record["memory"].keys()
    for kind, amounts in record["memory"].items():
        assert len(amounts) == 11
        assert min(amounts) > 0
        assert f"\n| {kind} " in table


def test_crossing_point_is_measured_at_every_size_and_number_of_threads(tmp_path):
    """The table behind the choice of small tensors has a row for each size and a ratio for each number of threads."""
    record, table = results("crossing", tmp_path)
    assert record["parallel_over_serial"].keys() == {"1", "2", "4"}
    for by_size in record["parallel_over_serial"].values():
        assert str(record["configuration"]["small"]) in by_size
        assert all(0 < low <= median <= high for low, median, high in by_size.values())
    assert table.count("\n| ") == 2 + len(by_size)


def test_low_good_and_high_rates_end_as_their_names_say(tmp_path):
    """The range test's rate learns most, a 300th of it little, the high one nothing; each has its row and its curve."""
    record, table = results("low_good_high", tmp_path)
    low, good, high = (record[name] for name in ("low", "good", "high"))
    rates = [{run["lr"] for run in runs} for runs in (low, good, high)]
    found = record["range_test"]["max_lr"]
    assert rates == [{found / record["configuration"]["too_low"]}, {found}, {found * record["multiple"]}]
    for crawls, learns, fails in zip(low, good, high, strict=True):
        assert crawls["seed"] == learns["seed"] == fails["seed"]
        assert learns["end_loss"] < 0.5 * crawls["end_loss"]
        assert crawls["losses"][0] == learns["losses"][0] == fails["losses"][0]
        assert fails["end_loss"] is None or fails["end_loss"] >= math.log(10)
    smaller = {int(multiple): runs for multiple, runs in record["in_between"].items()}
    assert [*smaller, record["multiple"]] == record["configuration"]["multiples"][: len(smaller) + 1]
    assert all(any(run["end_loss"] < math.log(10) for run in runs) for runs in smaller.values())
    assert table.count("\n| ") == 5 + len(smaller)
    assert (tmp_path / "low_good_high.png").read_bytes().startswith(PNG)


@needs_git
def test_the_working_tree_is_compared_with_a_commit(tmp_path, monkeypatch):
    """A row with the ratio of after to before and the noise of the same code, and both commits above it."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    arguments = ("--commit", "HEAD", "--only", "step", "--models", "4", "--rounds", "2")
    record, table = results("before_after", tmp_path, *arguments)
    (model,) = record["step"].values()
    assert model["ratios"].keys() == {"after", "before, again"}
    assert all(0 < ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in model["ratios"].values())
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in model["seconds"].values())
    assert all(f"\n- {name}: {commit}" in table for name, commit in record["commits"].items())
    assert record["commits"]["after"].startswith(record["commits"]["before"].partition(",")[0])
    assert "\n| 4 tensors" in table


@needs_git
def test_a_commits_package_shares_nothing_with_the_working_trees(monkeypatch):
    """Its classes and modules are its own, from the folder that it was put into; its code names no other package."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FOLDER, FOLDER.parent))))
    code = """if True:
        import pathlib, re, sys, cyclic_optim as after, before_after
        with before_after.package_of("HEAD") as before:
            assert before.__name__ == "cyclic_optim_before"
            loaded = {name for name in sys.modules if name.startswith("cyclic_optim.")}
            before.CyclicSGD, before.lr_range_test
            assert loaded == {name for name in sys.modules if name.startswith("cyclic_optim.")}
            assert before.CyclicSGD is not after.CyclicSGD
            assert not isinstance(before_after.made_by(before, after.Plateau()), after.Policy)
            modules = [module for name, module in sys.modules.items() if name.startswith("cyclic_optim_before.")]
            assert all(module.__file__.startswith(before.__path__[0]) for module in modules)
            sources = [path.read_text() for path in pathlib.Path(before.__path__[0]).rglob("*.py")]
            assert not any(re.search(r"\\bcyclic_optim\\b", source) for source in sources)
            print(len(modules))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 5


@needs_git
def test_only_a_commit_can_be_compared_with(tmp_path, monkeypatch):
    """An unknown revision is an error of one line, and nothing is written."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    command = [sys.executable, FOLDER / "before_after.py", "--commit", "no-such-commit", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert (done.returncode, [*tmp_path.iterdir()]) == (2, [])
    assert "need --commit to name a commit, got 'no-such-commit'" in done.stderr


def test_every_policy_can_be_made_anew_by_a_package(monkeypatch):
    """Policies within policies too: the other package's is equal in every field."""
    monkeypatch.syspath_prepend(FOLDER)
    before_after, schedule_cost = map(importlib.import_module, ("before_after", "schedule_cost"))
    for policy in schedule_cost.policies().values():
        again = before_after.made_by(cyclic_optim, policy)
        assert again == policy
        assert again is not policy


def test_update_of_a_capturable_step_is_left_out_for_a_while(monkeypatch):
    """No parameter moves, the rate does; afterwards steps update again."""
    monkeypatch.syspath_prepend(FOLDER)
    before_after = importlib.import_module("before_after")
    monkeypatch.setattr(before_after, "NAME", "cyclic_optim")  # there is no other package here
    policy = cyclic_optim.Triangular(step_size_up=5)

    def stepped():
        param = torch.ones(3, requires_grad=True)
        param.grad = torch.ones(3)
        optimizer = cyclic_optim.CyclicSGD([param], lr=0.1, policy=policy, capturable=True)
        optimizer.step()
        return param.tolist(), int(optimizer.param_groups[0]["schedule_step"])

    updated = stepped()
    with before_after.without_device_update():
        assert stepped() == ([1.0] * 3, 1)
    assert stepped() == updated != ([1.0] * 3, 1)


def test_the_record_of_mutants_names_its_commit_and_is_read_again():
    """Its first lines say the command, the commit and the date; a reason in it outlives a move to another file."""
    pytest.importorskip("resource")
    mutate = importlib.import_module("mutate")
    head = mutate.REPORT.read_text().splitlines()[:6]
    assert head[2].startswith("- Command: `python tests/mutate.py")
    assert re.match(r"- Commit: [0-9a-f]{40} \(", head[3])
    assert re.fullmatch(r"- Date: \d{4}-\d\d-\d\d", head[4])
    reasons = mutate._reasons()
    assert len(reasons) > 2
    for (path, place, diff), reason in reasons.items():
        before, after = ("\n".join(line[1:] for line in diff.splitlines() if line[0] == sign) for sign in "-+")
        mutant = mutate.Mutant(path, place, 1, before, after, source="")
        assert mutate._reason(reasons, mutant) == reason
        moved = mutate._reason(reasons, dataclasses.replace(mutant, path="moved.py"))
        assert moved in [reasons[key] for key in reasons if key[1:] == (place, diff)]
    assert mutate._reason(reasons, mutate.Mutant("new.py", "new", 1, "a", "b", source="")) == mutate._UNEXPLAINED


def test_mutants_are_made_of_the_present_files():
    """Each pattern of source files in ``[mutate]`` has a file, and every module of a step or a checkpoint is one."""
    pytest.importorskip("resource")
    mutate = importlib.import_module("mutate")
    config = mutate._config()
    found = {
        pattern: {path.relative_to(mutate.ROOT).as_posix() for path in mutate.ROOT.glob(pattern)} for pattern in config
    }
    assert all(found.values())
    assert all(len(set(tests)) == len(tests) > 0 for tests in config.values())
    package = {path.relative_to(mutate.ROOT).as_posix() for path in (mutate.ROOT / "cyclic_optim").rglob("*.py")}
    left_out = {
        "__init__",
        "__main__",
        "native",
        "pickling",
        "plotting",
        "schedules",
        "torch_private",
        "device/triton_sgd",
    }
    assert package - set().union(*found.values()) == {f"cyclic_optim/{name}.py" for name in left_out}


def gpu_check(out, *arguments):
    command = [sys.executable, FOLDER / "gpu_check.py", "--out", out, *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_the_gpu_check_goes_through_its_motions_without_a_gpu(tmp_path):
    """A dry run makes every check and every measurement on the CPU, and says that no number of it counts."""
    done = gpu_check(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu_dry_run.json").read_text())
    table = (tmp_path / "gpu_dry_run.md").read_text()
    assert len(record["checks"]) >= 8
    assert table in done.stdout
    assert "No number here says anything about a GPU" in table


def test_a_failed_gpu_check_shows_in_the_exit_status(tmp_path):
    """With an update that is wrong, the checks of parity fail, and so does the command."""
    wrong = (
        "import sys, runpy, torch; from cyclic_optim.device import portable; "
        "original = portable.PortableUpdate.__call__; "
        "portable.PortableUpdate.__call__ = lambda self, grads, *rest: original(self, [-g for g in grads], *rest); "
        f"sys.path.insert(0, {str(FOLDER)!r}); sys.argv = ['gpu_check.py', '--dry-run', '--out', {str(tmp_path)!r}]; "
        f"runpy.run_path({str(FOLDER / 'gpu_check.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", wrong], capture_output=True, encoding="utf-8")
    assert done.returncode == 1, done.stderr
    assert "failed" in (tmp_path / "gpu_dry_run.md").read_text()


def test_goals_of_the_gpu_check_are_read_off_the_measurements(monkeypatch):
    """What a dry run has no numbers for: every goal is there, met where the numbers say so and missed where not."""
    monkeypatch.syspath_prepend(FOLDER)
    check = importlib.import_module("gpu_check")
    own = {check.EAGER, check.CAPTURED, *check.KERNELS}
    others = [check.COPY, check.TORCH_STEP, check.TORCH_BOTH, check.HOST, check.TORCH_OP, check.TORCH_CAPTURED]
    checks = {"no synchronization": check.Checked(True, "20 steps", 0.1)}

    def verdicts(seconds, copying):
        steps = {key: dict.fromkeys(others, (1.0, 1.0)) | dict.fromkeys(own, seconds) for key in check.MODELS}
        for times in steps.values():
            times[check.COPY] = copying
        trainings = {"conv net": dict.fromkeys(check.TRAININGS, (1.0, 1.0)) | {check.CAPTURED: seconds}}
        rows = check.goals(steps, trainings, checks)
        setting = check.Setting("cuda", replays=1, steps=1, rounds=2, started=0.0)
        sizes = dict.fromkeys(steps, 10**9)
        text = check.report(checks, steps, sizes, trainings, ["350 M: no memory"], rows, setting, "here", "command")
        assert all(goal in text for goal, *_ in rows)
        assert "- Left out: 350 M: no memory." in text
        return [verdict for *_, verdict in rows]

    goals = len(check.LARGE) + 4 * len(check.MODELS) + 3
    assert verdicts((0.3, 0.3), copying=(0.28, 0.28)) == ["met"] * goals
    assert verdicts((1.2, 1.2), copying=(1.0, 1.0)) == ["missed"] * (goals - 1) + ["met"]  # no synchronization
    assert {*check.LARGE} <= check.MODELS.keys()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["TORCH_CAPTURED", "TORCH_COPIED"])
def test_torchs_captured_step_follows_onecyclelr_in_the_gpu_check(name, device, monkeypatch):
    """It makes the updates of SGD and OneCycleLR, in each of two groups; the momentum stays, as a graph has it."""
    monkeypatch.syspath_prepend(FOLDER)
    check = importlib.import_module("gpu_check")
    monkeypatch.setattr(check, "TOTAL_STEPS", 30)
    setting = check.Setting(device, replays=1, steps=1, rounds=1, started=0.0)

    def groups():
        return [{"params": check.grown([(3,), (2, 2)], device), "lr": check.PEAK} for _ in range(2)]

    captured = check.sgd_of_tensors(groups(), device, fused=True)
    step = check.captured_sgd(captured, check.stepping(captured), getattr(check, name), setting)
    expected = torch.optim.SGD(groups(), momentum=check.MOMENTUM, fused=True)
    scheduler = check.rates_of_one_cycle(expected)
    for _ in range(3):  # before the capture
        expected.step()
    for _ in range(25):
        step()
        expected.step()
        scheduler.step()
        for ours, theirs in zip(captured.param_groups, expected.param_groups, strict=True):
            assert float(ours["lr"]) == pytest.approx(theirs["lr"], rel=1e-6)
            assert ours["momentum"] == check.MOMENTUM
    torch.testing.assert_close(check.params_of(captured), check.params_of(expected))


def test_copied_values_are_those_of_the_scheduler(monkeypatch):
    """The compiled contender whose values are copied has OneCycleLR's rates and momenta at every step."""
    monkeypatch.syspath_prepend(FOLDER)
    step_cost = importlib.import_module("step_cost")
    monkeypatch.setattr(step_cost, "TOTAL_STEPS", 30)
    groups = step_cost.make_groups([(3,), (2, 2)], group_each=True)
    copied, plain = step_cost.sgd_of_tensors(groups), torch.optim.SGD(groups, momentum=0.9)
    follow, scheduler = step_cost.values_copied(copied, step_cost.one_cycle_lr), step_cost.one_cycle_lr(plain)
    plain.step()
    for _ in range(29):
        for ours, theirs in zip(copied.param_groups, plain.param_groups, strict=True):
            assert ours["lr"].item() == pytest.approx(theirs["lr"], rel=1e-6)
            assert ours["momentum"] == theirs["momentum"]
        follow()
        scheduler.step()


def test_models_of_the_gpu_check_have_the_sizes_they_are_called_by(monkeypatch):
    """From the small network to a medium GPT-2; and as many tensors as groups."""
    monkeypatch.syspath_prepend(FOLDER)
    check = importlib.import_module("gpu_check")
    for title, shapes in ((title, make()) for title, make in check.MODELS.items()):
        count, kind = title.split()[:2]
        expected = float(count.replace(",", ""))
        if kind == "of":
            assert (len(shapes), {*shapes}) == (expected, {(32,)})
        else:
            assert sum(map(math.prod, shapes)) == pytest.approx(1e6 * expected, rel=0.1)
        if title in check.GROUPED:
            assert f"{len(shapes)} groups" in title


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the check would run")
def test_the_gpu_check_says_that_there_is_no_gpu(tmp_path):
    """Without a GPU nothing is measured, nothing is written, and one line says why."""
    done = gpu_check(tmp_path)
    assert (done.returncode, [*tmp_path.iterdir()]) == (2, [])
    assert "need a CUDA GPU, got none" in done.stderr
