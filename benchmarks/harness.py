"""What the benchmarks share: progress, tables, the record of where they ran, files that are never half-written."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

import cyclic_optim

Item = TypeVar("Item")


def run_benchmark(body: Callable[[], None], *, needs: tuple[str, ...]) -> int:
    """Run ``body``; the exit status, with one line instead of a traceback where the user can tell the cause."""
    if missing := [name for name in needs if not importlib.util.find_spec(name)]:
        print(f"need {' and '.join(missing)}: pip install 'cyclic_optim[bench]'", file=sys.stderr)
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
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]])


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cyclic_optim": cyclic_optim.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


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
    return (json.dumps(_finite(record), indent=1, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    """NaN and infinity, which a diverged loss may be and JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
