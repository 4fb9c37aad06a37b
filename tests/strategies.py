"""The one place that draws policies, models, param groups and flags.

A new policy needs one row in ``POLICY_STRATEGIES``; every property test then finds it.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from hypothesis import strategies as st

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CosineRestarts,
    CosineWave,
    ExponentialDecay,
    ExponentialRamp,
    ExpRange,
    InverseTimeDecay,
    LambdaPolicy,
    LinearDecay,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Plateau,
    Policy,
    PolynomialDecay,
    Product,
    Scaled,
    Sequential,
    Staircase,
    StepDecay,
    Triangular,
    Triangular2,
    Warmup,
    WarmupStableDecay,
)

FAR = 10**9


def parameter(dtype=torch.float64):
    """Two ones with a gradient of one half."""
    param = torch.nn.Parameter(torch.ones(2, dtype=dtype))
    param.grad = torch.full_like(param, 0.5)
    return param


def held_momentum(momentum):
    """A momentum as the device holds it: in float32, but above 0 where it is above 0, as at 0 there is none."""
    return max(torch.tensor(momentum, dtype=torch.float32).item(), 2.0**-149) if momentum > 0 else 0.0


# --- functions for the policies that take one; module-level, so that they pickle


def sawtooth(step):
    return 1 - step % 10 / 10


def inverse_root(step):
    return 1 / math.sqrt(1 + step)


def warm_up_20(step):
    return min(1.0, (step + 1) / 20)


def halving(cycle):
    return 0.5 ** (cycle - 1)


def slowly(count):
    return 1 / (1 + 0.01 * count)


def wave(count):
    return 0.5 * (1 + math.sin(count))


LR_FUNCTIONS = (sawtooth, inverse_root, warm_up_20)
SCALE_FUNCTIONS = (halving, slowly, wave)

# --- arguments


def lengths():
    """Numbers of steps, most of them so small that a short run crosses every ramp."""
    return st.integers(1, 50) | st.integers(1, 8) | st.integers(51, 5000)


def lengths_or_none():
    """Numbers of steps, 0 among them, where a length of 0 is the value after the end."""
    return lengths() | st.just(0)


def steps(maximum=FAR):
    """Steps to ask for, most of them small."""
    return st.integers(0, min(200, maximum)) | st.integers(0, maximum) | st.integers(max(0, maximum - 200), maximum)


def units():
    """Numbers in [0, 1], the ends included."""
    return st.floats(0, 1, allow_subnormal=False) | st.sampled_from([0, 1, 0.5, 0.1])


def positive_units():
    """Numbers in (0, 1]."""
    return st.floats(1e-9, 1) | st.sampled_from([1, 0.5, 0.1])


def gammas():
    """Decays per step or per drop, in (0, 1]."""
    return st.floats(0.01, 1) | st.floats(0.99, 1) | st.sampled_from([1, 0.5, 0.1])


def div_factors(maximum=1e4):
    """Peak over base."""
    return st.floats(1, maximum) | st.sampled_from([1, 10, 25.0])


def growths():
    """Growth of the cycles: none, whole, fractional, and barely any."""
    return st.sampled_from([1, 1, 1.0, 2, 3, 1.5, 2.0, 1 + 1e-9]) | st.floats(1, 3)


@st.composite
def momenta(draw):
    """``cycle_momentum`` and its range, in [0, 0.99] with base <= max."""
    base, top = sorted(draw(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99))))
    return {"cycle_momentum": draw(st.booleans()), "base_momentum": base, "max_momentum": top}


@st.composite
def triangles(draw, **others):
    """The arguments that the three triangular policies share, and ``others``."""
    return {
        "step_size_up": draw(lengths()),
        "step_size_down": draw(st.none() | lengths()),
        "div_factor": draw(div_factors()),
        "cycle_growth": draw(growths()),
        **draw(momenta()),
        **{name: draw(strategy) for name, strategy in others.items()},
    }


# --- policies


@st.composite
def one_cycles_that_climb(draw):
    total_steps = draw(st.integers(4, 60) | st.integers(61, 5000))
    three_phase = draw(st.booleans())
    # The climb must be longer than one step, and three phases must leave room for the fall.
    pct_start = draw(st.floats(1.001 / total_steps, 0.5 if three_phase else 0.99))
    return OneCycle(
        total_steps,
        pct_start,
        draw(st.sampled_from(["cos", "linear"])),
        div_factor=draw(div_factors()),
        final_div_factor=draw(div_factors(1e6)),
        three_phase=three_phase,
        **draw(momenta()),
    )


@st.composite
def one_cycles_without_a_climb(draw):
    """Smoke runs of a few steps, climbs of less than one step, and runs that end at or soon after the peak."""
    total_steps = draw(st.integers(1, 4) | st.integers(5, 60))
    return OneCycle(
        total_steps,
        draw(st.sampled_from([0, 1, 0.3, 1 / total_steps]) | st.floats(0, 1 / total_steps) | st.floats(0.5, 1)),
        draw(st.sampled_from(["cos", "linear"])),
        div_factor=draw(div_factors()),
        final_div_factor=draw(div_factors(1e6)),
        three_phase=draw(st.booleans()),
        **draw(momenta()),
    )


@st.composite
def _linear_decays(draw):
    warmup, decay = draw(st.tuples(st.integers(0, 30), lengths_or_none()))
    return LinearDecay(warmup + decay, warmup, draw(units()))


@st.composite
def _warm_up_stable_decays(draw):
    warmup, stable, decay = draw(st.tuples(st.integers(0, 30), st.integers(0, 60), lengths_or_none()))
    shape = draw(st.sampled_from(["linear", "cosine", "sqrt"]))
    return WarmupStableDecay(warmup + stable + decay, warmup, decay, shape, draw(units()))


@st.composite
def _sequentials(draw):
    parts = draw(st.lists(_single_policies(), min_size=1, max_size=3))
    milestones = draw(st.lists(st.integers(0, 60), min_size=len(parts) - 1, max_size=len(parts) - 1).map(sorted))
    return Sequential(parts, milestones, draw(st.booleans()))


@st.composite
def _warmups(draw):
    policy = draw(_single_policies())
    momentum = st.none() if policy.at(0).momentum is None else st.none() | st.floats(0, 0.99)
    return Warmup(policy, draw(lengths_or_none()), draw(units()), draw(st.booleans()), draw(momentum))


#: Made of other policies.
COMPOSITES = ("Sequential", "Warmup", "Product", "Combined", "Staircase", "Scaled")


def _single_policies():
    """What another policy is made of."""
    return st.deferred(lambda: policies(without=COMPOSITES))


POLICY_STRATEGIES = {
    "Constant": st.just(Constant()),
    "Triangular": triangles(
        scale_fn=st.none() | st.sampled_from(SCALE_FUNCTIONS), scale_mode=st.sampled_from(["cycle", "iterations"])
    ).map(lambda arguments: Triangular(**arguments)),
    "Triangular2": triangles().map(lambda arguments: Triangular2(**arguments)),
    "ExpRange": triangles(gamma=gammas()).map(lambda arguments: ExpRange(**arguments)),
    "OneCycle": one_cycles_that_climb() | one_cycles_without_a_climb(),
    "CosineRestarts": st.builds(CosineRestarts, lengths(), growths(), units(), st.just(1) | gammas()),
    "CosineWave": st.builds(CosineWave, lengths(), units()),
    "CosineDecay": st.builds(CosineDecay, lengths_or_none(), units()),
    "PolynomialDecay": st.builds(
        PolynomialDecay, lengths_or_none(), st.floats(0.1, 5) | st.sampled_from([1, 2, 0.5]), units()
    ),
    "ExponentialDecay": st.builds(ExponentialDecay, gammas()),
    "StepDecay": st.builds(StepDecay, lengths(), gammas()),
    "MultiStepDecay": st.builds(MultiStepDecay, st.lists(st.integers(0, 100), max_size=5).map(sorted), gammas()),
    "InverseTimeDecay": st.builds(
        InverseTimeDecay,
        st.floats(1e-9, 10) | st.sampled_from([1, 0.01]),
        st.floats(0.1, 1) | st.sampled_from([1, 0.5]),
    ),
    "LinearDecay": _linear_decays(),
    "WarmupStableDecay": _warm_up_stable_decays(),
    "LinearRamp": st.builds(LinearRamp, lengths_or_none(), units(), units()),
    "ExponentialRamp": st.builds(ExponentialRamp, lengths_or_none(), positive_units(), positive_units()),
    "Sequential": _sequentials(),
    "Warmup": _warmups(),
    "Product": st.builds(Product, st.lists(_single_policies(), min_size=1, max_size=3)),
    # A momentum of 1 is refused by optimizers with betas.
    "Combined": st.builds(
        Combined,
        _single_policies(),
        st.none() | st.builds(Scaled, _single_policies(), st.floats(0, 0.99)),
        st.none() | _single_policies(),
    ),
    "Staircase": st.builds(Staircase, _single_policies(), lengths()),
    "Scaled": st.builds(Scaled, _single_policies(), units()),
    "LambdaPolicy": st.sampled_from(LR_FUNCTIONS).map(LambdaPolicy),
    "Plateau": st.builds(
        Plateau,
        mode=st.sampled_from(["min", "max"]),
        factor=st.floats(0.05, 0.95),
        patience=st.integers(0, 5),
        threshold=st.floats(0, 0.5),
        threshold_mode=st.sampled_from(["rel", "abs"]),
        cooldown=st.integers(0, 5),
        min_factor=units(),
        eps=st.sampled_from([0, 1e-8, 1e-3]),
    ),
}


def policies(*names, without=()):
    """Any policy that depends on the step alone, or any of those named."""
    chosen = names or [name for name in POLICY_STRATEGIES if name != "Plateau"]
    return st.one_of([POLICY_STRATEGIES[name] for name in chosen if name not in without])


def triangular_policies():
    """The three triangular policies."""
    return policies("Triangular", "Triangular2", "ExpRange")


def cyclic_policies():
    """The policies that repeat a shape for ever, grown and scaled ones included."""
    return policies("Triangular", "Triangular2", "ExpRange", "CosineRestarts")


def periodic_policies():
    """The policies whose values repeat exactly: cycles that nothing grows or scales."""
    return st.one_of(
        policies("Constant"),
        triangles(cycle_growth=st.sampled_from([1, 1.0])).map(lambda arguments: Triangular(**arguments)),
        st.builds(CosineRestarts, lengths(), st.sampled_from([1, 1.0]), units(), st.sampled_from([1, 1.0])),
        policies("CosineWave"),
    )


def finite_policies():
    """The policies that hold their last value from some step on."""
    return policies().filter(lambda policy: policy.end is not None)


def carries_code(policy):
    """Whether a function of the user's is part of this policy, so that data alone cannot hold it."""
    return (
        isinstance(policy, LambdaPolicy)
        or getattr(policy, "scale_fn", None) is not None
        or any(map(carries_code, parts_of(policy)))
    )


def parts_of(policy):
    """The policies that this one is made of."""
    values = [getattr(policy, field.name) for field in fields(policy)]
    return [
        part
        for value in values
        for part in (value if isinstance(value, tuple) else [value])
        if isinstance(part, Policy)
    ]


# --- models, param groups and flags


@dataclass(frozen=True)
class Problem:
    """A small model as an optimizer sees it: groups of parameters, and gradients for every step.

    Everything is drawn from ``seed``, so that the same problem can be built and run twice; a parameter
    has no gradient at the steps at which ``absent`` says so.
    """

    shapes: tuple[tuple[tuple[int, ...], ...], ...]  # of each parameter of each group
    dtype: torch.dtype
    seed: int
    absent: float  # how often a parameter has no gradient

    def params(self) -> list[list[torch.nn.Parameter]]:
        generator = torch.Generator().manual_seed(self.seed)
        return [
            [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=self.dtype)) for shape in group]
            for group in self.shapes
        ]

    def set_grads(self, params: list[list[torch.nn.Parameter]], step: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1009 + step + 1)
        for group in params:
            for param in group:
                grad = torch.randn(param.shape, generator=generator, dtype=self.dtype)
                drawn = torch.rand((), generator=generator).item()
                param.grad = None if drawn < self.absent else grad


def flat(params: list[list[torch.nn.Parameter]]) -> list[torch.nn.Parameter]:
    return [param for group in params for param in group]


_SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=3).map(tuple)


def problems(
    *, dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32), max_groups: int = 3
) -> st.SearchStrategy[Problem]:
    group = st.lists(_SHAPES, min_size=1, max_size=3).map(tuple)
    return st.builds(
        Problem,
        shapes=st.lists(group, min_size=1, max_size=max_groups).map(tuple),
        dtype=st.sampled_from(dtypes),
        seed=st.integers(0, 10**6),
        absent=st.sampled_from([0.0, 0.3]),
    )


@st.composite
def sgd_options(draw: st.DrawFn) -> dict[str, Any]:
    """Keyword arguments that both SGD and CyclicSGD take."""
    nesterov = draw(st.booleans())
    return {
        "lr": draw(st.floats(1e-3, 0.5)),
        "momentum": draw(st.floats(0.1, 0.99) if nesterov else st.sampled_from([0.0, 0.5, 0.9])),
        "dampening": 0.0 if nesterov else draw(st.sampled_from([0.0, 0.3])),
        "weight_decay": draw(st.sampled_from([0.0, 0.01])),
        "nesterov": nesterov,
        "maximize": draw(st.booleans()),
    }


#: torch's implementations, as flags; each must be honoured.
IMPLEMENTATIONS: tuple[dict[str, bool], ...] = (
    {},
    {"foreach": False},
    {"foreach": True},
    {"fused": False},
    {"fused": True},
)


def implementations() -> st.SearchStrategy[dict[str, bool]]:
    return st.sampled_from(IMPLEMENTATIONS)
