"""What the benchmarks share: measuring in turns, progress, tables, where they ran, files never half-written."""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import re
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

import cyclic_optim

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"  # what the README and docs quote: only written where --out says so
OUT = ROOT / "build" / "benchmarks"
SAMPLE_SECONDS = 3e-3  # what is faster is repeated until a sample lasts this long

Item = TypeVar("Item")
Call = Callable[[], object]
Times = dict[str, list[float]]  # by contender: the seconds of one call, round by round


# -- running a benchmark ----------------------------------------------------------------------------


def timing_options(description: str, quick: str) -> argparse.ArgumentParser:
    """The options that all timing benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads (default: as many as torch takes)")
    add_out(parser)
    return parser


def add_out(parser: argparse.ArgumentParser, note: str = "") -> None:
    """The option ``--out`` of every benchmark. A run by hand leaves what is quoted alone."""
    parser.add_argument("--out", type=Path, default=OUT, help=f"where to write (default: build/benchmarks{note})")


def add_out_and_report(parser: argparse.ArgumentParser, report: str) -> None:
    """``--out``, and ``--report``, which reads the quoted record unless ``--out`` names another."""
    parser.add_argument("--report", action="store_true", help=report)
    add_out(parser, note="; with --report: benchmarks/results")
    parser.set_defaults(out=None)


def out_of(options: argparse.Namespace) -> Path:
    """Where to write, and with ``--report`` to read, if ``--out`` does not say."""
    return options.out or (RESULTS if options.report and not options.quick else OUT)


def use_threads(threads: int | None, parser: argparse.ArgumentParser) -> None:
    if threads is not None and threads < 1:
        parser.error(f"need --threads >= 1, got {threads}")
    torch.set_num_threads(threads or torch.get_num_threads())


def run_benchmark(body: Callable[[], None], *, needs: tuple[str, ...]) -> int:
    """Run ``body``; the exit status, with one line instead of a traceback where the user can tell the cause."""
    if missing := [name for name in needs if not importlib.util.find_spec(name)]:
        print(f"need {' and '.join(missing)}: pip install '.[bench]'", file=sys.stderr)
        return 2
    try:
        body()
    except KeyboardInterrupt:
        print("\ninterrupted: no file was left half-written", file=sys.stderr)
        return 130
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def progress(items: list[Item], label: str, unit: str = "run") -> Iterator[Item]:
    """The items, with a progress bar where tqdm is installed and a line every now and then where it is not."""
    if importlib.util.find_spec("tqdm"):
        from tqdm import tqdm

        yield from tqdm(items, desc=label, unit=unit, dynamic_ncols=True)
        return
    for done, item in enumerate(items):
        if done % max(1, len(items) // 10) == 0:
            print(f"{label}: {done} of {len(items)} {unit}s done", file=sys.stderr, flush=True)
        yield item


def command_line(script: str) -> str:
    """The command as a user types it in the repository's root."""
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *map(_from_root, sys.argv, sys.argv[1:])])


def _from_root(before: str, argument: str) -> str:
    """A folder that was given from another one, as seen from the root."""
    folder = Path(argument).resolve()
    return str(folder.relative_to(ROOT)) if before == "--out" and folder.is_relative_to(ROOT) else argument


# -- measuring --------------------------------------------------------------------------------------


def interleaved(contenders: dict[str, Call], rounds: int, *, label: str = "measuring") -> Times:
    """Seconds of one call, measured once per round for every contender, in an order drawn anew for each round.

    What disturbs the machine for a while then meets all of them, and the ratio of two of them in the same round
    says more than that of two medians. A sample is as many calls as last ``SAMPLE_SECONDS``, at least one.
    """
    repetitions = {name: _calibrated(call) for name, call in contenders.items()}
    times: Times = {name: [] for name in contenders}
    order = random.Random(0)
    for _ in progress([*range(rounds)], label, "round"):
        for name in order.sample([*contenders], len(contenders)):
            times[name].append(_sample(contenders[name], repetitions[name]))
    return times


def _calibrated(call: Call) -> int:
    for _ in range(3):
        call()
    return max(1, math.ceil(SAMPLE_SECONDS / min(_sample(call, 1) for _ in range(3))))


def _sample(call: Call, repetitions: int) -> float:
    call()  # the contender before has left its own data in the caches
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in itertools.repeat(None, repetitions):
            call()
        return (time.perf_counter() - started) / repetitions
    finally:
        gc.enable()


class Spread(NamedTuple):
    """A median with its quartiles."""

    low: float
    median: float
    high: float

    def text(self, scale: float = 1) -> str:
        low, median, high = (significant(scale * value) for value in self)
        return f"{median} [{low}, {high}]"


def significant(value: float) -> str:
    """With at least three digits, however small: 1,234, 12.3, 0.0123."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def spread(values: list[float]) -> Spread:
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratios(times: Times, reference: str) -> dict[str, Spread]:
    """How many times as long as the reference each contender took, from the ratios of each round."""
    return {
        name: spread([other / own for other, own in zip(seconds, times[reference], strict=True)])
        for name, seconds in times.items()
    }


def rounded(times: Times) -> Times:
    """For the record, to the picosecond: more is noise."""
    return {name: [round(value, 12) for value in seconds] for name, seconds in times.items()}


# -- keeping what was computed ----------------------------------------------------------------------


class Answers:
    """Results by question, in a file that grows by a line each: what an interrupt leaves is taken up again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Any] = {}
        if self.path.exists():
            whole_lines = self.path.read_text().rpartition("\n")[0].splitlines()
            self.known = dict(map(json.loads, whole_lines))
            self.path.write_text("".join(f"{line}\n" for line in whole_lines))

    def ask(self, function: Callable[[Any], Any], questions: Iterable[Any], label: str, jobs: int) -> None:
        """Have the processes answer what is not known yet, the largest first."""
        missing = {json.dumps(question): question for question in questions}
        todo = [question for key, question in missing.items() if key not in self.known]
        todo.sort(key=lambda question: -getattr(question, "size", 0))
        if not todo:
            return
        with multiprocessing.get_context("spawn").Pool(jobs, one_thread) as pool, self.path.open("a") as file:
            answers = pool.imap_unordered(functools.partial(answer, function), todo)
            for _ in progress([*range(len(todo))], label, "training"):
                question, result = next(answers)
                self.known[json.dumps(question)] = result
                file.write(json.dumps([json.dumps(question), result]) + "\n")
                file.flush()

    def __getitem__(self, question: Any) -> Any:
        return self.known[json.dumps(question)]


def digest(sources: Iterable[Path], packages: Iterable[str]) -> str:
    """Of these files and of these packages' versions, and torch's."""
    versions = [torch.__version__, *map(version, packages)]
    content = b"".join(path.read_bytes() for path in sources) + repr(versions).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def one_thread() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, too, and stops the processes
    torch.set_num_threads(1)


def answer(function: Callable[[Any], Any], question: Any) -> tuple[Any, Any]:
    return question, function(question)


# -- where it ran -----------------------------------------------------------------------------------


def environment(*packages: str) -> dict[str, Any]:
    """The machine and the versions, those of the packages named included."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cyclic_optim": cyclic_optim.__version__,
        **{package: version(package) for package in packages},
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, which only Linux keeps from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def environment_line(record: dict[str, Any]) -> str:
    """What ``environment`` returned, as a line under a table."""
    machine = ("machine", "processor", "cpus", "threads", "load")
    versions = [f"{name} {value or '(not installed)'}" for name, value in record.items() if name not in machine]
    system, processor, cores, threads, load = (record[key] for key in machine)
    hardware = f"{system}, {processor}, {cores} cores (load {load} before), {threads} threads of torch"
    return f"{hardware}; {', '.join(versions)}."


# -- what comes out ---------------------------------------------------------------------------------


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def write_results(folder: Path, contents: dict[str, bytes]) -> None:
    """Write each file whole or not at all, and none before all of them could be."""
    temporaries = {folder / name: folder / f"{name}.tmp" for name in contents}
    try:
        for temporary, content in zip(temporaries.values(), contents.values(), strict=True):
            temporary.write_bytes(content)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def as_json(record: dict[str, Any]) -> bytes:
    """Indented, but with a line for each list of numbers, for the sake of size."""
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    text = re.sub(r"\[\n([^\[\]{}\"]*)\n *\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    return f"{text}\n".encode()


def _finite(value: Any) -> Any:
    """NaN and infinity, which a diverged loss may be and JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
