"""From which size on a tensor's update is worth a team of threads: the measurement behind ``SMALL``.

Run it with::

    pip install '.[bench]'
    python benchmarks/crossing.py            # a minute
    python benchmarks/crossing.py --quick    # fewer rounds

and find in ``build/benchmarks`` (or where ``--out`` says) ``crossing.md``, the table, and ``crossing.json``.

On the CPU torch's fused op shares out every single tensor among all threads, however small it is. Timed is one call
of the op on ``TENSORS`` tensors of a size, as it is, and with the number of threads set to 1 for the time of the call.
The two take turns. ``cyclic_optim`` makes the serial call for tensors of less than ``SMALL`` elements.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import torch
from harness import (
    Call,
    Spread,
    as_json,
    command_line,
    environment,
    environment_line,
    interleaved,
    markdown_table,
    ratios,
    run_benchmark,
    timing_options,
    write_results,
)

from cyclic_optim.host.fused import SMALL

TENSORS = 16
SIZES = [2**exponent for exponent in range(6, 19)]
THREADS = (1, 2, 4)
ROUNDS, QUICK_ROUNDS = 60, 7


def update(tensors: list[list[torch.Tensor]], threads: int, during: int) -> None:
    torch.set_num_threads(during)
    torch._fused_sgd_(
        *tensors,
        weight_decay=0.0,
        momentum=0.9,
        lr=1e-6,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
    torch.set_num_threads(threads)


def contenders(size: int, threads: int) -> dict[str, Call]:
    tensors = [[torch.randn(size) for _ in range(TENSORS)] for _ in range(3)]
    return {"serial": partial(update, tensors, threads, 1), "parallel": partial(update, tensors, threads, threads)}


def measure(rounds: int) -> dict[int, dict[int, Spread]]:
    """By threads and size: how many times as long as the serial call the parallel one took."""
    before = torch.get_num_threads()
    try:
        return {
            threads: {
                size: ratios(interleaved(contenders(size, threads), rounds, label=f"{threads} x {size}"), "serial")[
                    "parallel"
                ]
                for size in SIZES
            }
            for threads in THREADS
        }
    finally:
        torch.set_num_threads(before)


def report(measured: dict[int, dict[int, Spread]], command: str, environment_: dict[str, object]) -> str:
    header = ["elements", *(f"{threads} threads" if threads > 1 else "1 thread" for threads in THREADS)]
    rows = [[f"{size:,}", *(measured[threads][size].text() for threads in THREADS)] for size in SIZES]
    return f"""\
`{command}`

How many times as long as on one thread torch's fused op takes on all of them, for tensors of so many elements; median
and quartiles. Above 1, the serial call is faster. `cyclic_optim` makes it below {SMALL:,} elements. With more threads
than the machine has cores ({os.cpu_count()}), they wait for one another.

{markdown_table(header, rows)}

{environment_line(environment_)}
"""


def experiment(out: Path, rounds: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    started, command, where = time.perf_counter(), command_line(__file__), environment()
    measured = measure(rounds)
    text = report(measured, command, where)
    record = {
        "command": command,
        "environment": where,
        "seconds": round(time.perf_counter() - started, 1),
        "configuration": {"tensors": TENSORS, "rounds": rounds, "small": SMALL},
        "parallel_over_serial": measured,
    }
    write_results(out, {"crossing.json": as_json(record), "crossing.md": text.encode()})
    print(f"\n{text}\n{record['seconds']} seconds; results in {out}")


def main() -> int:
    parser = timing_options(__doc__.splitlines()[0], quick=f"{QUICK_ROUNDS} rounds, not {ROUNDS}")
    options = parser.parse_args()
    return run_benchmark(lambda: experiment(options.out, QUICK_ROUNDS if options.quick else ROUNDS), needs=())


if __name__ == "__main__":
    raise SystemExit(main())
