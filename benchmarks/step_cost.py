"""What one step costs: CyclicSGD beside torch's SGD with a scheduler, other packages, and the floor under them all.

Run it with::

    pip install '.[bench]'
    python benchmarks/step_cost.py                       # some six minutes, 10 GB of memory
    python benchmarks/step_cost.py --quick               # 5 rounds, and nothing compiled
    python benchmarks/step_cost.py --models 4 resnet18   # only these

and find in ``build/benchmarks`` (or where ``--out`` says) ``step_cost.md``, the tables; ``step_cost.png``, the
cost against the number of tensors and of parameters; ``step_cost.json``, every number behind them.

1. Timed is ``optimizer.step()`` and, where there is one, ``scheduler.step()``: fp32, momentum, no weight decay,
   gradients that stay what they are. All contenders step on the same parameters and gradients, each with its own
   buffers, so none is luckier in its place in memory.
2. They take turns (``harness.interleaved``). What counts is the ratio to CyclicSGD in the same round; above 1,
   CyclicSGD is faster. Tables have the median and, in brackets, the quartiles.
3. Where a package has a switch, both settings are measured. A compiled step of SGD has its rates in tensors, as torch
   advises: OneCycleLR writes into them itself, or schedules an SGD of plain numbers, whose values are then copied.
   optimi's SGD and schedule-free SGD are other algorithms that one may take instead; the latter needs no scheduler.
4. The floors do nothing but update: torch's fused op over lists made beforehand, without a schedule, without
   looking at ``.grad``; as it is, and with the small tensors in a serial call and the large ones in a parallel one.
5. The picture also has a yardstick from memory: ``copy_`` of as many bytes as a step reads and writes, ``COPIED`` of
   them per parameter. A copy also fetches what it overwrites, so an update in place can come out below it.
"""

from __future__ import annotations

import gc
import importlib
import math
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
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
from step_cost_picture import Lines, picture
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from cyclic_optim import CyclicSGD, OneCycle, Policy, Triangular, native
from cyclic_optim.host.fused import SMALL

PEAK, MOMENTUM = 1e-6, 0.9  # a rate at which the weights stay finite, however many steps are taken
TOTAL_STEPS = 10**6  # more than are taken
STEP_SIZE_UP = 2000
ELEMENTS = 32  # of each of the many small tensors
QUICK_ROUNDS = 5
COPIED = 20  # bytes: parameter, gradient and buffer are read, two of them written

Shape = tuple[int, ...]
Groups = list[dict[str, Any]]  # as optimizers take them
Build = Callable[[Groups], Call]


# -- the models -------------------------------------------------------------------------------------


class Model(NamedTuple):
    title: str
    shapes: list[Shape]
    rounds: int = 100
    group_each: bool = False
    uncompiled: str = ""  # why there is no compiled step


def resnet18() -> list[Shape]:
    def convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]  # with its batch norm

    shapes, inputs = convolution(64, 3, 7), 64
    for width in (64, 128, 256, 512):
        shapes += convolution(width, inputs, 3) + convolution(width, width, 3)
        shapes += convolution(width, inputs, 1) if width != inputs else []
        shapes += 2 * convolution(width, width, 3)
        inputs = width
    return [*shapes, (1000, 512), (1000,)]


def gpt2(width: int = 768) -> list[Shape]:
    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    norm = [(width,), (width,)]
    attention = linear(width, 3 * width) + linear(width, width)
    perceptron = linear(width, 4 * width) + linear(4 * width, width)
    return [(50257, width), (1024, width), *12 * (norm + attention + norm + perceptron), *norm]


MODELS = {
    "4": Model("4 tensors, 5 k", [(64, 64), (64,), (10, 64), (10,)]),
    "1000": Model("1000 tensors of 32", 1000 * [(ELEMENTS,)], uncompiled="compiling takes three minutes"),
    "groups": Model("200 groups of a tensor of 32", 200 * [(ELEMENTS,)], group_each=True),
    "resnet18": Model("ResNet-18: 62, 11.7 M", resnet18()),
    "gpt2": Model("GPT-2: 148, 124 M", gpt2(), rounds=30),
}


def make_groups(shapes: list[Shape], group_each: bool = False) -> Groups:
    """Parameters that have gradients, in one group or each in its own with its own rate."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for tensor in tensors:
        tensor.grad = torch.randn(tensor.shape, generator=generator)
    if not group_each:
        return [{"params": tensors, "lr": PEAK}]
    return [{"params": [tensor], "lr": PEAK * (1 + i / len(tensors))} for i, tensor in enumerate(tensors)]


# -- the contenders ---------------------------------------------------------------------------------


class LeftOutError(Exception):
    """Why a contender does not take part."""


def stepping(optimizer: Optimizer, scheduler: LRScheduler | None = None) -> Call:
    """What a training loop calls, looked up on each call as there."""

    def step() -> None:
        optimizer.step()

    def step_both() -> None:
        optimizer.step()
        scheduler.step()

    return step_both if scheduler else step


def peaks(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def one_cycle_lr(optimizer: Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, peaks(optimizer), total_steps=TOTAL_STEPS)


def cyclic_lr(optimizer: Optimizer) -> LRScheduler:
    return CyclicLR(optimizer, [peak / 10 for peak in peaks(optimizer)], peaks(optimizer), step_size_up=STEP_SIZE_UP)


def cyclic_sgd(policy: Policy) -> Build:
    return lambda groups: stepping(CyclicSGD(groups, momentum=MOMENTUM, policy=policy))


def sgd(scheduler: Callable[[Optimizer], LRScheduler], **options: Any) -> Build:
    def build(groups: Groups) -> Call:
        optimizer = SGD(groups, momentum=MOMENTUM, **options)
        return stepping(optimizer, scheduler(optimizer))

    return build


def compiled(optimizer: Optimizer, after: Call = lambda: None, **options: Any) -> Call:
    step = torch.compile(optimizer.step, **options)

    def step_and_go_on() -> None:
        step()
        after()

    try:
        step_and_go_on()
    except Exception as error:  # there may be no C++ compiler
        raise LeftOutError(f"torch.compile failed with {type(error).__name__}") from error
    return step_and_go_on


def sgd_of_tensors(groups: Groups, device: str = "cpu", **options: Any) -> SGD:
    """Each rate in a tensor of its own, as compiled and captured steps can follow it."""
    of_tensors = [{**group, "lr": torch.tensor(group["lr"], device=device)} for group in groups]
    return SGD(of_tensors, momentum=MOMENTUM, **options)


def values_copied(optimizer: SGD, scheduler_of: Callable[[Optimizer], LRScheduler]) -> Call:
    """Step the scheduler of an SGD whose rates are plain numbers, and copy its values into ``optimizer``."""
    source = SGD([{"params": [torch.zeros(())], "lr": peak} for peak in peaks(optimizer)], momentum=MOMENTUM)
    scheduler = scheduler_of(source)
    source.step()  # a no-op, without gradients; torch warns of a scheduler that comes first

    def copy() -> None:
        for group, values in zip(optimizer.param_groups, source.param_groups, strict=True):
            group["lr"].fill_(values["lr"])
            group["momentum"] = values["momentum"]

    def step_and_copy() -> None:
        scheduler.step()
        copy()

    copy()
    return step_and_copy


def compiled_sgd(groups: Groups) -> Call:
    optimizer = sgd_of_tensors(groups)
    return compiled(optimizer, one_cycle_lr(optimizer).step)


def compiled_sgd_copying(groups: Groups) -> Call:
    optimizer = sgd_of_tensors(groups)
    return compiled(optimizer, values_copied(optimizer, one_cycle_lr))


def compiled_cyclic_sgd(groups: Groups) -> Call:
    optimizer = CyclicSGD(groups, momentum=MOMENTUM, policy=OneCycle(TOTAL_STEPS), capturable=True)
    return compiled(optimizer, fullgraph=True)


def optimi(foreach: bool) -> Build:
    def build(groups: Groups) -> Call:
        package = installed("optimi", "torch-optimi")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of foreach
            optimizer = package.SGD(groups, lr=PEAK, momentum=MOMENTUM, foreach=foreach)
        return stepping(optimizer, one_cycle_lr(optimizer))

    return build


def schedule_free(foreach: bool) -> Build:
    def build(groups: Groups) -> Call:
        package = installed("schedulefree", "schedulefree")
        optimizer = package.SGDScheduleFree(groups, momentum=MOMENTUM, warmup_steps=STEP_SIZE_UP, foreach=foreach)
        optimizer.train()
        return stepping(optimizer)

    return build


def installed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LeftOutError(f"need {package}: pip install '.[bench]'") from error


Lists = tuple[list[Tensor], list[Tensor], list[Tensor]]  # parameters, gradients, buffers


def cached(group: dict[str, Any], keep: Callable[[Tensor], bool] = lambda tensor: True) -> Lists:
    """Detached parameters share their memory, and need no guard against autograd."""
    params = [param for param in group["params"] if keep(param)]
    return [param.detach() for param in params], [param.grad for param in params], list(map(torch.zeros_like, params))


def fused(lists: Lists, lr: float) -> None:
    torch._fused_sgd_(
        *lists,
        weight_decay=0.0,
        momentum=MOMENTUM,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def bare_op(groups: Groups) -> Call:
    lists = [(cached(group), group["lr"]) for group in groups]

    def step() -> None:
        for each, lr in lists:
            fused(each, lr)

    return step


def floor(groups: Groups) -> Call:
    small = [(cached(group, is_small), group["lr"]) for group in groups]
    large = [(cached(group, lambda tensor: not is_small(tensor)), group["lr"]) for group in groups]
    small, large = ([(lists, lr) for lists, lr in each if lists[0]] for each in (small, large))

    def step() -> None:
        for lists, lr in large:
            fused(lists, lr)
        if not small:
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for lists, lr in small:
                fused(lists, lr)
        finally:
            torch.set_num_threads(threads)

    return step


def is_small(tensor: Tensor) -> bool:
    return tensor.numel() < SMALL


def copying(groups: Groups) -> Call:
    parameters = sum(param.numel() for group in groups for param in group["params"])
    source = torch.ones(COPIED * parameters // 8)  # 4 bytes each, read and written
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def without_the_compiled_part(build: Build) -> Build:
    """As where there is no C compiler, or torch is older than 2.10."""

    def built(groups: Groups) -> Call:
        step, compiled = build(groups), native.compiled

        def in_python() -> None:
            native.compiled = None
            try:
                step()
            finally:
                native.compiled = compiled

        return in_python

    return built


REFERENCE = "CyclicSGD, OneCycle"
COMPILED: dict[str, Build] = {
    "compiled SGD, OneCycleLR": compiled_sgd,
    "compiled SGD, OneCycleLR's values copied": compiled_sgd_copying,
    "compiled CyclicSGD(capturable=True), OneCycle": compiled_cyclic_sgd,
}
CONTENDERS: dict[str, Build] = {
    REFERENCE: cyclic_sgd(OneCycle(TOTAL_STEPS)),
    "CyclicSGD, Triangular": cyclic_sgd(Triangular(STEP_SIZE_UP)),
    "CyclicSGD, OneCycle, without its compiled part": without_the_compiled_part(cyclic_sgd(OneCycle(TOTAL_STEPS))),
    "SGD, OneCycleLR": sgd(one_cycle_lr),
    "SGD, CyclicLR": sgd(cyclic_lr),
    "SGD(foreach=True), OneCycleLR": sgd(one_cycle_lr, foreach=True),
    "SGD(foreach=True), CyclicLR": sgd(cyclic_lr, foreach=True),
    "SGD(fused=True), OneCycleLR": sgd(one_cycle_lr, fused=True),
    "SGD(fused=True), CyclicLR": sgd(cyclic_lr, fused=True),
    **COMPILED,
    "optimi SGD(foreach=False), OneCycleLR": optimi(foreach=False),
    "optimi SGD(foreach=True), OneCycleLR": optimi(foreach=True),
    "SGDScheduleFree(foreach=False)": schedule_free(foreach=False),
    "SGDScheduleFree(foreach=True)": schedule_free(foreach=True),
    "the bare fused op over cached lists": bare_op,
    "floor: small tensors serially, large ones in parallel": floor,
}
COPY = f"copying as many bytes ({COPIED} per parameter)"
DRAWN = {
    **{
        name: CONTENDERS[name]
        for name in (REFERENCE, "SGD(fused=True), OneCycleLR", "SGD, OneCycleLR", "SGD(foreach=True), OneCycleLR")
    },
    COPY: copying,
}


# -- measuring --------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Of one model: the times, what each contender took to be ready, and why some did not take part."""

    times: Times
    ready_after: dict[str, float]
    left_out: dict[str, str]


def measure(groups: Groups, contenders: dict[str, Build], rounds: int, label: str) -> Measured:
    steps: dict[str, Call] = {}
    ready_after, left_out = {}, {}
    for name, build in contenders.items():
        started = time.perf_counter()
        try:
            steps[name] = build([dict(group) for group in groups])
        except LeftOutError as error:
            left_out[name] = str(error)
            continue
        for _ in range(3):  # buffers are made, compilers run
            steps[name]()
        ready_after[name] = time.perf_counter() - started
    return Measured(interleaved(steps, rounds, label=label), ready_after, left_out)


def measure_model(model: Model, quick: bool) -> Measured:
    reason = "--quick compiles nothing" if quick else model.uncompiled
    taking_part = {name: build for name, build in CONTENDERS.items() if name not in COMPILED or not reason}
    if not reason:
        torch._dynamo.reset()  # what the models before made it compile
    groups = make_groups(model.shapes, model.group_each)
    measured = measure(groups, taking_part, QUICK_ROUNDS if quick else model.rounds, model.title)
    if reason:
        measured.left_out.update(dict.fromkeys(COMPILED, reason))
    gc.collect()
    return measured


def measure_lines(shapes: dict[int, list[Shape]], rounds: int, label: str) -> Lines:
    """Microseconds of those drawn, at each place on the axis."""
    lines: Lines = {name: {} for name in DRAWN}
    for place, chosen in shapes.items():
        times = measure(make_groups(chosen), DRAWN, rounds, f"{place} {label}").times
        for name, seconds in times.items():
            lines[name][place] = spread([1e6 * value for value in seconds])
        gc.collect()
    return lines


# -- the tables -------------------------------------------------------------------------------------


def table(corner: str, names: list[str], models: dict[str, Measured], cell: Callable[[str, str], str]) -> str:
    """A row per contender, a column per model."""
    rows = []
    for name in names:
        cells = ["left out" if name in measured.left_out else cell(key, name) for key, measured in models.items()]
        rows.append([name, *cells])
    return markdown_table([corner, *(MODELS[key].title for key in models)], rows)


def report(models: dict[str, Measured], by_size: Lines, command: str, where: dict[str, Any]) -> str:
    compared = {key: ratios(measured.times, REFERENCE) for key, measured in models.items()}
    names, others = [*CONTENDERS], [name for name in CONTENDERS if name != REFERENCE]
    *_, (size, copied) = by_size[COPY].items()
    return f"""\
`{command}`

{environment_line(where)}

How many times as long as with {REFERENCE.replace(", ", " and ")} a step takes: median and [quartiles] of the ratios
of each round. Above 1, CyclicSGD is faster:

{table("times as long", others, models, lambda key, name: compared[key][name].text())}

Microseconds of a step, median and [quartiles]:

{table("microseconds", names, models, lambda key, name: spread(models[key].times[name]).text(scale=1e6))}

{"".join(remarks(models))}`copy_` of a large tensor reads and writes {COPIED * size / copied.median / 1e3:.1f} GB/s.
"""


def remarks(models: dict[str, Measured]) -> Iterator[str]:
    """Who was left out, and how long compiling took."""
    for key, measured in models.items():
        for name, why in measured.left_out.items():
            yield f"- {MODELS[key].title}: left out {name}: {why}.\n"
        for name in (name for name in COMPILED if name in measured.ready_after):
            yield f"- {MODELS[key].title}: {name} was ready after {measured.ready_after[name]:.0f} seconds.\n"
    yield "\n"


# -- running it -------------------------------------------------------------------------------------


def experiment(options: Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    started, command = time.perf_counter(), command_line(__file__)
    where = environment("torch-optimi", "schedulefree")
    models = {key: measure_model(MODELS[key], options.quick) for key in options.models}
    counts, sizes = sweep(options.quick)
    rounds = QUICK_ROUNDS if options.quick else 30
    by_tensors = measure_lines({count: count * [(ELEMENTS,)] for count in counts}, rounds, "tensors")
    by_size = measure_lines({size: [(size,)] for size in sizes}, rounds, "parameters")
    text = report(models, by_size, command, where)
    record = {
        "command": command,
        "environment": where,
        "seconds": round(time.perf_counter() - started, 1),
        "configuration": configuration(),
        "models": {key: as_record(MODELS[key], measured) for key, measured in models.items()},
        "microseconds": {f"by tensors of {ELEMENTS}": as_dicts(by_tensors), "by parameters": as_dicts(by_size)},
    }
    image = picture(by_tensors, by_size, ELEMENTS)
    files = {"step_cost.json": as_json(record), "step_cost.md": text.encode(), "step_cost.png": image}
    write_results(options.out, files)
    print(f"\n{text}\n{record['seconds']} seconds; results in {options.out}")


def sweep(quick: bool) -> tuple[list[int], list[int]]:
    """The places on the axes: numbers of tensors, and sizes of a single one."""
    if quick:
        return [1, 16, 256], [10**3, 10**5, 10**7]
    return [4**i for i in range(6)], [round(10 ** (3 + 5 * i / 8)) for i in range(9)]


def configuration() -> dict[str, Any]:
    return {
        "momentum": MOMENTUM,
        "total_steps": TOTAL_STEPS,
        "step_size_up": STEP_SIZE_UP,
        "serial_below": SMALL,
        "copied_bytes_per_parameter": COPIED,
    }


def as_record(model: Model, measured: Measured) -> dict[str, Any]:
    return {
        "title": model.title,
        "tensors": len(model.shapes),
        "parameters": sum(map(math.prod, model.shapes)),
        "groups": len(model.shapes) if model.group_each else 1,
        "left_out": measured.left_out,
        "ready_after": measured.ready_after,
        "ratios": {name: each._asdict() for name, each in ratios(measured.times, REFERENCE).items()},
        "seconds": rounded(measured.times),
    }


def as_dicts(lines: Lines) -> dict[str, dict[int, dict[str, float]]]:
    return {name: {place: each._asdict() for place, each in line.items()} for name, line in lines.items()}


def main() -> int:
    parser = timing_options(__doc__.splitlines()[0], quick="5 rounds, nothing compiled, fewer points in the picture")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS], help="(default: all)")
    options = parser.parse_args()
    use_threads(options.threads, parser)
    return run_benchmark(lambda: experiment(options), needs=("matplotlib",))


if __name__ == "__main__":
    raise SystemExit(main())
