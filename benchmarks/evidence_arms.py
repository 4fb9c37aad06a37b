"""The arms of ``evidence.py``: each a way to set the rate, from its peak and the length of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Adam, Optimizer

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CosineRestarts,
    CyclicAdamW,
    CyclicSGD,
    LinearDecay,
    MultiStepDecay,
    OneCycle,
    Policy,
    Triangular,
    Values,
    Warmup,
    WarmupStableDecay,
)

COMMON: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}
ADAMW_DECAY = 0.01
DEFAULT_LR = 1e-3  # of torch.optim.SGD
CYCLE = 5  # epochs of a triangle; every budget is a whole number of them
WARMUP, COOLDOWN = 20, 5  # a 20th of a training warms up, a 5th cools down

Params = Iterator[nn.Parameter]


class Plan(NamedTuple):
    """A training as its optimizer sees it."""

    lr: float
    total_steps: int
    steps_per_epoch: int
    div_factor: float  # of the range: the range test's highest rate by its lowest

    @property
    def warmup(self) -> int:
        return self.total_steps // WARMUP

    @property
    def after_warmup(self) -> int:
        return self.total_steps - self.warmup

    @property
    def cooldown(self) -> int:
        return self.total_steps // COOLDOWN

    @property
    def triangle(self) -> dict[str, Any]:
        steps = CYCLE * self.steps_per_epoch
        return {"step_size_up": steps // 2, "step_size_down": steps - steps // 2, "div_factor": self.div_factor}


@dataclass(frozen=True)
class Rex(Policy):
    """Reflected exponential decay: ``(1 - t) / (1/2 + (1 - t) / 2)`` with ``t = step / total_steps``.

    Source: Chen, Wolfe & Kyrillidis 2021 (arXiv 2107.04197).
    """

    total_steps: int

    def at(self, step: int) -> Values:
        left = max(0, self.total_steps - step) / self.total_steps
        return Values(left / (0.5 + left / 2))

    @property
    def end(self) -> int:
        return self.total_steps


class Arm(NamedTuple):
    optimizer: Callable[[Params, Plan], Optimizer]
    kind: str  # whose range test
    family: str  # whom it is compared with
    has_end: bool = True  # its schedule depends on how long the training is
    is_tuned: bool = True
    is_cooled: bool = False  # branches off for each budget, and cools down


SGD, ADAMW = "SGD", "AdamW"


def sgd(make: Callable[[Plan], Policy], *, weight_decay: float = 5e-4, **options: Any) -> Arm:
    def optimizer(params: Params, plan: Plan) -> Optimizer:
        given = {**COMMON, "weight_decay": weight_decay}
        return CyclicSGD(params, lr=plan.lr, **given, policy=make(plan))

    return Arm(optimizer, SGD, SGD, **options)


def adamw(make: Callable[[Plan], Policy], **options: Any) -> Arm:
    def optimizer(params: Params, plan: Plan) -> Optimizer:
        return CyclicAdamW(params, lr=plan.lr, weight_decay=ADAMW_DECAY, policy=make(plan))

    return Arm(optimizer, ADAMW, ADAMW, **options)


def schedule_free(name: str, family: str, **given: Any) -> Arm:
    def optimizer(params: Params, plan: Plan) -> Optimizer:
        import schedulefree

        # Its documentation recommends a warm-up.
        made = getattr(schedulefree, name)(params, lr=plan.lr, **given, warmup_steps=plan.steps_per_epoch // 2)
        made.train()
        return made

    return Arm(optimizer, name, family, has_end=False)


def cyclical_weight_decay(plan: Plan) -> Policy:
    """Up and down once, to a tenth of the highest value, as in the code of Smith 2022; the rate follows a cosine."""
    up = plan.total_steps // 2
    triangle = Triangular(up, plan.total_steps - up, div_factor=10, cycle_momentum=False)
    return Combined(lr=CosineDecay(plan.total_steps), weight_decay=triangle)


DEFAULT, CONSTANT, COSINE = "SGD, lr=1e-3", "constant", "cosine"
LINEAR, NO_WARMUP = "linear decay, warm-up", "linear decay"
TRIANGULAR, RESTARTS, ONE_CYCLE, STEADY = "Triangular", "warm restarts", "OneCycle", "OneCycle, constant momentum"
COOLED, WSD, SGD_FREE = "constant, cooled down", "constant, 1 - sqrt cooldown", "SGDScheduleFree"
ADAMW_CONSTANT, ADAMW_COSINE, ADAMW_LINEAR = "AdamW, constant", "AdamW, cosine", "AdamW, linear decay"
ADAMW_CYCLE, ADAMW_STEADY, ADAMW_FREE = "AdamW, OneCycle", "AdamW, OneCycle, constant beta1", "AdamWScheduleFree"
PUBLISHED, WEIGHT_DECAY = "Adam, lr=1e-2", "cosine, cyclical weight decay"

ARMS = {
    DEFAULT: Arm(lambda params, plan: CyclicSGD(params, lr=DEFAULT_LR, **COMMON), SGD, SGD, False, is_tuned=False),
    CONSTANT: sgd(lambda plan: Constant(), has_end=False),
    "step decay": sgd(lambda plan: MultiStepDecay((plan.total_steps // 2, 3 * plan.total_steps // 4))),
    COSINE: sgd(lambda plan: CosineDecay(plan.total_steps)),
    NO_WARMUP: sgd(lambda plan: LinearDecay(plan.total_steps)),
    LINEAR: sgd(lambda plan: LinearDecay(plan.total_steps, plan.warmup)),
    "REX": sgd(lambda plan: Rex(plan.total_steps)),
    WSD: sgd(lambda plan: WarmupStableDecay(plan.total_steps, plan.warmup, plan.cooldown, shape="sqrt")),
    COOLED: sgd(lambda plan: Warmup(Constant(), plan.steps_per_epoch // 4), has_end=False, is_cooled=True),
    TRIANGULAR: sgd(lambda plan: Triangular(**plan.triangle), has_end=False),
    RESTARTS: sgd(lambda plan: CosineRestarts(-(-plan.total_steps // 7), t_mult=2)),
    ONE_CYCLE: sgd(lambda plan: OneCycle(plan.total_steps)),
    STEADY: sgd(lambda plan: OneCycle(plan.total_steps, cycle_momentum=False)),
    WEIGHT_DECAY: sgd(cyclical_weight_decay, weight_decay=1e-3),
    SGD_FREE: schedule_free("SGDScheduleFree", SGD, **COMMON),
    ADAMW_CONSTANT: adamw(lambda plan: Constant(), has_end=False),
    ADAMW_COSINE: adamw(lambda plan: Warmup(CosineDecay(plan.after_warmup), plan.warmup)),
    ADAMW_LINEAR: adamw(lambda plan: LinearDecay(plan.total_steps, plan.warmup)),
    ADAMW_CYCLE: adamw(lambda plan: OneCycle(plan.total_steps)),
    ADAMW_STEADY: adamw(lambda plan: OneCycle(plan.total_steps, cycle_momentum=False)),
    ADAMW_FREE: schedule_free("AdamWScheduleFree", ADAMW, weight_decay=ADAMW_DECAY),
}
TUNED = [name for name, arm in ARMS.items() if arm.is_tuned]
KINDS = {arm.kind: name for name, arm in reversed(ARMS.items()) if arm.is_tuned}  # and the arm that a range test takes
FAMILIES = {family: [name for name, arm in ARMS.items() if arm.family == family] for family in (SGD, ADAMW)}
CONSTANTS, DEFAULTS = {SGD: CONSTANT, ADAMW: ADAMW_CONSTANT}, {SGD: LINEAR, ADAMW: ADAMW_LINEAR}

# What mnist1d's authors train their networks with, for 8,000 steps; in no comparison.
REPRODUCTION = Arm(lambda params, plan: Adam(params, lr=1e-2), "Adam", "Adam", False, is_tuned=False)

TOLD = f"""\
SGD has momentum {COMMON["momentum"]} and weight decay {COMMON["weight_decay"]:g}, AdamW weight decay {ADAMW_DECAY}.
Warm-ups are a {WARMUP}th of a training, also those of AdamW's cosine and linear decay; step decay is a tenth at 1/2
and again at 3/4; the cooldown is the last {COOLDOWN}th, by 1 - sqrt. Triangles have {CYCLE} epochs and go down to the
lowest rate of the range test, with momentum between 0.8 and 0.9; OneCycle moves momentum (AdamW: beta1) between 0.85
and 0.95. Warm restarts: three, each twice as long as the one before. Cyclical weight decay: between 1e-4 and 1e-3,
highest in the middle, with a cosine. The schedule-free ones warm up for half an epoch; before they are evaluated, batch
norm sees an epoch with their averaged weights."""
