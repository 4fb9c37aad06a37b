"""Real training recipes: the policy as a user writes it, and the recipe's own formulas.

The formulas are written from the papers' and the projects' descriptions, in plain Python, one step at a time. The
gallery of the documentation draws the policies.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CosineRestarts,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Policy,
    PolynomialDecay,
    Product,
    Sequential,
    Staircase,
    StepDecay,
    Triangular,
    Warmup,
    WarmupStableDecay,
)

N = 7  # steps per epoch: the recipes' own numbers, shortened where nothing depends on them


class Recipe(NamedTuple):
    """A policy, and the recipe's own formulas of the step; ``start`` is the step at which the run begins."""

    source: str
    policy: Policy
    steps: int
    factor: Callable[[int], float]
    momentum: Callable[[int], float] | None = None
    weight_decay: Callable[[int], float] | None = None
    start: int = 0


def half_cosine(x):
    return (1 + math.cos(math.pi * x)) / 2


def between(start, end, x):
    """On the line from start to end, at the fraction x of the way, and at its ends outside."""
    x = min(max(x, 0.0), 1.0)
    return start + (end - start) * x


def by_cosine(start, end, x):
    return end + (start - end) * half_cosine(min(max(x, 0.0), 1.0))


def classification(step):
    epoch = step // N
    return between(0.01, 1, epoch / 5) if epoch < 5 else half_cosine(min(epoch - 5, 85) / 85)


def in_epochs(step, *milestones):
    return 0.1 ** sum(step // N >= milestone for milestone in milestones)


def detection(step):
    return between(0.001, 1, step / 1000) * 0.1 ** sum(step // 1500 >= milestone for milestone in (16, 22))


def speedrun(step, total=400, peak=92):
    return between(0.2, 1, step / peak) if step < peak else between(1, 0.07, (step - peak) / (total - peak))


def averaging(step):
    progress = step // N / 160
    return between(1, 0.5, (progress - 0.5) / 0.4)


def geometric_ensembling(step, cycle=4 * N, low=0.1):
    # The paper counts iterations from 1.
    t = (step % cycle + 1) / cycle
    return (1 - 2 * t) + 2 * t * low if t <= 0.5 else (2 - 2 * t) * low + (2 * t - 1)


def snapshots(step, total=300, models=6):
    cycle = math.ceil(total / models)
    return half_cosine(step % cycle / cycle)


def sgdr(step):
    length = 10 * N
    while step >= length:
        step, length = step - length, 2 * length
    return half_cosine(step / length)


def cyclic_20(step):
    """The peak is ten times the rate that the recipe starts from."""
    if step < 8 * N:
        return by_cosine(0.1, 1, step / (8 * N))
    return by_cosine(1, 1e-5, (step - 8 * N) / (12 * N))


def cyclic_20_momentum(step):
    if step < 8 * N:
        return by_cosine(0.95, 0.85, step / (8 * N))
    return by_cosine(0.85, 0.95, (step - 8 * N) / (12 * N))


def line_down_at_the_end(step, total=1000, down=400):
    return 1.0 if step <= total - down else (total - step) / down


RECIPES = {
    "ResNet on ImageNet": Recipe(
        "PyTorch's examples, `imagenet`; He et al. 2015 (arXiv 1512.03385)",
        Staircase(StepDecay(30, 0.1), N),
        95 * N,
        lambda step: 0.1 ** (step // N // 30),
    ),
    "reference classification": Recipe(
        "torchvision, `references/classification`",
        Staircase(Warmup(CosineDecay(85), 5, start_factor=0.01), N),
        95 * N,
        classification,
    ),
    "reference detection": Recipe(
        "torchvision, `references/detection`",
        Product([LinearRamp(1000, 0.001), Staircase(MultiStepDecay((16, 22), 0.1), 1500)]),
        26 * 1500,
        detection,
    ),
    "segmentation": Recipe(
        "torchvision, `references/segmentation`; Chen et al. 2016 (arXiv 1606.00915)",
        PolynomialDecay(500, 0.9),
        500,
        lambda step: (1 - step / 500) ** 0.9,
    ),
    "medical segmentation": Recipe(
        "nnU-Net, Isensee et al. 2019 (arXiv 1904.08128)",
        Staircase(PolynomialDecay(100, 0.9), N),
        100 * N,
        lambda step: (1 - step // N / 100) ** 0.9,
    ),
    "CIFAR-10 speedrun": Recipe(
        "airbench, Jordan 2024 (arXiv 2404.00498)",
        Sequential([LinearRamp(92, 0.2, 1.0), LinearRamp(308, 1.0, 0.07)], [92]),
        401,
        speedrun,
    ),
    "cifar10-fast": Recipe(
        "David Page's cifar10-fast",
        Warmup(LinearRamp(19 * N, 1.0, 0.0), 5 * N),
        24 * N + 1,
        lambda step: step / (5 * N) if step < 5 * N else 1 - (step - 5 * N) / (19 * N),
    ),
    "stochastic weight averaging": Recipe(
        "Izmailov et al. 2018 (arXiv 1803.05407)",
        Staircase(Sequential([Constant(), LinearRamp(64, 1.0, 0.5)], [80]), N),
        200 * N,
        averaging,
    ),
    "fast geometric ensembling": Recipe(
        "Garipov et al. 2018 (arXiv 1802.10026)",
        Triangular(2 * N, cycle_momentum=False),
        12 * N,
        geometric_ensembling,
        start=2 * N + 1,
    ),
    "snapshot ensembles": Recipe("Huang et al. 2017 (arXiv 1704.00109)", CosineRestarts(50), 300, snapshots),
    "SGDR": Recipe("Loshchilov & Hutter 2017 (arXiv 1608.03983)", CosineRestarts(10 * N, 2), 150 * N, sgdr),
    # mmengine's 500 iterations have the start factor in the first and 1 in the last.
    "MMDetection's 1x": Recipe(
        "MMDetection, `schedule_1x.py`",
        Product([LinearRamp(499, 0.001), Staircase(MultiStepDecay((8, 11), 0.1), 100)]),
        1200,
        lambda step: between(0.001, 1, step / 499) * 0.1 ** sum(step // 100 >= milestone for milestone in (8, 11)),
    ),
    "MMDetection's cyclic 20 epochs": Recipe(
        "MMDetection3D, `cyclic_20e.py`",
        OneCycle(20 * N + 1, pct_start=(8 * N + 1) / (20 * N + 1), div_factor=10, final_div_factor=1e4),
        20 * N + 1,
        cyclic_20,
        momentum=cyclic_20_momentum,
    ),
    "nanochat": Recipe(
        "Karpathy's nanochat",
        Combined(
            lr=Sequential([Constant(), LinearRamp(400, 1.0, 0.0)], [600]),
            momentum=LinearRamp(300, 0.85, 0.95),
            weight_decay=LinearRamp(1000, 1.0, 0.0),
        ),
        1001,
        line_down_at_the_end,
        momentum=lambda step: between(0.85, 0.95, step / 300),
        weight_decay=lambda step: 1 - step / 1000,
    ),
    "warm-up, stable, 1 - sqrt cooldown": Recipe(
        "Hägele et al. 2024 (arXiv 2405.18392)",
        WarmupStableDecay(1000, warmup=0, decay=200, shape="sqrt"),
        1001,
        lambda step: 1.0 if step <= 800 else 1 - math.sqrt((step - 800) / 200),
    ),
}
