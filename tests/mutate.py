"""Mutation testing: break the code in thousands of small ways, and see that the tests notice.

    python tests/mutate.py            # all files of setup.cfg's [mutate]; what is known already is not run again
    python tests/mutate.py --fresh    # everything anew

The mutants are mutmut's. Its own runner gets at three quarters of them: it swaps functions in a process that has
imported the package, and leaves alone what decorators and class bodies hold (properties, the rules and defaults of
fields). Here each mutant is a whole module, imported by a process that was forked off with torch in it, which runs
the tests that execute the mutated statement, the quickest first, until one fails.

The record goes to benchmarks/results/mutants.md, which names the commit that it is of. It describes that commit, not
the working tree: run this before a release; between releases the code may change without a new record. A reason that
a person wrote there below a surviving mutant is read again for the next record, and stays as long as the mutant does.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fnmatch
import gc
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import random
import re
import resource
import shlex
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass, replace
from datetime import date
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
REPORT = ROOT / "benchmarks" / "results" / "mutants.md"
#: Seconds of tests that a mutant is run against, of those that execute it. Whatever the rest would have killed counts
#: as a survivor.
BUDGET = 60.0
#: So many tests are run before the others are looked at.
FIRST = 10
KILLED, TIMEOUT, SURVIVED = "killed", "out of time", "survived"


@dataclass(frozen=True)
class Mutant:
    """A module with one change in it."""

    path: str
    place: str  # the function or class
    line: int
    before: str  # the changed lines alone
    after: str
    source: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.path}\0{self.source}".encode()).hexdigest()[:16]

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


# --- making mutants


def mutants_of(path: str) -> list[Mutant]:
    """Every mutant that mutmut's operators make of a module."""
    import libcst as cst
    from mutmut.mutation import file_mutation

    class Visitor(file_mutation.MutationVisitor):
        def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
            if isinstance(node, cst.FunctionDef) and node.decorators:
                return False  # here a decorator is as good as any code
            if isinstance(node, cst.If) and isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING":
                return True
            return super()._skip_node_and_children(node)

    theirs, file_mutation.MutationVisitor = file_mutation.MutationVisitor, Visitor
    source = (ROOT / path).read_text()
    try:
        module, mutations, _, _ = file_mutation.create_mutations(path, source)
    finally:
        file_mutation.MutationVisitor = theirs
    head = "".join(module.code_for_node(line) for line in module.header)
    parts = [module.code_for_node(statement) for statement in module.body]
    assert head + "".join(parts) == source, path
    dumps = [ast.dump(ast.parse(part)) for part in parts]
    statement_of = {id(node): i for i, statement in enumerate(module.body) for node in file_mutation._walk(statement)}
    lines, tree, found = source.splitlines(), ast.parse(source), {}
    for mutation in mutations:
        i = statement_of[id(mutation.original_node)]
        changed = file_mutation.deep_replace(module.body[i], mutation.original_node, mutation.mutated_node)
        part = module.code_for_node(changed)
        with contextlib.suppress(SyntaxError):
            if ast.dump(ast.parse(part)) == dumps[i]:
                continue
            mutated = head + "".join([*parts[:i], part, *parts[i + 1 :]])
            first, before, after = _difference(lines, mutated.splitlines())
            place = _place(tree, first)
            found[mutated] = Mutant(path, place, first, "\n".join(before), "\n".join(after), mutated)
    return list(found.values())


def _difference(before: list[str], after: list[str]) -> tuple[int, list[str], list[str]]:
    """The first line that differs, counted from 1, and the lines that do."""
    first = next(i for i, (a, b) in enumerate(zip([*before, None], [*after, None], strict=False)) if a != b)
    last = 0
    while last < min(len(before), len(after)) - first and before[-1 - last] == after[-1 - last]:
        last += 1
    return first + 1, before[first : len(before) - last], after[first : len(after) - last]


def _place(tree: ast.Module, line: int) -> str:
    names: list[str] = []
    nodes: list[ast.stmt] = tree.body
    while True:
        inside = [node for node in nodes if node.lineno <= line <= (node.end_lineno or 0)]
        if not inside or not isinstance(inside[0], (ast.FunctionDef, ast.ClassDef)):
            return ".".join(names) or "module"
        names.append(inside[0].name)
        nodes = inside[0].body


# --- running tests in a fork


class _MutatedLoader(SourceFileLoader):
    def __init__(self, mutant: Mutant) -> None:
        super().__init__(mutant.module, str(ROOT / mutant.path))
        self._mutant = mutant

    def get_code(self, fullname: str) -> Any:
        return compile(self._mutant.source, self.path, "exec", dont_inherit=True)


class _MutatedFinder:
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._mutant.module:
            return None
        folder = [str((ROOT / self._mutant.path).parent)] if self._mutant.path.endswith("__init__.py") else None
        loader = _MutatedLoader(self._mutant)
        return spec_from_file_location(name, loader.path, loader=loader, submodule_search_locations=folder)


class _Selection:
    """Pytest plugin: only these tests, in this order; remembers the first that fails."""

    def __init__(self, tests: list[str]) -> None:
        self._rank = {test: i for i, test in enumerate(tests)}
        self._functions = {test.partition("[")[0] for test in tests}
        self.failed = ""

    def pytest_pycollect_makeitem(self, collector: Any, name: str, obj: Any) -> list[Any] | None:
        """No cases are made of functions that are not asked for: most of a short run would be spent on them."""
        wanted = not inspect.isfunction(obj) or f"{collector.nodeid}::{name}" in self._functions
        return None if wanted else []

    @pytest.hookimpl(trylast=True)  # pytest itself puts together what shares a fixture
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self._rank), key=lambda i: self._rank[i.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


class _Durations:
    """Pytest plugin: how long each test takes, and, by coverage's contexts, which lines it executes."""

    def __init__(self, coverage: Any) -> None:
        self._coverage, self.durations = coverage, defaultdict(float)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.durations[report.nodeid] += report.duration


def _pytest(files: Iterable[str], plugin: Any) -> int:
    # Imported before the fork, for speed.
    warning = "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning"
    # Pytest's own import hook would take a module named *_test.py for a test, and find it before the mutant.
    options = ["-x", "-q", "--no-header", "--tb=short", "--assert=plain", "-W", warning]
    options += ["-p", "no:cacheprovider", "-p", "no:faulthandler"]
    return int(pytest.main([*options, *files], plugins=[plugin]))


def _quietly(log: Path) -> None:
    os.setsid()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1)
    os.dup2(fd, 2)


def measure(path_of_result: Path, file: str) -> None:
    """In a fork: durations of the tests in ``file``, and the tests that execute each line of the package."""
    import coverage

    _quietly(path_of_result.with_suffix(".log"))
    cover = coverage.Coverage(data_file=None, source=[str(ROOT / "cyclic_optim")], config_file=False)
    plugin = _Durations(cover)
    cover.start()
    code = _pytest([file], plugin)
    cover.stop()
    if code == 0:
        data = cover.get_data()
        lines = {
            str(Path(name).relative_to(ROOT)): {
                str(line): sorted(set(tests)) for line, tests in data.contexts_by_lineno(name).items()
            }
            for name in data.measured_files()
        }
        path_of_result.write_text(json.dumps({"durations": plugin.durations, "lines": lines}))
    os._exit(code)


def try_out(mutant: Mutant, tests: list[str], seconds: float, number: str) -> None:
    """In a fork: run the tests on the mutant; exits with pytest's code, the failed test's name in a file."""
    _quietly(WORK / f"log-{number}")
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.meta_path.insert(0, _MutatedFinder(mutant))
    code = 0
    # Most mutants fall to the first few: the others' files are then not even read.
    for some in filter(None, (tests[:FIRST], tests[FIRST:])):
        plugin = _Selection(some)
        code = _pytest(dict.fromkeys(test.partition("::")[0] for test in some), plugin)
        if code:
            (WORK / f"failed-{number}").write_text(plugin.failed)
            break
    os._exit(code)


def _warm_up() -> None:
    """Import what every test needs; nothing of this package."""
    os.environ.update(HYPOTHESIS_PROFILE="mutants", OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import hypothesis.strategies  # noqa: F401
    import numpy  # noqa: F401
    import torch
    import torch._dynamo
    import torch_database  # noqa: F401

    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "cyclic_optim" for name in sys.modules)
    gc.collect()
    gc.freeze()


# --- choosing tests


def _config() -> dict[str, list[str]]:
    """The test files by pattern of source files."""
    parser = ConfigParser(delimiters=("=",))
    parser.read(ROOT / "setup.cfg")
    return {pattern: files.split() for pattern, files in parser["mutate"].items()}


class Selector:
    """Which tests to run on a mutant."""

    def __init__(self, path: str, files: list[str], measured: dict[str, Any]) -> None:
        self._files = set(files)
        self._durations: dict[str, float] = measured["durations"]
        self._lines: dict[int, set[str]] = measured["lines"].get(path, {})
        self._tree = ast.parse((ROOT / path).read_text())

    def tests(self, mutant: Mutant) -> tuple[list[str], float]:
        """As many as the budget holds, and their time together."""
        found = self._executing(*self._statement(mutant.line))
        if "" in found or not found:  # executed at import: anybody may notice
            found = set(self._durations)
        total, within = 0.0, []
        for test in self._fairly(found):
            if total + self._durations[test] <= BUDGET:
                total += self._durations[test]
                within.append(test)
        return within, total

    def _fairly(self, tests: set[str]) -> list[str]:
        """As much time for every test function: ordered by what its cases took so far, the quickest first.

        A slow function waits, and so do the last of hundreds of cases of a quick one.
        """
        taken: dict[str, float] = defaultdict(float)
        ordered = []
        for test in sorted((t for t in tests if t.partition("::")[0] in self._files), key=self._durations.__getitem__):
            function = test.partition("[")[0]
            taken[function] += self._durations[test]
            ordered.append((taken[function], test))
        return [test for _, test in sorted(ordered)]

    def _executing(self, first: int, last: int) -> set[str]:
        return set().union(*(tests for line, tests in self._lines.items() if first <= line <= last))

    def _statement(self, line: int) -> tuple[int, int]:
        """The lines of the innermost statement; of one with a body, those of its head."""
        nodes: list[ast.AST] = [self._tree]
        found = (line, line)
        while nodes:
            node = nodes.pop()
            if isinstance(node, (ast.stmt, ast.ExceptHandler)):
                start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
                if not start <= line <= (node.end_lineno or 0):
                    continue
                body = getattr(node, "body", None)
                found = (start, body[0].lineno - 1 if body else node.end_lineno or 0)
            nodes += ast.iter_child_nodes(node)
        return found


# --- the run


def _digest(paths: Iterable[Path]) -> str:
    together = hashlib.sha256()
    for path in sorted(paths):
        together.update(path.read_bytes())
    return together.hexdigest()[:16]


def _measured(files: Iterable[str]) -> dict[str, Any]:
    """What :func:`measure` finds out, of each file once as long as it and the package stay the same."""
    package = list((ROOT / "cyclic_optim").rglob("*.py"))
    durations: dict[str, float] = {}
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in files:
        known = WORK / f"lines-{Path(file).stem}-{_digest([Path(file), *package])}.json"
        if not known.exists():
            print(f"running {file} once, unmutated", flush=True)
            pid = os.fork()
            if pid == 0:
                measure(known, file)
            _, status = os.waitpid(pid, 0)
            if status != 0:
                raise SystemExit(f"the tests fail without a mutant: see {known.with_suffix('.log')}")
        measured = json.loads(known.read_text())
        durations.update(measured["durations"])
        for path, executing in measured["lines"].items():
            for line, tests in executing.items():
                lines[path][int(line)].update(tests)
    return {"durations": durations, "lines": lines}


class Results:
    """What is known of each mutant, on disk."""

    def __init__(self) -> None:
        self._path = WORK / "results.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._known = {row["key"]: row for row in map(json.loads, lines)}

    def get(self, mutant: Mutant, tests: str) -> dict[str, Any] | None:
        row = self._known.get(mutant.key)
        # A test that is new may kill what lived so far.
        return row if row is None or row["status"] != SURVIVED or row["tests"] == tests else None

    def last(self, mutant: Mutant) -> dict[str, Any] | None:
        return self._known.get(mutant.key)

    def add(self, mutant: Mutant, **row: Any) -> None:
        self._known[mutant.key] = {"key": mutant.key, **row}
        with self._path.open("a") as file:
            file.write(json.dumps(self._known[mutant.key]) + "\n")


def _ended(pid: int, deadline: float) -> int | None:
    """None while the process runs; then its wait status. After the deadline it is made to end."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it started
        return status
    if time.monotonic() > deadline:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return None


def run(mutants: list[Mutant], selector: Selector, results: Results, tests_digest: str, jobs: int) -> None:
    waiting: Iterator[Mutant] = (m for m in mutants if results.get(m, tests_digest) is None)
    running: dict[int, tuple[str, Mutant, float, float, int]] = {}
    free, finished = [f"{os.getpid()}-{i}" for i in range(jobs)], False
    while running or not finished:
        while free and not finished:
            mutant = next(waiting, None)
            if mutant is None:
                finished = True
                break
            tests, duration = selector.tests(mutant)
            if not tests:
                results.add(mutant, status=SURVIVED, by="no test executes it", seconds=0, tests=tests_digest)
                continue
            number, seconds = free.pop(), 10 + duration
            (WORK / f"failed-{number}").unlink(missing_ok=True)
            pid = os.fork()
            if pid == 0:
                try:
                    try_out(mutant, tests, seconds, number)
                finally:
                    os._exit(99)
            now = time.monotonic()
            running[pid] = number, mutant, now, now + 20 * seconds, len(tests)
        for pid, (number, mutant, start, deadline, count) in list(running.items()):
            status = _ended(pid, deadline)
            if status is None:
                continue
            del running[pid]
            free.append(number)
            failed = WORK / f"failed-{number}"
            by = failed.read_text() if failed.exists() else ""
            number_of_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            late = time.monotonic() > deadline
            if number_of_signal == signal.SIGXCPU or (number_of_signal == signal.SIGKILL and late):
                verdict, by = TIMEOUT, ""
            elif number_of_signal == signal.SIGKILL:
                raise SystemExit("somebody else ended the process, which says nothing of the mutant")
            elif number_of_signal:
                verdict, by = KILLED, f"signal {number_of_signal}"
            elif os.WEXITSTATUS(status) == 99:
                raise SystemExit(f"the runner itself failed: see {WORK / f'log-{number}'}")
            else:
                verdict = SURVIVED if os.WEXITSTATUS(status) == 0 else KILLED
                by = f"{count} tests pass" if verdict == SURVIVED else by or "import"
            seconds = time.monotonic() - start
            results.add(mutant, status=verdict, by=by, seconds=round(seconds, 2), tests=tests_digest)
            print(f"{verdict:11} {seconds:6.1f} s  {mutant.path}:{mutant.line}  {by}", flush=True)
            if verdict == SURVIVED:
                print(_diff(mutant), flush=True)
        time.sleep(0.01)


def _check_the_tests(path: str, selector: Selector) -> None:
    """The file as it is must pass, and one that cannot even be imported must not."""
    intact = Mutant(path, "module", 1, "", "", (ROOT / path).read_text())
    if _exit_code(intact, selector) != 0:
        raise SystemExit(f"the tests of {path} do not pass: see {WORK / 'log-check'}")
    if _exit_code(replace(intact, source='raise RuntimeError("broken on purpose")'), selector) in (0, 99):
        raise SystemExit(f"the tests of {path} pass without it")


def _exit_code(mutant: Mutant, selector: Selector) -> int:
    tests, duration = selector.tests(mutant)
    pid = os.fork()
    if pid == 0:
        try:
            try_out(mutant, tests, 60 + duration, "check")
        finally:
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


# --- the report


def _diff(mutant: Mutant) -> str:
    lines = [f"-{line}" for line in mutant.before.splitlines()] + [f"+{line}" for line in mutant.after.splitlines()]
    return "\n".join(lines)


_ENTRY = re.compile(r"^`([^`\n]+)`\n\n```diff\n(.*?)\n```\n\n(.*?)(?=\n\n`[^`\n]+`\n\n```diff|\n\n#|\Z)", re.S | re.M)
_UNEXPLAINED = "**Not explained yet.**"


def _reasons() -> dict[tuple[str, str, str], str]:
    """What people wrote below the survivors, by file, place and change; without a file, for code that has moved."""
    if not REPORT.exists():
        return {}
    reasons: dict[tuple[str, str, str], str] = {}
    for section in re.split(r"^### ", REPORT.read_text(), flags=re.M)[1:]:
        path = section.partition("\n")[0].strip("` ")
        for place, diff, reason in _ENTRY.findall(section):
            reasons[path, place, diff] = reasons["", place, diff] = reason.strip()
    return reasons


def _reason(reasons: dict[tuple[str, str, str], str], mutant: Mutant) -> str:
    change = mutant.place, _diff(mutant)
    return reasons.get((mutant.path, *change)) or reasons.get(("", *change), _UNEXPLAINED)


def report(by_file: dict[str, list[Mutant]], results: Results, commit: str) -> None:
    """Write the record: the commit that it is of, counts, and the survivors with their reasons."""
    reasons, rows, sections, total = _reasons(), [], [], Counter()
    for path, mutants in by_file.items():
        known = [(mutant, row) for mutant in mutants if (row := results.last(mutant)) is not None]
        count = Counter(row["status"] for _, row in known)
        count["mutants"], count["tried"] = len(mutants), len(known)
        entries: dict[tuple[str, str], str] = {}
        for mutant, row in known:
            if row["status"] == SURVIVED:
                reason = _reason(reasons, mutant)
                entries[mutant.place, _diff(mutant)] = reason
                count["explained"] += reason != _UNEXPLAINED
        rows.append((f"`{path}`", count))
        total.update(count)
        if entries:
            listed = [f"`{place}`\n\n```diff\n{diff}\n```\n\n{why}" for (place, diff), why in entries.items()]
            sections.append("\n\n".join([f"### `{path}`", *listed]))
    rows.append(("**together**", total))
    table = [
        "| file | mutants | tried | a test failed | ran out of time | survived | explained below | killed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, count in rows:
        share = (count[KILLED] + count[TIMEOUT]) / max(1, count["tried"])
        numbers = [count[key] for key in ("mutants", "tried", KILLED, TIMEOUT, SURVIVED, "explained")]
        table.append(f"| {name} | {' | '.join(map(str, numbers))} | {share:.1%} |")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("mutmut", "torch", "pytest", "hypothesis")
    )
    REPORT.write_text(
        _TEXT.format(
            command=shlex.join(["python", "tests/mutate.py", *sys.argv[1:]]),
            commit=commit,
            date=date.today().isoformat(),
            table="\n".join(table),
            versions=f"Python {platform.python_version()}, {versions}",
            survivors="\n\n".join(sections),
            budget=f"{BUDGET:g}",
        )
    )
    print("\n".join(table))


_TEXT = """\
# Mutants

- Command: `{command}`
- Commit: {commit}
- Date: {date}

This record describes that commit, not the working tree. A new one is made before a release.

Do the tests notice when the code is wrong? Each mutant is the package with one small change in it: an operator, a
number, a string, an argument, a condition. It is killed when a test fails, or when the tests do not come to an end.

```
pip install -c constraints.txt -e '.[test,mutation]'
python tests/mutate.py --fresh
```

`tests/mutate.py` writes this record (a reason below a survivor is a person's, and stays as long as the mutant does).
The mutants are [mutmut](https://mutmut.readthedocs.io)'s, also those in properties and class bodies, which its own
runner leaves alone. Each is run against the tests that execute the changed statement, out of the test files that
`setup.cfg` names for its file: the quickest first, and as many as take {budget} s together (measured under coverage;
that is all of them for all files but the optimizer and its schedule), with 10 examples for each property instead of
50. They are tried in random order: where fewer were tried than there are, those are a random sample.

Recorded with {versions}.

{table}

The share killed counts every survivor against the tests, also one that no test could tell from the original.

## Survivors

{survivors}
"""


def _commit() -> str:
    sys.path.append(str(ROOT / "benchmarks"))
    from commits import working_tree

    return working_tree("cyclic_optim", "tests", "setup.cfg")


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing; see the top of this file.")
    parser.add_argument("files", nargs="*", help="source files (default: all that setup.cfg's [mutate] names)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--sample", type=int, help="try at most so many mutants of each file")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--report", action="store_true", help="only write the report of what is known")
    options = parser.parse_args()
    os.chdir(ROOT)
    commit = _commit()  # of the code that is run; and without git it ends here, not after hours
    WORK.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        (WORK / "results.jsonl").unlink(missing_ok=True)
    results, config = Results(), _config()
    sources = {str(path.relative_to(ROOT)): pattern for pattern in config for path in sorted(ROOT.glob(pattern))}
    chosen = [path for path in sources if not options.files or any(fnmatch.fnmatch(path, p) for p in options.files)]
    by_file: dict[str, list[Mutant]] = {}
    if not options.report:
        _warm_up()
        shared = [ROOT / "tests" / name for name in ("conftest.py", "strategies.py")]
        for path in chosen:
            files, mutants = config[sources[path]], mutants_of(path)
            by_file[path] = mutants
            # In random order, so that a run that is cut short was a fair sample.
            mutants = random.Random(0).sample(mutants, len(mutants))[: options.sample]
            selector = Selector(path, files, _measured(files))
            _check_the_tests(path, selector)
            run(mutants, selector, results, _digest([*map(Path, files), *shared]), options.jobs)
    by_file = {path: by_file.get(path) or mutants_of(path) for path in sources}
    report(by_file, results, commit)


if __name__ == "__main__":
    main()
