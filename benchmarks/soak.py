"""A million training steps on end: whether steps stay as fast, and memory as small, as they were at the start.

Run it with::

    pip install '.[bench]'
    python benchmarks/soak.py            # some five minutes
    python benchmarks/soak.py --quick    # 400 steps

and find in ``build/benchmarks`` (or where ``--out`` says) ``soak.md``, the tables, and ``soak.json``, every number
behind them.

1. A tiny network is trained with CyclicSGD and a cycle of rate and momentum. After every block of its steps torch's
   SGD gets a smaller one with each of two schedulers, so that what slows the machine down for a while shows on all.
2. Each step is timed as a whole (``zero_grad()``, forward, backward, update), and its update alone
   (``optimizer.step()`` and, where there is one, ``scheduler.step()``). What is kept is the median of each block, which
   the few steps that something interrupts do not move. Tables have the median of the blocks for each tenth of the run,
   and how many times the first tenth's the last one's is.
3. Before the first tenth and after each: the memory of the process, what malloc has given out where the C library is
   glibc, the blocks that Python has allocated, and the objects that its garbage collector knows, after a collection.
   They are those of all contenders together; what records them is allocated beforehand, and a reading itself takes a
   block or two of Python's. What the system does not say is left out.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import sys
import time
from argparse import Namespace
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from harness import (
    Call,
    as_json,
    command_line,
    environment,
    environment_line,
    markdown_table,
    progress,
    run_benchmark,
    significant,
    timing_options,
    use_threads,
    write_results,
)
from schedule_cost import allocated
from step_cost import MOMENTUM, STEP_SIZE_UP, cyclic_lr, one_cycle_lr, stepping
from torch import nn
from torch.optim import SGD

from cyclic_optim import CyclicSGD, Triangular

OURS = "CyclicSGD, Triangular"
RATE = 1e-3
TENTHS = 10
FEATURES, BATCH, BATCHES = 8, 8, 64


class Size(NamedTuple):
    """How long the run is: so many blocks, and in each so many steps of ours and of each of torch's."""

    blocks: int = 1000
    steps: int = 1000
    others: int = 100


QUICK = Size(blocks=20, steps=20, others=20)
Medians = dict[str, list[float]]  # by contender: of each tenth
Memory = dict[str, "array[int]"]  # by kind: before the first tenth and after each


# -- the contenders ---------------------------------------------------------------------------------


def ours(params: list[nn.Parameter]) -> Call:
    return stepping(CyclicSGD(params, lr=RATE, momentum=MOMENTUM, policy=Triangular(STEP_SIZE_UP)))


def theirs(scheduler: Callable[..., Any]) -> Callable[[list[nn.Parameter]], Call]:
    def build(params: list[nn.Parameter]) -> Call:
        optimizer = SGD(params, lr=RATE, momentum=MOMENTUM)
        return stepping(optimizer, scheduler(optimizer))

    return build


CONTENDERS: dict[str, Callable[[list[nn.Parameter]], Call]] = {
    OURS: ours,
    "SGD, CyclicLR": theirs(cyclic_lr),
    "SGD, OneCycleLR": theirs(one_cycle_lr),
}


def training(name: str, steps: int) -> Callable[[], tuple[float, float]]:
    """Trains for so many steps; returns the seconds of one, and of its update alone: medians."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, 1))
    # Targets of mere noise: the gradients never vanish, and no number becomes so small that it slows the processor.
    batches = itertools.cycle([(torch.randn(BATCH, FEATURES), torch.randn(BATCH, 1)) for _ in range(BATCHES)])
    update = CONTENDERS[name]([*model.parameters()])

    whole, alone = (array("d", bytes(8 * steps)) for _ in range(2))

    def train() -> tuple[float, float]:
        for step in range(steps):
            started = time.perf_counter()
            inputs, targets = next(batches)
            model.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            before = time.perf_counter()
            update()
            done = time.perf_counter()
            whole[step], alone[step] = done - started, done - before
        return statistics.median(whole), statistics.median(alone)

    return train


# -- measuring --------------------------------------------------------------------------------------


class Timed(NamedTuple):
    """Seconds of one step, the median of each block."""

    step: array[float]
    update: array[float]


def measure(size: Size) -> tuple[dict[str, Timed], Memory]:
    runs = {name: training(name, size.steps if name == OURS else size.others) for name in CONTENDERS}
    empty = bytes(8 * size.blocks)
    times = {name: Timed(array("d", empty), array("d", empty)) for name in runs}
    for train in runs.values():
        train()  # what is allocated once is there now
    used = {kind: array("q", bytes(8 * (1 + TENTHS))) for kind, amount in memory().items() if amount is not None}
    note(used, 0)
    for block in progress([*range(size.blocks)], "soak", "block"):
        for name, train in runs.items():
            times[name].step[block], times[name].update[block] = train()
        tenth, rest = divmod((block + 1) * TENTHS, size.blocks)
        if rest == 0:
            note(used, tenth)
    return times, used


def note(used: Memory, tenth: int) -> None:
    found = memory()
    for kind, amounts in used.items():
        amounts[tenth] = found[kind]


def memory() -> dict[str, int | None]:
    gc.collect()
    return {
        "bytes of the process": resident(),
        "bytes from malloc": allocated(),
        "blocks of Python's": sys.getallocatedblocks(),
        "objects": len(gc.get_objects()),
    }


def resident() -> int | None:
    """Bytes of the process that are in memory; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def by_tenth(values: array[float] | list[float]) -> list[float]:
    length = len(values) // TENTHS
    return [statistics.median(values[i * length : (i + 1) * length]) for i in range(TENTHS)]


# -- the tables -------------------------------------------------------------------------------------


def summary(times: dict[str, Timed]) -> dict[str, Medians]:
    """The medians of each tenth, and of the ratios of ours to the others' in the same block."""
    updates = {name: timed.update for name, timed in times.items()}
    return {
        "step": {name: by_tenth(timed.step) for name, timed in times.items()},
        "update": {name: by_tenth(update) for name, update in updates.items()},
        "update over ours": {
            name: by_tenth([theirs / own for theirs, own in zip(update, updates[OURS], strict=True)])
            for name, update in updates.items()
            if name != OURS
        },
    }


def table(corner: str, medians: Medians, scale: float = 1) -> str:
    header = [corner, *(f"tenth {i + 1}" for i in range(TENTHS)), "last / first"]
    rows = [
        [name, *(significant(scale * value) for value in each), f"{each[-1] / each[0]:.3f}"]
        for name, each in medians.items()
    ]
    return markdown_table(header, rows)


def memory_table(used: Memory) -> str:
    header = ["in use", "before", *(f"tenth {i + 1}" for i in range(TENTHS)), "last - first tenth"]
    rows = [
        [kind, *(f"{amount:,}" for amount in amounts), f"{amounts[-1] - amounts[1]:+,}"]
        for kind, amounts in used.items()
    ]
    return markdown_table(header, rows)


def report(size: Size, times: dict[str, Timed], used: Memory, head: str) -> str:
    medians = summary(times)
    return f"""\
{head}

{size.blocks * size.steps:,} training steps with CyclicSGD and {size.blocks * size.others:,} with each of torch's,
in turns, every step timed. Microseconds of a whole step, the median of each tenth of the run:

{table("microseconds of a step", medians["step"], scale=1e6)}

Microseconds of the update alone, the schedule included:

{table("microseconds of an update", medians["update"], scale=1e6)}

How many times as long as CyclicSGD's the others' update takes, in the same block:

{table("times as long", medians["update over ours"])}

Memory, of all three together:

{memory_table(used)}
"""


# -- running it -------------------------------------------------------------------------------------


def experiment(options: Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    started, command, where = time.perf_counter(), command_line(__file__), environment()
    size = QUICK if options.quick else Size()
    times, used = measure(size)
    text = report(size, times, used, f"`{command}`\n\n{environment_line(where)}")
    record = {
        "command": command,
        "environment": where,
        "seconds": round(time.perf_counter() - started, 1),
        "steps": {name: size.blocks * (size.steps if name == OURS else size.others) for name in times},
        "medians": summary(times),
        "memory": {kind: [*amounts] for kind, amounts in used.items()},
        "blocks": {
            name: {kind: [round(value, 9) for value in values] for kind, values in timed._asdict().items()}
            for name, timed in times.items()
        },
    }
    write_results(options.out, {"soak.json": as_json(record), "soak.md": text.encode()})
    print(f"\n{text}\n{record['seconds']} seconds; results in {options.out}")


def main() -> int:
    parser = timing_options(__doc__.splitlines()[0], quick="400 steps")
    options = parser.parse_args()
    use_threads(options.threads, parser)
    return run_benchmark(lambda: experiment(options), needs=())


if __name__ == "__main__":
    raise SystemExit(main())
