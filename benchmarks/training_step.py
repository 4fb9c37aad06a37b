"""What the optimizer is of a whole training step: CyclicSGD beside torch's SGD with OneCycleLR.

Run it with::

    pip install '.[bench]'
    python benchmarks/training_step.py            # a minute or two
    python benchmarks/training_step.py --quick    # 5 rounds

and find in ``build/benchmarks`` (or where ``--out`` says) ``training_step.md``, the tables, and
``training_step.json``, every number behind them.

Timed are ``zero_grad()``, forward, backward, ``optimizer.step()`` and, where there is one, ``scheduler.step()``, on
a batch that stays. Each contender trains a copy of its own; "no update" leaves out the last two. They take turns
(``harness.interleaved``), and what counts is the ratio to CyclicSGD in the same round; above 1, CyclicSGD is faster.
"""

from __future__ import annotations

import gc
import itertools
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from harness import (
    Call,
    Times,
    as_json,
    command_line,
    environment,
    environment_line,
    interleaved,
    markdown_table,
    ratios,
    rounded,
    run_benchmark,
    spread,
    timing_options,
    use_threads,
    write_results,
)
from step_cost import CONTENDERS, PEAK, REFERENCE
from torch import Tensor, nn

NO_UPDATE = "no update"
COMPARED = (REFERENCE, "SGD, OneCycleLR", "SGD(foreach=True), OneCycleLR", "SGD(fused=True), OneCycleLR")
CLASSES = 10


# -- the networks -----------------------------------------------------------------------------------


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def deep_and_narrow(layers: int = 100, width: int = 32) -> nn.Module:
    def block() -> list[nn.Module]:
        # The norm keeps the numbers in range, and has no parameters.
        return [nn.Linear(width, width), nn.LayerNorm(width, elementwise_affine=False), nn.ReLU()]

    return nn.Sequential(*(module for _ in range(layers) for module in block()), nn.Linear(width, CLASSES))


class Block(nn.Module):
    """Two convolutions, and a way round them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.body = nn.Sequential(
            *convolution(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *convolution(outputs, outputs, 3)
        )
        self.shortcut = nn.Sequential(*(convolution(inputs, outputs, 1, stride) if stride > 1 else ()))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    padding = size // 2
    return [nn.Conv2d(inputs, outputs, size, stride, padding, bias=False), nn.BatchNorm2d(outputs)]


def resnet18() -> nn.Module:
    """For small images: neither stride nor pooling at the start."""
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [Block(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)]
    return nn.Sequential(*convolution(3, widths[0], 3), nn.ReLU(inplace=True), *blocks, *head)


class Task(NamedTuple):
    title: str
    make: Callable[[], nn.Module]
    batch: tuple[int, ...]
    rounds: int = 100


TASKS = {
    "mlp": Task("MLP 64-64-10, batch of 32", perceptron, (32, 64)),
    "deep": Task("100 layers of 32, batch of 32", deep_and_narrow, (32, 32)),
    "resnet18": Task("ResNet-18, batch of 8, 32 x 32", resnet18, (8, 3, 32, 32), rounds=30),
}


# -- measuring --------------------------------------------------------------------------------------


def training(task: Task, name: str) -> Call:
    """One step of the classic loop; every contender starts from the same weights."""
    torch.manual_seed(0)
    model = task.make()
    inputs, labels = torch.randn(task.batch), torch.randint(CLASSES, task.batch[:1])
    update = CONTENDERS[name]([{"params": [*model.parameters()], "lr": PEAK}]) if name != NO_UPDATE else lambda: None

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        update()

    return step


def measure(task: Task, rounds: int) -> Times:
    steps = {name: training(task, name) for name in (*COMPARED, NO_UPDATE)}
    times = interleaved(steps, rounds, label=task.title)
    del steps
    gc.collect()
    return times


def report(measured: dict[str, Times], command: str, where: dict[str, Any]) -> str:
    def table(corner: str, names: list[str], cells: dict[str, dict[str, str]]) -> str:
        header = [corner, *(TASKS[key].title for key in cells)]
        return markdown_table(header, [[name, *(of_each[name] for of_each in cells.values())] for name in names])

    compared = {key: {n: s.text() for n, s in ratios(times, REFERENCE).items()} for key, times in measured.items()}
    spent = {key: {n: spread(t).text(scale=1e6) for n, t in times.items()} for key, times in measured.items()}
    return f"""\
`{command}`

{environment_line(where)}

How many times as long as with {REFERENCE.replace(", ", " and ")} a training step takes: median and [quartiles] of the
ratios of each round. Above 1, CyclicSGD is faster:

{table("times as long", [*COMPARED[1:], NO_UPDATE], compared)}

Microseconds of a training step, median and [quartiles]:

{table("microseconds", [*COMPARED, NO_UPDATE], spent)}
"""


# -- running it -------------------------------------------------------------------------------------


def experiment(options: Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    started, command, where = time.perf_counter(), command_line(__file__), environment()
    measured = {key: measure(TASKS[key], 5 if options.quick else TASKS[key].rounds) for key in options.models}
    text = report(measured, command, where)
    record = {
        "command": command,
        "environment": where,
        "seconds": round(time.perf_counter() - started, 1),
        "models": {
            key: {
                "title": TASKS[key].title,
                "tensors": len([*TASKS[key].make().parameters()]),
                "ratios": {name: each._asdict() for name, each in ratios(times, REFERENCE).items()},
                "seconds": rounded(times),
            }
            for key, times in measured.items()
        },
    }
    write_results(options.out, {"training_step.json": as_json(record), "training_step.md": text.encode()})
    print(f"\n{text}\n{record['seconds']} seconds; results in {options.out}")


def main() -> int:
    parser = timing_options(__doc__.splitlines()[0], quick="5 rounds")
    parser.add_argument("--models", nargs="+", choices=TASKS, default=[*TASKS], help="(default: all)")
    options = parser.parse_args()
    use_threads(options.threads, parser)
    return run_benchmark(lambda: experiment(options), needs=())


if __name__ == "__main__":
    raise SystemExit(main())
