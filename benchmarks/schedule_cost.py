"""What the schedule itself costs: time per step for every policy, time to import, memory.

Run it with::

    pip install '.[bench]'
    python benchmarks/schedule_cost.py            # half a minute
    python benchmarks/schedule_cost.py --quick    # 5 rounds

and find in ``build/benchmarks`` (or where ``--out`` says) ``schedule_cost.md``, the tables, and
``schedule_cost.json``, every number behind them.

1. For every policy of the package: ``policy.at(step)``, averaged over ``STEPS`` steps spread over the schedule; and
   all that the schedule adds to a step (asking the policy, checking its answer, writing it into the param groups),
   for 1 and for 200 groups. Beside them what ``scheduler.step()`` of torch's schedulers takes. All take turns.
2. ``import cyclic_optim`` once torch is there, and ``import torch``, in processes of their own.
3. Memory once a few steps were taken, beyond parameters and gradients, in a process of its own: the tensors of the
   optimizer's state, which are SGD's; Python's objects (``tracemalloc``); and, where the C library is glibc, all
   that is allocated, which includes both and what lies behind tensors.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import (
    Call,
    Times,
    as_json,
    command_line,
    environment,
    environment_line,
    interleaved,
    markdown_table,
    progress,
    rounded,
    run_benchmark,
    spread,
    timing_options,
    use_threads,
    write_results,
)
from step_cost import STEP_SIZE_UP, TOTAL_STEPS, Groups, cyclic_lr, make_groups, one_cycle_lr
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

import cyclic_optim
from cyclic_optim import CosineDecay, CyclicSGD, LinearRamp, OneCycle, Policy

STEPS = 100
GROUPS = (1, 200)
TENSORS, ELEMENTS = 1000, 32
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Combined": {"lr": CosineDecay(TOTAL_STEPS), "weight_decay": LinearRamp(TOTAL_STEPS)},
    "Constant": {},
    "CosineDecay": {"t_max": TOTAL_STEPS},
    "CosineRestarts": {"t_0": STEP_SIZE_UP, "t_mult": 2},
    "CosineWave": {"t_max": STEP_SIZE_UP},
    "ExpRange": {"step_size_up": STEP_SIZE_UP, "gamma": 0.999999},
    "ExponentialDecay": {"gamma": 0.999999},
    "ExponentialRamp": {"total_iters": TOTAL_STEPS, "start_factor": 1e-8},
    "InverseTimeDecay": {"k": 1e-3},
    "LambdaPolicy": {"fn": lambda step: 1 / (1 + 1e-3 * step)},
    "LinearDecay": {"total_steps": TOTAL_STEPS, "warmup": STEP_SIZE_UP},
    "LinearRamp": {"total_iters": TOTAL_STEPS},
    "MultiStepDecay": {"milestones": [TOTAL_STEPS // 4, TOTAL_STEPS // 2]},
    "OneCycle": {"total_steps": TOTAL_STEPS},
    "Plateau": {},
    "PolynomialDecay": {"total_iters": TOTAL_STEPS, "power": 2},
    "Product": {"policies": [CosineDecay(TOTAL_STEPS), LinearRamp(STEP_SIZE_UP)]},
    "Scaled": {"policy": LinearRamp(TOTAL_STEPS), "factor": 0.5},
    "Sequential": {"policies": [LinearRamp(STEP_SIZE_UP), CosineDecay(TOTAL_STEPS)], "milestones": [STEP_SIZE_UP]},
    "Staircase": {"policy": CosineDecay(TOTAL_STEPS // 100), "length": 100},
    "StepDecay": {"step_size": TOTAL_STEPS // 4},
    "Triangular": {"step_size_up": STEP_SIZE_UP},
    "Triangular2": {"step_size_up": STEP_SIZE_UP},
    "Warmup": {"policy": CosineDecay(TOTAL_STEPS), "total_iters": STEP_SIZE_UP},
    "WarmupStableDecay": {"total_steps": TOTAL_STEPS, "warmup": STEP_SIZE_UP, "decay": TOTAL_STEPS // 5},
}
SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "torch's OneCycleLR": one_cycle_lr,
    "torch's CyclicLR": cyclic_lr,
}


def schedule_alone(optimizer: CyclicSGD) -> Call:
    """What the schedule adds to a step, and nothing else of it."""
    schedules, groups = optimizer._schedules, optimizer.param_groups

    def step() -> None:
        schedules._write(groups, schedules._plan_next(groups))

    return step


# -- time per step ----------------------------------------------------------------------------------


def policies() -> dict[str, Policy]:
    """One of each kind that the package exports."""
    kinds = {name: getattr(cyclic_optim, name) for name in cyclic_optim.__all__}
    kinds = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Policy)}
    return {name: kind(**ARGUMENTS[name]) for name, kind in sorted(kinds.items()) if kind is not Policy}


def asking(policy: Policy) -> Call:
    steps = range(0, TOTAL_STEPS, TOTAL_STEPS // STEPS)

    def ask() -> None:
        for step in steps:
            policy.at(step)

    return ask


def measure_policies(rounds: int) -> Times:
    asked = {name: asking(policy) for name, policy in policies().items()}
    times = interleaved(asked, rounds, label="policy.at")
    return {name: [value / STEPS for value in seconds] for name, seconds in times.items()}


def measure_schedules(groups: int, rounds: int) -> Times:
    """Beside torch's schedulers."""
    several = make_groups(groups * [(ELEMENTS,)], group_each=True)
    steps = {
        name: schedule_alone(CyclicSGD([dict(group) for group in several], momentum=0.9, policy=policy))
        for name, policy in policies().items()
    }
    for name, make in SCHEDULERS.items():
        optimizer = SGD([dict(group) for group in several], momentum=0.9)
        scheduler = make(optimizer)
        optimizer.step()  # or torch warns of the wrong order
        steps[name] = scheduler.step
    return interleaved(steps, rounds, label=f"schedule, {plural(groups)}")


# -- importing --------------------------------------------------------------------------------------


def seconds_to_import(statement: str, after: str) -> float:
    code = f"import time{after}; started = time.perf_counter(); {statement}; print(time.perf_counter() - started)"
    return float(in_a_process(code, PYTHONDONTWRITEBYTECODE=""))  # or every process would compile anew


def in_a_process(code: str, **variables: str) -> str:
    command = [sys.executable, "-c", code]
    where, variables = Path(__file__).parent, {**os.environ, **variables}
    return subprocess.run(command, cwd=where, env=variables, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure_imports(times: int) -> Times:
    cases = {
        "CyclicSGD and OneCycle, after torch": ("from cyclic_optim import CyclicSGD, OneCycle", ", torch"),
        "cyclic_optim alone, after torch": ("import cyclic_optim", ", torch"),
        "torch": ("import torch", ""),
    }
    measured: Times = {name: [] for name in cases}
    for statement, after in cases.values():
        seconds_to_import(statement, after)  # Python keeps what it compiled
    for _ in progress([*range(times)], "importing", "round"):
        for name, (statement, after) in cases.items():
            measured[name].append(seconds_to_import(statement, after))
    return measured


# -- memory -----------------------------------------------------------------------------------------


OPTIMIZERS: dict[str, Callable[[Groups], list[Any]]] = {
    "SGD": lambda groups: [SGD(groups, momentum=0.9)],
    "SGD, OneCycleLR": lambda groups: with_one_cycle_lr(SGD(groups, momentum=0.9)),
    "SGD(fused=True), OneCycleLR": lambda groups: with_one_cycle_lr(SGD(groups, momentum=0.9, fused=True)),
    "CyclicSGD, OneCycle": lambda groups: [CyclicSGD(groups, momentum=0.9, policy=OneCycle(TOTAL_STEPS))],
}
Bytes = dict[str, dict[str, int | None]]  # by optimizer and kind


def with_one_cycle_lr(optimizer: Optimizer) -> list[Any]:
    return [optimizer, one_cycle_lr(optimizer)]


def measure_memory(groups: int) -> Bytes:
    """Bytes after a few steps, beyond those before there was an optimizer. Tracing takes memory, so it comes second."""
    made = [make_groups(TENSORS // groups * [(ELEMENTS,)])[0] for _ in range(groups)]
    for make in OPTIMIZERS.values():  # what torch loads or keeps on first use is not the optimizer's
        stepped(make, made)
    gc.freeze()  # and need not be looked through for garbage over and over
    found: Bytes = {}
    for name, make in OPTIMIZERS.items():
        gc.collect()  # the optimizer before
        before = allocated()
        parts = stepped(make, made)
        after = allocated()
        kept = [value for state in parts[0].state.values() for value in state.values() if isinstance(value, Tensor)]
        found[name] = {
            "state tensors": sum(tensor.numel() * tensor.element_size() for tensor in kept),
            "Python objects": None,
            "everything": None if before is None or after is None else after - before,
        }
        del parts, kept
    for name, make in OPTIMIZERS.items():
        tracemalloc.start()
        parts = stepped(make, made)
        found[name]["Python objects"] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del parts
    return found


def stepped(make: Callable[[Groups], list[Any]], groups: Groups) -> list[Any]:
    """An optimizer, and its scheduler if it has one, after a few steps."""
    parts = make([dict(group) for group in groups])
    for part in 5 * parts:
        part.step()
    gc.collect()
    return parts


class _Mallinfo2(ctypes.Structure):
    """As in malloc.h; ``uordblks`` is what is in use on the heap, ``hblkhd`` what was mapped."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


def allocated() -> int | None:
    """Bytes that malloc has given out; None where the C library does not say."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return found.uordblks + found.hblkhd


def memory() -> dict[int, Bytes]:
    """By the number of groups."""
    code = f"import json, schedule_cost as s; print(json.dumps([s.measure_memory(groups) for groups in {GROUPS}]))"
    # Python's own allocator takes memory in lumps that hide what is in use. Threads would only cost time here.
    found = json.loads(in_a_process(code, PYTHONMALLOC="malloc", OMP_NUM_THREADS="1"))
    return dict(zip(GROUPS, found, strict=True))


# -- the tables -------------------------------------------------------------------------------------


def report(at: Times, schedules: dict[int, Times], imports: Times, used: dict[int, Bytes], head: str) -> str:
    rows = []
    for name in (*at, *SCHEDULERS):
        cells = [spread(times[name]).text(scale=1e9) for times in schedules.values()]
        rows.append([name, spread(at[name]).text(scale=1e9) if name in at else "", *cells])
    added = [f"added to a step, {plural(groups)}" for groups in schedules]
    importing = [[name, spread(seconds).text(scale=1e3)] for name, seconds in imports.items()]
    return f"""\
{head}

Nanoseconds per step, median and [quartiles]:

{markdown_table(["policy", "at(step)", *added], rows)}

Milliseconds to import, median and [quartiles]:

{markdown_table(["module", "milliseconds"], importing)}

{"".join(memory_table(groups, of_each) for groups, of_each in used.items()).rstrip()}
"""


def memory_table(groups: int, of_each: Bytes) -> str:
    kinds = [*of_each["SGD"]]
    rows = [[name, *(in_words(found[kind]) for kind in kinds)] for name, found in of_each.items()]
    plain, ours = of_each["SGD"], of_each["CyclicSGD, OneCycle"]
    kind = "Python objects" if ours["everything"] is None else "everything"
    more = ours[kind] - plain[kind]
    return f"""\
Bytes for {TENSORS} tensors of {ELEMENTS} in {plural(groups)}:

{markdown_table(["optimizer", *kinds], rows)}

CyclicSGD keeps {abs(more):,} bytes {"more" if more >= 0 else "less"} than SGD ({kind}): {abs(more) / groups:,.0f} per
group, {abs(more) / TENSORS:,.0f} per tensor.

"""


def in_words(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def plural(groups: int) -> str:
    return f"{groups} group" if groups == 1 else f"{groups} groups"


# -- running it -------------------------------------------------------------------------------------


def experiment(options: Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    started, command, where = time.perf_counter(), command_line(__file__), environment()
    rounds = 5 if options.quick else 100
    at = measure_policies(rounds)
    schedules = {groups: measure_schedules(groups, rounds) for groups in GROUPS}
    imports = measure_imports(2 if options.quick else 11)
    used = memory()
    text = report(at, schedules, imports, used, f"`{command}`\n\n{environment_line(where)}")
    record = {
        "command": command,
        "environment": where,
        "seconds": round(time.perf_counter() - started, 1),
        "policies": {name: repr(policy) for name, policy in policies().items()},
        "at": rounded(at),
        "added_by_groups": {groups: rounded(times) for groups, times in schedules.items()},
        "imports": rounded(imports),
        "bytes_by_groups": used,
    }
    write_results(options.out, {"schedule_cost.json": as_json(record), "schedule_cost.md": text.encode()})
    print(f"\n{text}\n{record['seconds']} seconds; results in {options.out}")


def main() -> int:
    parser = timing_options(__doc__.splitlines()[0], quick="5 rounds, not 100, and 2 imports, not 11")
    options = parser.parse_args()
    use_threads(options.threads, parser)
    return run_benchmark(lambda: experiment(options), needs=())


if __name__ == "__main__":
    raise SystemExit(main())
