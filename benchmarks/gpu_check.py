"""Is the device path right on this GPU, and how fast is it: parity, graphs, GradScaler, bandwidth, training steps.

Run it with::

    pip install '.[bench]'
    python benchmarks/gpu_check.py              # under 8 minutes; let nothing else use the GPU meanwhile
    python benchmarks/gpu_check.py --quick      # 5 rounds, 10,000 replays
    python benchmarks/gpu_check.py --dry-run    # the script's own logic, on the CPU: no graph, tiny sizes

and find in ``build/benchmarks`` (or where ``--out`` says) ``gpu_<device>.md``, the tables, and ``gpu_<device>.json``,
every number behind them. The exit status is 1 if a check failed, and 2 if there is no GPU. What is slower than hoped
for is said in the table of goals, and changes nothing of the exit status.

First come the checks, each against the host's update or the policy's own ``at()``. Then a step, by itself: bytes per
second are 20 per parameter in float32 (parameter, gradient and buffer read, parameter and buffer written), beside a
device copy that moves as many. Then whole training steps. SGD(fused=True) is captured, too, with its rates in tensors;
between replays OneCycleLR writes into them, or schedules an SGD of plain numbers whose rates are copied into them.
Contenders take turns (``harness.interleaved``); a sample is as many steps as last some milliseconds, and waits for the
device once, at its end.
"""

from __future__ import annotations

import copy
import gc
import itertools
import math
import re
import time
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from step_cost import cached, fused, sgd_of_tensors, stepping, values_copied
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from training_step import Block, convolution, resnet18

from cyclic_optim import CyclicSGD, OneCycle, Policy, Triangular

BYTES = 20  # per parameter and step
PEAK, MOMENTUM, TOTAL_STEPS = 1e-3, 0.9, 10**5  # more than are timed
BATCH_SECONDS = 4e-3  # steps between two waits for the device
BLOCKS = ((1024, 4), (2048, 4), (2048, 8), (4096, 16))  # elements of a program, and its warps
OUT_OF_TIME = 7 * 60  # seconds after which nothing new is measured

Shape = tuple[int, ...]


class CheckError(Exception):
    """What a check found."""


class Setting(NamedTuple):
    """Where it runs, and how much of it."""

    device: str
    replays: int
    steps: int
    rounds: int
    started: float

    @property
    def is_dry(self) -> bool:
        return self.device == "cpu"

    def synchronize(self) -> None:
        if not self.is_dry:
            torch.cuda.synchronize()

    def is_late(self) -> bool:
        return time.perf_counter() - self.started > OUT_OF_TIME

    def captured(self, step: Call, warmups: int = 3) -> Call:
        """A graph of ``step``, after some steps outside of it; on the CPU, the step itself."""
        if self.is_dry:
            for _ in range(warmups):
                step()
            return step
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(warmups):
                step()
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        # A graph knows addresses: what it reads and writes must live as long as it is replayed.
        return lambda kept=step: graph.replay()


# -- the networks -----------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """Three convolutions, and a way round them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *convolution(inputs, width, 1),
            nn.ReLU(inplace=True),
            *convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *convolution(width, outputs, 1),
        )
        around = convolution(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else ()
        self.shortcut = nn.Sequential(*around)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet50(width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> nn.Module:
    inputs, blocks = width, []
    for stage, depth in enumerate(depths):
        for index in range(depth):
            blocks.append(Bottleneck(inputs, width * 2**stage, 2 if stage > 0 and index == 0 else 1))
            inputs = 4 * width * 2**stage
    stem = [*convolution(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def conv_net(widths: tuple[int, ...] = (32, 64, 128), classes: int = 10) -> nn.Module:
    """0.3 M parameters: what fits into many a first course."""
    blocks = [Block(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*convolution(3, widths[0], 3), nn.ReLU(inplace=True), *blocks, *head)


class Attention(nn.Module):
    """Causal, and what follows it in a layer of GPT-2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.inputs(self.norm(x)).view(shape).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.outputs(attended.transpose(1, 2).reshape(x.shape))
        return x + self.perceptron(self.norm_after(x))


class GPT2(nn.Module):
    """124 M parameters; the output layer is the embedding."""

    def __init__(self, width: int = 768, layers: int = 12, vocabulary: int = 50257, context: int = 1024) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Parameter(torch.zeros(context, width))
        self.layers = nn.Sequential(*(Attention(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        return F.linear(self.norm(self.layers(x)), self.tokens.weight).flatten(0, 1)


class Task(NamedTuple):
    title: str
    make: Callable[[], nn.Module]
    batch: tuple[int, ...]
    classes: int
    of_tokens: bool = False

    def data(self, device: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        labels = self.batch if self.of_tokens else self.batch[:1]
        targets = torch.randint(self.classes, labels, generator=generator).flatten().to(device)
        if self.of_tokens:
            return torch.randint(self.classes, self.batch, generator=generator).to(device), targets
        return torch.randn(self.batch, generator=generator).to(device), targets


TASKS = {
    "conv net": Task("conv net, 0.3 M, batch of 32, 32 x 32", conv_net, (32, 3, 32, 32), 10),
    "ResNet-50": Task("ResNet-50, 26 M, batch of 32, 160 x 160", resnet50, (32, 3, 160, 160), 1000),
    "GPT-2": Task("GPT-2, 124 M, 4 x 512 tokens", GPT2, (4, 512), 50257, of_tokens=True),
}
DRY_TASKS = {
    "conv net": Task("tiny conv net", lambda: conv_net((4, 8)), (2, 3, 8, 8), 10),
    "ResNet-50": Task("tiny ResNet", lambda: resnet50(4, (1, 1), 10), (2, 3, 32, 32), 10),
    "GPT-2": Task("tiny GPT-2", lambda: GPT2(8, 1, 11, 6), (2, 6), 11, of_tokens=True),
}


def shapes_of(make: Callable[[], nn.Module]) -> list[Shape]:
    with torch.device("meta"):
        return [tuple(param.shape) for param in make().parameters()]


MODELS: dict[str, Callable[[], list[Shape]]] = {
    "0.3 M": lambda: shapes_of(conv_net),
    "12 M": lambda: shapes_of(resnet18),
    "26 M": lambda: shapes_of(resnet50),
    "124 M": lambda: shapes_of(GPT2),
    "350 M": lambda: shapes_of(lambda: GPT2(1024, 24)),
    "1,000 of 32": lambda: 1000 * [(32,)],
    "10,000 of 32": lambda: 10_000 * [(32,)],
    "26 M, 161 groups": lambda: shapes_of(resnet50),
}
LARGE = ("12 M", "26 M", "26 M, 161 groups", "124 M", "350 M")  # whose goal is a share of a copy's bandwidth
GROUPED = ("26 M, 161 groups", "10 groups of 32")  # each tensor in a group of its own, with values of its own
DRY_MODELS: dict[str, Callable[[], list[Shape]]] = {
    "tiny conv net": lambda: shapes_of(DRY_TASKS["conv net"].make),
    "tiny ResNet": lambda: shapes_of(DRY_TASKS["ResNet-50"].make),
    "10 of 32": lambda: 10 * [(32,)],
    "10 groups of 32": lambda: 10 * [(32,)],
}


# -- the checks -------------------------------------------------------------------------------------


def need(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def cycle() -> Policy:
    """Momentum moves, too, and is exactly 0 once per cycle."""
    return Triangular(37, cycle_momentum=True, base_momentum=0.0, max_momentum=0.9)


def odd_groups(device: str) -> list[dict[str, Any]]:
    """Tensors of every kind that the kernel can meet, in three groups; the same ones on each call."""
    generator = torch.Generator().manual_seed(0)

    def grow(*shape: int, dtype: torch.dtype = torch.float32, offset: int = 0) -> Tensor:
        numbers = torch.randn(offset + math.prod(shape), generator=generator).to(device, dtype)
        return numbers[offset:].view(shape).requires_grad_()

    laid_out = grow(8, 3, 5, 5).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    gappy = grow(40, 6).detach()[:, ::2].requires_grad_()
    plain = [grow(1000), grow(1024), grow(4097), grow(), grow(0), grow(3, 5, 7), grow(2048, offset=1), laid_out, gappy]
    half = [grow(n, dtype=dtype) for dtype in (torch.bfloat16, torch.float16) for n in (7, 1024, 3001)]
    double = [grow(100, dtype=torch.float64)]
    return [
        {"params": [*plain, *double], "lr": 0.1, "weight_decay": 0.01},
        {"params": half, "lr": 0.05, "dampening": 0.3},
        {"params": [grow(1025), grow(64, 33)], "lr": 0.02, "nesterov": True, "maximize": True},
    ]


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def error_of(tensors: list[Tensor], others: list[Tensor]) -> Tensor:
    """The largest difference, in roundings; the device has its rates in float32, whatever the parameter."""
    worst = []
    for own, other in zip(tensors, others, strict=True):
        rounding = max(torch.finfo(own.dtype).eps, torch.finfo(torch.float32).eps)
        if own.numel():
            worst.append(((own.double() - other.double()).abs() / (rounding * (1 + other.double().abs()))).amax())
    return torch.stack(worst).amax().detach()


def check_kernel(setting: Setting) -> str:
    """The Triton kernel is in use, and not the portable update."""
    optimizer = CyclicSGD(odd_groups(setting.device), lr=0.1, policy=cycle(), capturable=True)
    for param in params_of(optimizer):
        param.grad = torch.ones_like(param)
    optimizer.step()
    name = update_in_use(optimizer)
    need(setting.is_dry or name == "TritonUpdate", f"need TritonUpdate in use, got {name}")
    return f"not checked: there is no GPU, and {name} in use" if setting.is_dry else name


def update_in_use(optimizer: CyclicSGD) -> str:
    return type(optimizer._schedules.update._built.update).__name__


def check_parity(setting: Setting, captured: bool = False) -> str:
    """Every step equals the host's, to a rounding: skips from the first step on, all kinds of tensors, late gradients.

    Both start each step from the same numbers, as half precision would amplify a rounding from step to step. Captured,
    all parameters have gradients that stay where they are; else each step has new ones.
    """
    pair = [
        CyclicSGD(odd_groups(setting.device), lr=0.1, momentum=0.9, policy=cycle(), capturable=capturable)
        for capturable in (True, False)
    ]
    optimizer, host = pair
    params, host_params = map(params_of, pair)
    for each in pair:
        each.found_inf, each.grad_scale = (torch.full((), value, device=setting.device) for value in (0.0, 4.0))
    warmups, step = 0, optimizer.step
    if captured:
        warmups = 3
        for param in (*params, *host_params):
            param.grad = torch.zeros_like(param)
        step = setting.captured(step, warmups)
        for _ in range(warmups):
            host.step()
    generator = torch.Generator(setting.device).manual_seed(2)
    worst, skipped = torch.zeros((), dtype=torch.float64, device=setting.device), 0
    for count in range(setting.steps):
        skip = count % 11 == 0
        skipped += skip
        for i, (param, host_param) in enumerate(zip(params, host_params, strict=True)):
            grad = math.inf if skip else 4.0
            grad = grad * torch.randn(param.shape, generator=generator, device=param.device).to(param.dtype)
            if (count + i) % 5 == 0 and grad.dim() > 1:
                grad = grad.transpose(0, -1).contiguous().transpose(0, -1)
            if captured:
                param.grad.copy_(grad)
                host_param.grad.copy_(grad)
            else:
                is_late = count < 50 and i % 3 == 1
                param.grad, host_param.grad = (None, None) if is_late else (grad, grad.clone())
        for each in pair:
            each.found_inf.fill_(2.0 * skip)
        step()
        host.step()
        worst = torch.maximum(worst, error_of(params, host_params))
        take_over(optimizer, host)
    roundings = worst.item()
    need(roundings <= 16, f"need a difference of 16 roundings at most, got {roundings:.3g}")
    applied, expected = int(optimizer.param_groups[0]["schedule_step"]), warmups + setting.steps - skipped
    need(applied == expected, f"need {expected} steps counted, got {applied}")
    return f"{setting.steps} steps, {skipped} skipped: at most {roundings:.2g} roundings apart"


def take_over(optimizer: CyclicSGD, host: CyclicSGD) -> None:
    """The host's parameters and buffers, into the device's."""
    with torch.no_grad():
        for param, given in zip(params_of(optimizer), params_of(host), strict=True):
            param.copy_(given)
            buffer = host.state.get(given, {}).get("momentum_buffer")
            if buffer is not None:
                optimizer.state[param]["momentum_buffer"].copy_(buffer)


def perceptron(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(33, 65), nn.Tanh(), nn.Linear(65, 7)).to(device)


def check_captured_training(setting: Setting) -> str:
    """A captured training step equals the host's; steps outside the graph and a checkpoint loaded in between, too."""
    inputs, targets = torch.zeros(16, 33, device=setting.device), torch.zeros(16, 7, device=setting.device)
    model, host_model = perceptron(setting.device), perceptron(setting.device)
    policy = Triangular(101, cycle_momentum=True)
    optimizer = CyclicSGD(model.parameters(), lr=0.05, policy=policy, capturable=True)
    host = CyclicSGD(host_model.parameters(), lr=0.05, policy=policy)
    generator = torch.Generator(setting.device).manual_seed(3)

    def training(net: nn.Module, its: torch.optim.Optimizer) -> Call:
        def step() -> None:
            its.zero_grad()
            F.mse_loss(net(inputs), targets).backward()
            its.step()

        return step

    eager, host_step = training(model, optimizer), training(host_model, host)
    replay = setting.captured(eager)
    for _ in range(3):
        host_step()
    kept = [param.grad for param in model.parameters()]  # the graph writes and reads them
    checkpoint: Any = None
    for step in range(setting.steps):
        inputs.normal_(generator=generator)
        targets.normal_(generator=generator)
        # An eager step makes gradients of its own: the graph must go on with those that it captured.
        (eager if step % 100 == 50 else replay)()
        host_step()
        if step == setting.steps // 3:
            both = (optimizer, model), (host, host_model)
            checkpoint = copy.deepcopy([(each.state_dict(), net.state_dict()) for each, net in both])
        if step == setting.steps // 2:
            for (state, weights), each, net in zip(checkpoint, (optimizer, host), (model, host_model), strict=True):
                each.load_state_dict(state)
                net.load_state_dict(weights)
    del kept
    worst = error_of([*model.parameters()], [*host_model.parameters()]).item()
    need(worst <= 10_000, f"need weights equal to 10,000 roundings, got {worst:.3g}")
    counted = int(optimizer.param_groups[0]["schedule_step"])
    expected = host.param_groups[0]["schedule_step"]
    need(counted == expected, f"need {expected} steps counted, got {counted}")
    return f"{setting.steps} replays, eager steps among them, a checkpoint loaded: {worst:.2g} roundings apart"


def check_replays(setting: Setting, policy: Policy) -> str:
    """As many steps counted as replays, and lr and momentum are the policy's in every single one."""
    param = torch.ones(3, device=setting.device, requires_grad=True)
    param.grad = torch.zeros_like(param)
    peak = 0.3
    optimizer = CyclicSGD([param], lr=peak, momentum=0.9, policy=policy, capturable=True)
    group, warmups = optimizer.param_groups[0], 3
    trace = torch.zeros(setting.replays + warmups, 2, device=setting.device)

    def step() -> None:
        row = torch.stack([group["lr"], group["momentum"]]).reshape(1, 2)
        trace.index_copy_(0, group["schedule_step"].reshape(1), row)
        optimizer.step()

    replay = setting.captured(step, warmups)
    for _ in range(setting.replays):
        replay()
    counted, total = int(group["schedule_step"]), setting.replays + warmups
    need(counted == total, f"need {total} steps counted after {setting.replays} replays, got {counted}")
    said = [policy.at(i) for i in range(total)]
    expected = torch.tensor([(peak * f, 0.9 if m is None else m) for f, m, _ in said], dtype=torch.float64)
    apart = ((trace.double().cpu() - expected).abs() / expected.abs().clamp(min=1e-30)).amax().item()
    need(apart <= 1e-7, f"need a trace within 1e-7 of the policy's, got {apart:.3g}")
    return f"{setting.replays} replays: step == replays, and the trace is the policy's to {apart:.1g}"


def check_grad_scaler(setting: Setting) -> str:
    """GradScaler inside the graph: steps with an overflow advance nothing, on the first replay as on later ones."""
    overflowing = {0, 1, 2, 17, 18, setting.steps // 2}
    pairs = []
    inputs = torch.zeros(16, 33, device=setting.device)
    for capturable in (True, False):
        model = perceptron(setting.device)
        # The host's own update decides on the host: it takes found_inf as it comes.
        optimizer = CyclicSGD(model.parameters(), lr=0.01, policy=Triangular(23), capturable=capturable)
        scaler = torch.amp.GradScaler(setting.device, init_scale=2.0**10, growth_interval=40)
        pairs.append((model, optimizer, scaler))

    def training(net: nn.Module, its: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Call:
        def step() -> None:
            its.zero_grad()
            scaler.scale(net(inputs).square().mean()).backward()
            scaler.step(its)
            scaler.update()

        return step

    generator = torch.Generator(setting.device).manual_seed(4)
    inputs.normal_(generator=generator)
    replay, host_step = setting.captured(training(*pairs[0])), training(*pairs[1])
    for _ in range(3):
        host_step()
    for step in range(setting.steps):
        inputs.normal_(generator=generator)
        if step in overflowing:
            inputs[0, 0] = math.inf
        replay()
        host_step()
    (model, optimizer, scaler), (host_model, _, host_scaler) = pairs
    counted, applied = int(optimizer.param_groups[0]["schedule_step"]), 3 + setting.steps - len(overflowing)
    need(counted == applied, f"need {applied} steps counted of {3 + setting.steps}, got {counted}")
    scales = scaler.get_scale(), host_scaler.get_scale()
    need(scales[0] == scales[1], f"need the host's loss scale {scales[1]}, got {scales[0]}")
    worst = error_of([*model.parameters()], [*host_model.parameters()]).item()
    need(worst <= 10_000, f"need weights equal to 10,000 roundings, got {worst:.3g}")
    return f"{len(overflowing)} of {setting.steps} replays skipped, nothing else; loss scale {scales[0]:g} as eagerly"


def check_synchronization(setting: Setting) -> str:
    """No step waits for the device: neither with gradients that stay nor with new ones, scaled or not."""
    optimizer = CyclicSGD(odd_groups(setting.device), lr=0.1, momentum=0.9, policy=cycle(), capturable=True)
    params, number = params_of(optimizer), torch.zeros((), device=setting.device)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    with no_synchronization(setting):
        for step in range(20):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            for param in params:
                param.grad = torch.zeros_like(param) if param.grad is None else param.grad
            optimizer.found_inf, optimizer.grad_scale = (number, number + 1) if step % 3 else (None, None)
            optimizer.step()
    return "not checked: there is no GPU" if setting.is_dry else "20 steps in the debug mode 'error'"


@contextmanager
def no_synchronization(setting: Setting) -> Iterator[None]:
    if setting.is_dry:
        yield
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is a prototype, torch says
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


CHECKS: dict[str, Callable[[Setting], str]] = {
    "the Triton kernel is in use": check_kernel,
    "parity with the host's update": check_parity,
    "parity with the host's update, captured": lambda setting: check_parity(setting, captured=True),
    "captured training equals eager training": check_captured_training,
    "replays of a cycle": lambda setting: check_replays(setting, Triangular(999, cycle_momentum=True)),
    "replays past a policy's end": lambda setting: check_replays(setting, OneCycle(max(2, setting.replays * 6 // 10))),
    "GradScaler inside a graph": check_grad_scaler,
    "no synchronization": check_synchronization,
}


class Checked(NamedTuple):
    passed: bool
    says: str
    seconds: float


def run_check(check: Callable[[Setting], str], setting: Setting) -> Checked:
    started = time.perf_counter()
    try:
        says, passed = check(setting), True
        setting.synchronize()
    except CheckError as error:
        says, passed = str(error), False
    except Exception as error:  # one that fails must not keep the others from being seen
        traceback.print_exc()
        says, passed = f"{type(error).__name__}: {error}".splitlines()[0], False
    return Checked(passed, says, round(time.perf_counter() - started, 2))


# -- the speed of a step ----------------------------------------------------------------------------

COPY = "device copy of as many bytes"
TORCH_STEP, TORCH_BOTH = "SGD(fused=True)", "SGD(fused=True), OneCycleLR"
TORCH_OP = "torch's fused op, captured (lr and momentum frozen)"
TORCH_CAPTURED = "SGD(fused=True, lr=tensor), captured, OneCycleLR (momentum frozen)"
TORCH_COPIED = "SGD(fused=True, lr=tensor), captured, OneCycleLR's rate copied (momentum frozen)"
HOST, EAGER, CAPTURED = "CyclicSGD", "CyclicSGD(capturable=True)", "CyclicSGD(capturable=True), captured"
KERNELS = {f"kernel alone, BLOCK {block}, {warps} warps, captured": (block, warps) for block, warps in BLOCKS}
KERNEL = next(iter(KERNELS))


def grown(shapes: list[Shape], device: str) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    params = [torch.randn(shape, generator=generator, device=device).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = 1e-3 * torch.randn(param.shape, generator=generator, device=device)
    return params


def rates_of_one_cycle(optimizer: Optimizer) -> LRScheduler:
    """OneCycleLR without momentum, which is a number in a captured graph."""
    return OneCycleLR(optimizer, PEAK, total_steps=TOTAL_STEPS, cycle_momentum=False)


def captured_sgd(optimizer: SGD, step: Call, name: str, setting: Setting) -> Call:
    """A captured step of torch's SGD, whose rates are tensors, and after each replay the step of a scheduler.

    The scheduler writes into the tensors itself (``TORCH_CAPTURED``), or its rates are copied into them.
    """
    follow = (
        rates_of_one_cycle(optimizer).step if name == TORCH_CAPTURED else values_copied(optimizer, rates_of_one_cycle)
    )
    replay = setting.captured(step)

    def step_both() -> None:
        replay()
        follow()

    return step_both


def steps_of(params: list[Tensor], setting: Setting, grouped: bool = False) -> dict[str, Call]:
    """The contenders, over the same parameters and gradients, each with buffers of its own."""

    def groups() -> list[dict[str, Any]]:
        return [{"params": [param]} for param in params] if grouped else [{"params": params}]

    size = sum(param.numel() for param in params)
    source = torch.ones(BYTES * size // 8, device=setting.device)  # 4 bytes each, read and written
    target = torch.zeros_like(source)
    options: dict[str, Any] = {"lr": PEAK, "momentum": MOMENTUM}
    policy = OneCycle(TOTAL_STEPS, cycle_momentum=True) if not setting.is_dry else OneCycle(1000)
    plain, scheduled = (SGD(groups(), **options, fused=True) for _ in range(2))
    scheduler = OneCycleLR(scheduled, PEAK, total_steps=TOTAL_STEPS)
    host = CyclicSGD(groups(), **options, policy=policy)
    eager, graphed = (CyclicSGD(groups(), **options, policy=policy, capturable=True) for _ in range(2))
    lists = cached({"params": params})

    def replayed(name: str) -> Call:
        rated = [{**group, "lr": PEAK} for group in groups()]
        optimizer = sgd_of_tensors(rated, setting.device, fused=True)
        return captured_sgd(optimizer, stepping(optimizer), name, setting)

    def step_both() -> None:
        scheduled.step()
        scheduler.step()

    steps: dict[str, Call] = {
        COPY: lambda: target.copy_(source),
        TORCH_STEP: plain.step,
        TORCH_BOTH: step_both,
        HOST: host.step,
        EAGER: eager.step,
        TORCH_OP: setting.captured(lambda: fused(lists, PEAK)),
        TORCH_CAPTURED: replayed(TORCH_CAPTURED),
        TORCH_COPIED: replayed(TORCH_COPIED),
        CAPTURED: setting.captured(graphed.step),
    }
    if not setting.is_dry:
        steps |= {name: kernel_alone(lists, *shape, setting, grouped) for name, shape in KERNELS.items()}
    return steps


def kernel_alone(lists: Any, block: int, warps: int, setting: Setting, grouped: bool) -> Call:
    from cyclic_optim.device.portable import DeviceRow
    from cyclic_optim.device.triton_sgd import TritonUpdate

    params, grads, buffers = lists
    values = torch.tensor((len(params) if grouped else 1) * [(PEAK, MOMENTUM)], device=setting.device)
    rows = [
        DeviceRow(param, buffer, None, lr, momentum, 0.0, 0.0, False, False)
        for param, buffer, (lr, momentum) in zip(params, buffers, values.expand(len(params), 2), strict=True)
    ]
    update = TritonUpdate(rows, block=block, warps=warps)
    return setting.captured(lambda: update(grads, None, None))


def timed(steps: dict[str, Call], setting: Setting, label: str) -> Times:
    """Seconds per step; a sample waits for the device once."""
    batches = {name: batch_of(step, setting) for name, step in steps.items()}
    times = interleaved({name: batch for name, (batch, _) in batches.items()}, setting.rounds, label=label)
    return {name: [value / batches[name][1] for value in seconds] for name, seconds in times.items()}


def batch_of(step: Call, setting: Setting) -> tuple[Call, int]:
    def batch(repetitions: int) -> None:
        for _ in itertools.repeat(None, repetitions):
            step()
        setting.synchronize()

    batch(3)
    started = time.perf_counter()
    batch(5)
    repetitions = min(1000, max(1, math.ceil(5 * BATCH_SECONDS / (time.perf_counter() - started))))
    return lambda: batch(repetitions), repetitions


def measure_model(shapes: list[Shape], setting: Setting, label: str) -> Times:
    steps = steps_of(grown(shapes, setting.device), setting, grouped=label in GROUPED)
    times = timed(steps, setting, label)
    del steps
    release(setting)
    return times


def release(setting: Setting) -> None:
    gc.collect()
    if not setting.is_dry:
        with suppress(RuntimeError):  # of a device that failed: what was found out is still to be written
            torch.cuda.empty_cache()


# -- the speed of training --------------------------------------------------------------------------


TRAININGS = (TORCH_BOTH, HOST, TORCH_CAPTURED, TORCH_COPIED, CAPTURED)


def training(task: Task, name: str, setting: Setting) -> Call:
    """A training step in bfloat16 autocast: forward, backward, update, and the schedule's step where there is one."""
    torch.manual_seed(0)
    model = task.make().to(setting.device)
    inputs, targets = task.data(setting.device)
    optimizer = optimizer_of(model, name, setting)

    def step() -> None:
        optimizer.zero_grad()
        # Without its cache, which a graph would keep pointing to.
        with torch.autocast(setting.device, torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(model(inputs).float(), targets)
        loss.backward()
        optimizer.step()

    if name in (TORCH_CAPTURED, TORCH_COPIED):
        return captured_sgd(optimizer, step, name, setting)
    if name == CAPTURED:
        return setting.captured(step)
    if name == HOST:
        return step
    scheduler = OneCycleLR(optimizer, PEAK, total_steps=TOTAL_STEPS)

    def step_both() -> None:
        step()
        scheduler.step()

    return step_both


def optimizer_of(model: nn.Module, name: str, setting: Setting) -> Any:
    params = [*model.parameters()]
    if name == TORCH_BOTH:
        return SGD(params, lr=PEAK, momentum=MOMENTUM, fused=True)
    if name in (TORCH_CAPTURED, TORCH_COPIED):
        return sgd_of_tensors([{"params": params, "lr": PEAK}], setting.device, fused=True)
    policy = OneCycle(1000 if setting.is_dry else TOTAL_STEPS)
    return CyclicSGD(params, lr=PEAK, momentum=MOMENTUM, policy=policy, capturable=name == CAPTURED)


def measure_task(task: Task, setting: Setting) -> Times:
    steps = {name: training(task, name, setting) for name in TRAININGS}
    times = timed(steps, setting, task.title)
    del steps
    release(setting)
    return times


# -- the tables -------------------------------------------------------------------------------------


def bandwidth(times: Times, size: int) -> dict[str, float]:
    """Gigabytes per second, by contender."""
    return {name: BYTES * size / spread(seconds).median / 1e9 for name, seconds in times.items()}


def goals(steps: dict[str, Times], trainings: dict[str, Times], checks: dict[str, Checked]) -> list[list[str]]:
    """Each goal, what was measured, and whether it is met."""
    rows = []
    for key in (key for key in LARGE if key in steps):
        share = ratios(steps[key], KERNEL if KERNEL in steps[key] else CAPTURED)[COPY].median
        rows.append([f"{key}: at least 0.9 of a copy's bandwidth", f"{share:.2f}", verdict(share >= 0.9)])
    for key, times in steps.items():
        # Against a step of torch's without a schedule; captured against captured; the update alone against the same.
        pairs = ((EAGER, TORCH_STEP), (CAPTURED, TORCH_STEP), (CAPTURED, TORCH_CAPTURED), (KERNEL, TORCH_OP))
        for own, other in pairs:
            if own in times:
                times_as_long = ratios(times, own)[other].median
                goal = f"{key}: {own}, not slower than {other}"
                rows.append([goal, f"{times_as_long:.2f} x", verdict(times_as_long >= 1)])
    if "conv net" in trainings:
        times_as_long = ratios(trainings["conv net"], CAPTURED)[TORCH_BOTH].median
        rows.append(
            ["conv net: captured training 3 times as fast", f"{times_as_long:.2f} x", verdict(times_as_long >= 3)]
        )
    for key, times in trainings.items():
        times_as_long = ratios(times, CAPTURED)[TORCH_CAPTURED].median
        goal = f"{key}: captured training, not slower than with {TORCH_CAPTURED}"
        rows.append([goal, f"{times_as_long:.2f} x", verdict(times_as_long >= 1)])
    waits = checks.get("no synchronization")
    if waits is not None:
        rows.append(["no synchronization", waits.says, verdict(waits.passed)])
    return rows


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def report(
    checks: dict[str, Checked],
    steps: dict[str, Times],
    sizes: dict[str, int],
    trainings: dict[str, Times],
    left_out: list[str],
    reached: list[list[str]],
    setting: Setting,
    where: str,
    command: str,
) -> str:
    def table(corner: str, of_each: dict[str, Times], cell: Callable[[str, str], str]) -> str:
        names = [*dict.fromkeys(name for times in of_each.values() for name in times)]
        rows = [[name, *(cell(key, name) if name in of_each[key] else "" for key in of_each)] for name in names]
        return markdown_table([corner, *of_each], rows)

    speeds = {key: bandwidth(times, sizes[key]) for key, times in steps.items()}
    compared = {key: ratios(times, TORCH_BOTH) for key, times in trainings.items()}
    checked = [[name, "passed" if c.passed else "FAILED", c.says.replace("|", "/"), f"{c.seconds:.1f}"]
               for name, c in checks.items()]  # fmt: skip
    dry = "**A dry run: on the CPU, without a graph, at tiny sizes. No number here says anything about a GPU.**\n\n"
    return f"""\
`{command}`

{dry if setting.is_dry else ""}{where}

{markdown_table(["check", "result", "", "seconds"], checked)}

Microseconds of a step, median and [quartiles]:

{table("microseconds", steps, lambda key, name: spread(steps[key][name]).text(scale=1e6))}

GB/s at {BYTES} bytes per parameter:

{table("GB/s", steps, lambda key, name: f"{speeds[key][name]:,.0f}")}

Microseconds of a training step, median and [quartiles]:

{table("microseconds", trainings, lambda key, name: spread(trainings[key][name]).text(scale=1e6))}

The same as a share of {TORCH_BOTH.replace(", ", " and ")}; below 1 is faster:

{table("share", trainings, lambda key, name: compared[key][name].text())}

{markdown_table(["goal", "measured", ""], reached) if reached else "A dry run has no goals."}
{"".join(f"{chr(10)}- Left out: {what}." for what in left_out)}
"""


# -- running it -------------------------------------------------------------------------------------


def experiment(options: Namespace) -> int:
    """The exit status; its checks come before its measurements."""
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.dry_run:
        torch.set_num_threads(options.threads or 1)
        setting = Setting("cpu", replays=300, steps=60, rounds=2, started=started)
    else:
        many, rounds = (10_000, 5) if options.quick else (100_000, 20)
        setting = Setting("cuda", replays=many, steps=1000, rounds=rounds, started=started)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    gpu = "dry run" if setting.is_dry else torch.cuda.get_device_name()
    where = {**environment("triton"), "GPU": gpu, "CUDA": torch.version.cuda or "none"}
    print(environment_line(where), flush=True)

    checks: dict[str, Checked] = {}
    steps: dict[str, Times] = {}
    trainings: dict[str, Times] = {}
    sizes: dict[str, int] = {}
    left_out: list[str] = []

    def save() -> str:
        """Write what is known so far, lest a crash of the driver takes it along."""
        command, name = command_line(__file__), "gpu_" + re.sub(r"\W+", "_", gpu).strip("_").lower()
        reached = [] if setting.is_dry else goals(steps, trainings, checks)
        text = report(checks, steps, sizes, trainings, left_out, reached, setting, environment_line(where), command)
        record = {
            "command": command,
            "environment": where,
            "dry_run": setting.is_dry,
            "seconds": round(time.perf_counter() - started, 1),
            "checks": {name: check._asdict() for name, check in checks.items()},
            "goals": reached,
            "left_out": left_out,
            "parameters": sizes,
            "step_seconds": {key: rounded(times) for key, times in steps.items()},
            "GB_per_second": {key: bandwidth(times, sizes[key]) for key, times in steps.items()},
            "training_seconds": {key: rounded(times) for key, times in trainings.items()},
        }
        write_results(options.out, {f"{name}.json": as_json(record), f"{name}.md": text.encode()})
        return text

    def measured(key: str, measure: Callable[[], Times]) -> dict[str, Times]:
        """The times, or nothing but a reason."""
        if setting.is_late():
            left_out.append(f"{key}: {OUT_OF_TIME} seconds are over")
            return {}
        try:
            return {key: measure()}
        except Exception as error:
            traceback.print_exc()
            left_out.append(f"{key}: {type(error).__name__}: {error}".splitlines()[0])
            release(setting)
            return {}

    for name, check in CHECKS.items():
        checks[name] = result = run_check(check, setting)
        print(f"{'passed' if result.passed else 'FAILED'}: {name} ({result.seconds} s): {result.says}", flush=True)
        release(setting)
    save()

    tasks = DRY_TASKS if setting.is_dry else TASKS
    # The small ones of each kind first, should time run out.
    trainings |= measured("conv net", lambda: measure_task(tasks["conv net"], setting))
    for key, make in (DRY_MODELS if setting.is_dry else MODELS).items():
        shapes = make()
        sizes[key] = sum(map(math.prod, shapes))
        steps |= measured(key, lambda shapes=shapes, key=key: measure_model(shapes, setting, key))
        save()
    for key in [*tasks][1:]:
        trainings |= measured(key, lambda key=key: measure_task(tasks[key], setting))
        save()
    print(f"\n{save()}\n{time.perf_counter() - started:.1f} seconds; results in {options.out}")
    return 0 if all(check.passed for check in checks.values()) else 1


def main() -> int:
    parser = timing_options(__doc__.splitlines()[0], quick="5 rounds, 10,000 replays")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, without graphs, at tiny sizes")
    options = parser.parse_args()
    use_threads(options.threads, parser)
    if not options.dry_run and not torch.cuda.is_available():
        parser.exit(2, "need a CUDA GPU, got none: --dry-run exercises the script's logic on the CPU\n")
    statuses: list[int] = []
    return run_benchmark(lambda: statuses.append(experiment(options)), needs=()) or statuses[0]


if __name__ == "__main__":
    raise SystemExit(main())
