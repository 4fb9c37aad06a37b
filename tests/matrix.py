"""The test suite under every supported torch and Python: one environment per pair, one table.

    python tests/matrix.py            # the pairs of which the record does not have a result of this commit
    python tests/matrix.py --fresh    # all of them anew
    python tests/matrix.py --report   # only the table of what is recorded

A pair is a torch and a Python: for each torch the oldest and the newest Python that it has wheels for, and the pair
that constraints.txt pins. Pythons are looked for where pyenv puts them; ``--python PATH`` adds one. Each pair gets a
fresh virtual environment and a fresh clone of the commit that is checked out, in which the package is built. The
packages of the ``test`` extra are the newest that have wheels for that Python. The suite runs without the tests of the
benchmarks, and with fewer drawn cases (hypothesis profile ``matrix``). An environment takes up to 8 GB and is removed
afterwards.

The record is written after every pair, so that an interrupted run goes on where it was. It names the commit of each
result. ``--out benchmarks/results`` is what is quoted, and the README then says which pairs passed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from commits import git  # noqa: E402
from harness import (  # noqa: E402
    RESULTS,
    add_out_and_report,
    as_json,
    markdown_table,
    out_of,
    processor,
    run_benchmark,
    write_results,
)

WORK = ROOT / "build" / "matrix"
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"


class Pair(NamedTuple):
    torch: str
    python: str  # "3.13t" is the free-threaded one
    constrained: bool = False  # the pair of constraints.txt

    @property
    def name(self) -> str:
        return f"torch {self.torch}, Python {self.python}"


PAIRS = [
    Pair("2.6.0", "3.10"),
    Pair("2.6.0", "3.13"),
    Pair("2.8.0", "3.10"),
    Pair("2.8.0", "3.13"),
    Pair("2.10.0", "3.10"),
    Pair("2.10.0", "3.14"),
    Pair("2.10.0", "3.13t"),
    Pair("2.13.0", "3.10"),
    Pair("2.13.0", "3.11", constrained=True),
    Pair("2.13.0", "3.14"),
    Pair("2.14.1", "3.10"),
    Pair("2.14.1", "3.12"),
    Pair("2.14.1", "3.14"),
    Pair("2.15.0", "3.11"),
    Pair("2.15.0", "3.14"),
]

PYTEST = (
    "-q --show-capture=no -p no:cacheprovider --continue-on-collection-errors --dist loadfile --no-loadscope-reorder"
)
ABOUT_PYTHON = (
    "import platform, sys, sysconfig; free_threaded = 't' if sysconfig.get_config_var('Py_GIL_DISABLED') else ''; "
    "print('%d.%d%s' % (*sys.version_info[:2], free_threaded), platform.python_version())"
)
ABOUT_ENVIRONMENT = """
import importlib.metadata, json, platform, sysconfig, torch
from cyclic_optim import native
print(json.dumps({
    "python": platform.python_version() + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""),
    "torch": torch.__version__,
    **{name: importlib.metadata.version(name) for name in ("numpy", "pytest", "hypothesis")},
    "compiled_part": native.compiled is not None,
}))
"""


class NotRunError(Exception):
    """A pair whose environment cannot be made or whose tests do not come to an end, with the reason in one line."""


def pythons(given: list[Path]) -> dict[str, Path]:
    """By "3.12" the executable; those given win over pyenv's, of which the last patch release does."""
    by_release = sorted(PYENV.glob("3.*/bin/python"), key=lambda path: path.parts[-3].split(".")[-1].zfill(3))
    found = {}
    for path in [*by_release, *given]:
        done = subprocess.run([path, "-c", ABOUT_PYTHON], capture_output=True, text=True, check=True)
        found[done.stdout.split()[0]] = path
    return found


def run(pair: Pair, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the suite says of a pair, in an environment that is removed afterwards."""
    folder = WORK / f"{pair.torch}-{pair.python}"
    try:
        return _test(pair, _environment(pair, python, folder), folder, options)
    finally:
        if not options.keep:
            shutil.rmtree(folder / "env", ignore_errors=True)


def _environment(pair: Pair, python: Path, folder: Path) -> Path:
    """The Python of an environment with torch, the ``test`` extra and the package, built from a fresh clone."""
    own, clone, log = folder / "env" / "bin" / "python", folder / "clone", folder / "install.log"
    for file in (log, folder / "junit.xml"):
        file.unlink(missing_ok=True)
    shutil.rmtree(clone, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _logged(pair, ["git", "clone", "--quiet", "--shared", ROOT, clone], log)
    if not own.exists():
        # This pip installs one there: not every Python has ensurepip.
        _logged(pair, [python, "-m", "venv", "--without-pip", folder / "env"], log)
        _logged(pair, [sys.executable, "-m", "pip", "--python", own, "install", "--quiet", "--upgrade", "pip"], log)
    constraints = ["-c", "constraints.txt"] if pair.constrained else []
    # An older package with a wheel rather than a newer one that has to be compiled.
    options = ["--quiet", "--no-input", "--no-compile", "--prefer-binary", *constraints]
    _logged(pair, [own, "-m", "pip", "install", *options, f"torch=={pair.torch}", "-e", ".[test]"], log, cwd=clone)
    return own


def _logged(pair: Pair, command: list[str | Path], log: Path, cwd: Path = ROOT) -> None:
    with log.open("a") as file:
        done = subprocess.run(command, cwd=cwd, stdout=file, stderr=subprocess.STDOUT, env=_variables(pair))
    if done.returncode:
        lines = [line for line in log.read_text().splitlines() if line.startswith(("ERROR", "error", "fatal", "╰─>"))]
        raise NotRunError(" ".join(lines) or f"{command[0]} ended with {done.returncode}; see {log.name}")


def _variables(pair: Pair) -> dict[str, str]:
    """Nothing of the caller's that would lead imports elsewhere; fewer drawn cases; one thread."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    # Or a package that does not know of free threading, Triton's for Python 3.13, would switch the GIL on.
    free_threaded = {"PYTHON_GIL": "0"} if pair.python.endswith("t") else {}
    return {**kept, **free_threaded, "HYPOTHESIS_PROFILE": "matrix", "OMP_NUM_THREADS": "1"}


def _test(pair: Pair, python: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    clone, xml, started = folder / "clone", folder / "junit.xml", time.monotonic()
    about = subprocess.run(
        [python, "-c", ABOUT_ENVIRONMENT], cwd=clone, capture_output=True, text=True, env=_variables(pair)
    )
    if about.returncode:
        raise NotRunError(f"import fails: {about.stderr.splitlines()[-1]}")
    command = [python, "-m", "pytest", *PYTEST.split(), "-n", options.jobs, f"--junitxml={xml}"]
    command += shlex.split(options.pytest)
    with (folder / "pytest.log").open("w") as file:
        done = subprocess.run(command, cwd=clone, stdout=file, stderr=subprocess.STDOUT, env=_variables(pair))
    result: dict[str, Any] = {**json.loads(about.stdout), "minutes": round((time.monotonic() - started) / 60, 1)}
    if not xml.exists():
        raise NotRunError(f"pytest ended with {done.returncode} before its report")
    return {**result, **counted(xml)}


def counted(xml: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped; of each that failed the first line of the reason."""
    cases = list(ElementTree.parse(xml).getroot().iter("testcase"))
    failed, skipped = defaultdict(list), 0
    for case in cases:
        faults = [*case.iter("failure"), *case.iter("error")]
        skipped += not faults and case.find("skipped") is not None
        if faults:
            name = f"{case.get('classname', '')}::{case.get('name', '').partition('[')[0]}"
            test = name.removeprefix("::").removeprefix("tests.")  # a whole file has no class
            failed[test].append((faults[0].get("message") or "?").splitlines()[0])
    n_failed = sum(map(len, failed.values()))
    counts = {"passed": len(cases) - n_failed - skipped, "failed": n_failed, "skipped": skipped}
    return {**counts, "failures": {test: [len(reasons), reasons[0]] for test, reasons in sorted(failed.items())}}


def table(record: dict[str, Any]) -> str:
    header = ["torch", "Python", "compiled part", "passed", "failed", "skipped", "minutes", "commit"]
    results = {pair: record["results"][pair.name] for pair in PAIRS if pair.name in record["results"]}
    rows = [_row(pair, result) for pair, result in results.items()]
    below = [f"- {pair.name}: {line}" for pair, result in results.items() for line in _failures(result)]
    return "\n".join([HEAD.format(**record), markdown_table(header, rows), "", *below, ""])


def _failures(result: dict[str, Any]) -> Iterator[str]:
    """A line for each test that failed, and one for a pair that was not run, or not all of it."""
    if "trial" in result:
        yield f"only `pytest {result['trial']}`"
    if "reason" in result:
        yield result["reason"]
    for test, (n, reason) in result.get("failures", {}).items():
        cases = f" ({n} cases)" if n > 1 else ""
        yield f"`{test}`{cases}: `{reason.replace('`', chr(39))[:200]}`"


HEAD = """# The tests under every supported torch and Python

- Command: `python tests/matrix.py --out benchmarks/results`
- Date: {date}; {processor}

All tests of the package (not those of the benchmarks), with fewer drawn cases (hypothesis profile `matrix`). The
compiled part needs DLPack's exchange API, which torch has since 2.10; without it Python does the same. The pair in bold
is that of `constraints.txt`; the others have the newest packages with wheels for that Python. A "t" is the
free-threaded Python. Below the table: what failed.
"""


def _row(pair: Pair, result: dict[str, Any]) -> list[str]:
    mark = "**" * pair.constrained
    python = f"{mark}{result.get('python', pair.python)}{mark}"
    compiled = {None: "", True: "yes", False: "no"}[result.get("compiled_part")]
    counts = [f"{result[key]:,}" if key in result else "not run" for key in ("passed", "failed", "skipped")]
    torch = f"{mark}{result.get('torch', pair.torch)}{mark}"
    return [torch, python, compiled, *counts, str(result.get("minutes", "")), result["commit"][:7]]


def tested(record: dict[str, Any]) -> str:
    """The pairs in which every test passed, in words."""
    pythons = defaultdict(list)
    for pair in PAIRS:
        result = record["results"].get(pair.name, {})
        if _complete(result) and not result["failed"]:
            pythons[pair.torch].append(pair.python)
    parts = [f"{torch} ({', '.join(names)})" for torch, names in pythons.items()]
    return f"torch {', '.join(parts)}".replace("(", "(Python ", 1) if parts else "no torch so far"


def readme(text: str, record: dict[str, Any]) -> str:
    """The README's text, with what is between the marks made of the record."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    sentence = f"All tests of the package pass with {tested(record)}: [the record](benchmarks/results/matrix.md)."
    return f"{before}{BEGIN}\n{textwrap.fill(sentence, 120, break_on_hyphens=False)}\n{end}{after}"


BEGIN, END = "<!-- tested -->", "<!-- end of tested -->"


def _complete(result: dict[str, Any]) -> bool:
    return "passed" in result and "trial" not in result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The suite under every torch and Python; see the top of this file.")
    names = [f"{pair.torch}/{pair.python}" for pair in PAIRS]
    parser.add_argument("only", nargs="*", metavar="PAIR", help='as "2.6.0/3.10" (default: all)')
    parser.add_argument("--python", type=Path, action="append", default=[], help="another Python; may be repeated")
    parser.add_argument("--fresh", action="store_true", help="run what is recorded, too")
    parser.add_argument("--keep", action="store_true", help="keep the environments, in build/matrix, and use kept ones")
    parser.add_argument("--jobs", default="auto", metavar="N", help="processes of pytest (default: one per core)")
    parser.add_argument("--pytest", default="", metavar="ARGS", help="further arguments of pytest, in one string")
    add_out_and_report(parser, report="only write the table of what is recorded")
    parser.set_defaults(quick=False)
    options = parser.parse_args()
    if unknown := {*options.only} - {*names}:
        parser.error(f"need pairs of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    options.pairs = [pair for pair, name in zip(PAIRS, names, strict=True) if not options.only or name in options.only]
    options.out = out_of(options)
    return options


def main() -> int:
    options = arguments()
    return run_benchmark(lambda: _run_all(options), needs=())


def _run_all(options: argparse.Namespace) -> None:
    """Run the pairs without a result of this commit, and write the record after each."""
    options.out.mkdir(parents=True, exist_ok=True)
    path, commit, found = options.out / "matrix.json", git("rev-parse", "HEAD"), pythons(options.python)
    record = json.loads(path.read_text()) if path.exists() else {"results": {}}
    if not options.report:
        record |= {"date": date.today().isoformat(), "processor": processor()}
    for pair in [] if options.report else options.pairs:
        known = record["results"].get(pair.name, {})
        if known.get("commit") == commit and _complete(known) and not options.fresh:
            continue
        print(pair.name, flush=True)
        try:
            if pair.python not in found:
                raise NotRunError(f"no Python {pair.python} found; --python PATH names one")
            result = run(pair, found[pair.python], options)
        except NotRunError as error:
            result = {"reason": str(error)}
        trial = {"trial": options.pytest} if options.pytest else {}
        record["results"][pair.name] = {"commit": commit, **trial, **result}
        _write(options.out, record)
    _write(options.out, record)
    print(table(record))


def _write(out: Path, record: dict[str, Any]) -> None:
    write_results(out, {"matrix.json": as_json(record), "matrix.md": table(record).encode()})
    if out.resolve() == RESULTS.resolve():
        write_results(ROOT, {"README.md": readme((ROOT / "README.md").read_text(), record).encode()})


if __name__ == "__main__":
    raise SystemExit(main())
