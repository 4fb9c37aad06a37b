"""The suite under every torch and Python: what is run again, what is recorded, and that README and setup.cfg agree."""

import configparser
import json
import re
import sys
from pathlib import Path

import matrix
import pytest
from matrix import PAIRS, Pair

pytestmark = pytest.mark.benchmarks

ROOT = Path(__file__).resolve().parent.parent
RECORD = json.loads((ROOT / "benchmarks" / "results" / "matrix.json").read_text())
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")


def release(version):
    """3.10 is newer than 3.9."""
    return tuple(map(int, version.removesuffix("t").split(".")))


def test_each_torch_has_its_oldest_and_its_newest_python():
    """Two Pythons or more for each torch; the oldest torch and Python of all are those that installing requires."""
    pythons = {pair.torch: [] for pair in PAIRS}
    for pair in PAIRS:
        pythons[pair.torch].append(pair.python)
    assert all(len(found) > 1 for found in pythons.values())
    oldest_torch = min(pythons, key=release)
    assert CONFIG["options"]["install_requires"].split() == [f"torch>={oldest_torch.removesuffix('.0')}"]
    assert CONFIG["options"]["python_requires"] == f">={min((pair.python for pair in PAIRS), key=release)}"


def test_the_classifiers_are_the_pythons_that_are_tested():
    """setup.cfg names each Python release in the matrix, and no other."""
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", CONFIG["metadata"]["classifiers"])
    assert named == sorted({pair.python.removesuffix("t") for pair in PAIRS}, key=release)


def test_the_pinned_pair_is_that_of_the_constraints():
    """One pair is installed with constraints.txt, and has its torch."""
    (pinned,) = [pair for pair in PAIRS if pair.constrained]
    assert f"\ntorch=={pinned.torch}\n" in (ROOT / "constraints.txt").read_text()


def test_the_record_has_every_pair():
    """Each pair has a result; a torch of the record is the one that its row names."""
    assert RECORD["results"].keys() == {pair.name for pair in PAIRS}
    for pair in PAIRS:
        result = RECORD["results"][pair.name]
        assert "reason" in result or result["torch"].partition("+")[0] == pair.torch
        assert "reason" in result or result["python"].startswith(f"{pair.python.removesuffix('t')}.")


def test_the_table_is_that_of_the_record():
    """matrix.md is what the command writes of matrix.json."""
    assert (ROOT / "benchmarks" / "results" / "matrix.md").read_text() == matrix.table(RECORD)


def test_the_readme_tells_what_the_record_has():
    """The README names the pairs in which every test passed, as the command writes them."""
    text = (ROOT / "README.md").read_text()
    assert matrix.readme(text, RECORD) == text
    assert matrix.tested(RECORD) in " ".join(text.split())


def test_only_where_nothing_failed_it_counts_as_tested():
    """A pair with a failure, one that could not be installed and one without a result are not named."""
    passed, failed = {"passed": 3, "failed": 0, "skipped": 1}, {"passed": 3, "failed": 1, "skipped": 0}
    results = [passed, failed, passed, {"reason": "no wheel"}, passed]
    record = {"results": {pair.name: result for pair, result in zip(PAIRS, results, strict=False)}}
    assert matrix.tested(record) == "torch 2.6.0 (Python 3.10), 2.8.0 (3.10), 2.10.0 (3.10)"


JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one[x]" /><testcase classname="tests.test_a" name="test_one[y]" />
<testcase classname="tests.test_a" name="test_two[x]"><failure message="Error: 1&#10;2">long</failure></testcase>
<testcase classname="tests.test_a" name="test_two[y]"><error message="failed on setup">long</error></testcase>
<testcase classname="tests.test_b" name="test_three"><skipped message="no GPU">long</skipped></testcase>
<testcase classname="" name="tests.test_c"><error message="collection failure">ImportError</error></testcase>
</testsuite></testsuites>
"""


def test_what_pytest_reports_is_counted(tmp_path):
    """Failures and errors alike are failures, by test, with the first line of the first reason."""
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert matrix.counted(tmp_path / "junit.xml") == {
        "passed": 2,
        "failed": 3,
        "skipped": 1,
        "failures": {
            "test_a::test_two": [2, "Error: 1"],
            "test_c": [1, "collection failure"],
        },
    }


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command with pairs and results that take no time: it returns which pairs were run, and the record."""
    results, ran = {}, []

    def run(pair, python, options):
        ran.append(pair.torch)
        result = results.get(pair.torch, {"passed": 5, "failed": 0, "skipped": 0, "failures": {}})
        if isinstance(result, BaseException):
            raise result
        return result

    def call(*arguments, **changed):
        results.clear()
        results.update(changed)
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["matrix.py", "--out", str(tmp_path), *arguments])
        matrix.main()
        return [*ran], json.loads((tmp_path / "matrix.json").read_text())["results"]

    monkeypatch.setattr(matrix, "PAIRS", [Pair("1", "3.10"), Pair("2", "3.10"), Pair("3", "3.99")])
    monkeypatch.setattr(matrix, "pythons", lambda given: {"3.10": Path("python")})
    monkeypatch.setattr(matrix, "run", run)
    monkeypatch.setattr(matrix, "git", lambda *arguments: call.commit)
    call.commit = "a"
    return call


def test_what_has_a_result_of_this_commit_is_not_run_again(command):
    """A second run runs what failed to install or run; one of another commit, or with ``--fresh``, all."""
    gone = matrix.NotRunError("no wheel for it")
    ran, record = command(**{"2": gone})
    assert ran == ["1", "2"]
    assert record["torch 2, Python 3.10"] == {"commit": "a", "reason": "no wheel for it"}
    assert record["torch 3, Python 3.99"]["reason"] == "no Python 3.99 found; --python PATH names one"
    ran, record = command()
    assert ran == ["2"]
    assert record["torch 2, Python 3.10"]["passed"] == 5
    assert command()[0] == []
    assert command("--fresh")[0] == ["1", "2"]
    command.commit = "b"
    assert command("2/3.10")[0] == ["2"]
    ran, record = command()
    assert ran == ["1"]
    assert {result["commit"] for result in record.values()} == {"b"}


def test_an_interrupted_run_goes_on_where_it_was(command):
    """What was finished before is in the record."""
    ran, record = command(**{"2": KeyboardInterrupt()})
    assert (ran, record.keys()) == (["1", "2"], {"torch 1, Python 3.10"})
    assert command()[0] == ["2"]


def test_a_trial_of_some_tests_is_no_result(command):
    """What ran with further arguments of pytest is marked, is run again without them, and does not count as tested."""
    _, record = command("--pytest=-k amp", "1/3.10")
    assert record["torch 1, Python 3.10"]["trial"] == "-k amp"
    assert matrix.tested({"results": record}) == "no torch so far"
    assert command()[0] == ["1", "2"]


def test_a_pair_that_is_none_is_refused(command, capsys):
    """A misspelt pair is no run of nothing."""
    with pytest.raises(SystemExit):
        command("2.0/3.10")
    assert "need pairs of 1/3.10, 2/3.10, 3/3.99, got 2.0/3.10" in capsys.readouterr().err


def test_a_run_by_hand_leaves_the_quoted_record_alone(monkeypatch):
    """Without ``--out`` it writes to a folder that git ignores."""
    monkeypatch.setattr(sys, "argv", ["matrix.py"])
    assert matrix.arguments().out == ROOT / "build" / "benchmarks"
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--report"])
    assert matrix.arguments().out == ROOT / "benchmarks" / "results"
