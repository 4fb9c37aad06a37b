"""The hypothesis strategies: policies, param groups and training runs, from the ranges that their docstrings name."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, get_args

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from .. import (
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
from ..policies.decay import Shape

#: The farthest step that :func:`steps` draws.
FAR = 10**9

# --- functions for the policies that take one; module-level, so that they pickle


def sawtooth(step: int) -> float:
    return 1 - step % 10 / 10


def inverse_root(step: int) -> float:
    return 1 / math.sqrt(1 + step)


def warm_up_20(step: int) -> float:
    return min(1.0, (step + 1) / 20)


def halving(cycle: int) -> float:
    return 0.5 ** (cycle - 1)


def slowly(count: int) -> float:
    return 1 / (1 + 0.01 * count)


def wave(count: int) -> float:
    return 0.5 * (1 + math.sin(count))


LR_FUNCTIONS = (sawtooth, inverse_root, warm_up_20)
SCALE_FUNCTIONS = (halving, slowly, wave)

# --- arguments


def lengths() -> SearchStrategy[int]:
    """Numbers of steps, most of them so small that a short run crosses every ramp."""
    return st.integers(1, 50) | st.integers(1, 8) | st.integers(51, 5000)


def lengths_or_none() -> SearchStrategy[int]:
    """Numbers of steps, 0 among them, where a length of 0 is the value after the end."""
    return lengths() | st.just(0)


def steps(maximum: int = FAR) -> SearchStrategy[int]:
    """Steps to ask for, most of them small."""
    return st.integers(0, min(200, maximum)) | st.integers(0, maximum) | st.integers(max(0, maximum - 200), maximum)


def units() -> SearchStrategy[float]:
    """Numbers in [0, 1], the ends included."""
    return st.floats(0, 1, allow_subnormal=False) | st.sampled_from([0, 1, 0.5, 0.1])


def positive_units() -> SearchStrategy[float]:
    """Numbers in (0, 1]."""
    return st.floats(1e-9, 1) | st.sampled_from([1, 0.5, 0.1])


def gammas() -> SearchStrategy[float]:
    """Decays per step or per drop, in (0, 1]."""
    return st.floats(0.01, 1) | st.floats(0.99, 1) | st.sampled_from([1, 0.5, 0.1])


def div_factors(maximum: float = 1e4) -> SearchStrategy[float]:
    """Peak over base."""
    return st.floats(1, maximum) | st.sampled_from([1, 10, 25.0])


def growths() -> SearchStrategy[float]:
    """Growth of the cycles: none, whole, fractional, and barely any."""
    return st.sampled_from([1, 1, 1.0, 2, 3, 1.5, 2.0, 1 + 1e-9]) | st.floats(1, 3)


@st.composite
def momenta(draw: DrawFn) -> dict[str, Any]:
    """``cycle_momentum`` and its range, in [0, 0.99] with base <= max."""
    base, top = sorted(draw(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99))))
    return {"cycle_momentum": draw(st.booleans()), "base_momentum": base, "max_momentum": top}


@st.composite
def triangles(draw: DrawFn, /, **others: SearchStrategy[Any]) -> dict[str, Any]:
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
def one_cycles_that_climb(draw: DrawFn) -> Policy:
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
def one_cycles_without_a_climb(draw: DrawFn) -> Policy:
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
def _linear_decays(draw: DrawFn) -> Policy:
    warmup, decay = draw(st.tuples(st.integers(0, 30), lengths_or_none()))
    return LinearDecay(warmup + decay, warmup, draw(units()))


@st.composite
def _warm_up_stable_decays(draw: DrawFn) -> Policy:
    warmup, stable, decay = draw(st.tuples(st.integers(0, 30), st.integers(0, 60), lengths_or_none()))
    shape = draw(st.sampled_from(get_args(Shape)))
    return WarmupStableDecay(warmup + stable + decay, warmup, decay, shape, draw(units()))


@st.composite
def _sequentials(draw: DrawFn) -> Policy:
    parts = draw(st.lists(_single_policies(), min_size=1, max_size=3))
    milestones = draw(st.lists(st.integers(0, 60), min_size=len(parts) - 1, max_size=len(parts) - 1).map(sorted))
    return Sequential(tuple(parts), tuple(milestones), draw(st.booleans()))


@st.composite
def _warmups(draw: DrawFn) -> Policy:
    policy = draw(_single_policies())
    momentum = st.none() if policy.at(0).momentum is None else st.none() | st.floats(0, 0.99)
    return Warmup(policy, draw(lengths_or_none()), draw(units()), draw(st.booleans()), draw(momentum))


#: Made of other policies.
COMPOSITES = ("Sequential", "Warmup", "Product", "Combined", "Staircase", "Scaled")


def _single_policies() -> SearchStrategy[Policy]:
    """What another policy is made of."""
    return st.deferred(lambda: policies(without=COMPOSITES))


POLICY_STRATEGIES: dict[str, SearchStrategy[Policy]] = {
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


def policies(*names: str, without: Collection[str] = ()) -> SearchStrategy[Policy]:
    """Any policy of the library that depends on the step alone (all but ``Plateau``), or any of those named.

    Lengths are 0 (where a length may be 0) to 5,000 steps, most of them below 50, so that a short run crosses every
    ramp. ``div_factor`` is in [1, 1e4], ``final_div_factor`` in [1, 1e6], ``gamma`` in [0.01, 1], the growth of cycles
    in [1, 3], momenta in [0, 0.99], fractions of the peak in [0, 1], their ends included. Sequences and products have
    up to 3 parts, which are not made of others. Functions (of ``LambdaPolicy``, ``scale_fn``) are of this module.

    Args:
        names: the classes to draw from, by name; ``"Plateau"`` may be one.
        without: names to leave out.

    Example:
        >>> from hypothesis import given, settings
        >>> from cyclic_optim import Scaled
        >>> from cyclic_optim.testing import check_policy, policies
        >>> @settings(max_examples=10, database=None, derandomize=True)
        ... @given(policies("OneCycle", "Triangular"))
        ... def test_half_of_any_policy_is_a_policy(policy):
        ...     check_policy(Scaled(policy, 0.5), steps=50)
        >>> test_half_of_any_policy_is_a_policy()
    """
    chosen = names or [name for name in POLICY_STRATEGIES if name != "Plateau"]
    return st.one_of([POLICY_STRATEGIES[name] for name in chosen if name not in without])


# --- training runs


@dataclass(frozen=True)
class TrainingRun:
    """A small training as an optimizer sees it: groups of parameters, and gradients for every step.

    Everything follows from the fields, so that the same run can be built and trained twice.

    Args:
        shapes: the shape of each parameter of each group.
        dtype: of parameters and gradients.
        seed: of weights and gradients, which are normally distributed.
        absent: how often a parameter has no gradient at a step, in [0, 1].
        options: what each group says beside its parameters, such as its ``lr`` and ``policy``; empty for nothing.
        steps: how many steps :func:`check_optimizer` trains.

    Example:
        >>> import torch
        >>> from cyclic_optim import CyclicSGD, OneCycle
        >>> from cyclic_optim.testing import TrainingRun
        >>> run = TrainingRun(shapes=(((2, 3), (3,)), ((4,),)), dtype=torch.float32, seed=0)
        >>> params = run.params()
        >>> optimizer = CyclicSGD(run.param_groups(params), lr=0.1, policy=OneCycle(10))
        >>> for step in range(3):
        ...     run.set_grads(params, step)
        ...     optimizer.step()
        >>> [group["schedule_step"] for group in optimizer.param_groups]
        [3, 3]
    """

    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    dtype: torch.dtype
    seed: int
    absent: float = 0.0
    options: tuple[dict[str, Any], ...] = ()
    steps: int = 6

    def params(self) -> list[list[torch.nn.Parameter]]:
        """New parameters, by group: the same weights at each call."""
        generator = torch.Generator().manual_seed(self.seed)
        return [
            [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=self.dtype)) for shape in group]
            for group in self.shapes
        ]

    def param_groups(self, params: list[list[torch.nn.Parameter]]) -> list[dict[str, Any]]:
        """What to build an optimizer of: these parameters with their groups' options."""
        options = self.options or ({},) * len(self.shapes)
        return [{"params": group, **own} for group, own in zip(params, options, strict=True)]

    def set_grads(self, params: list[list[torch.nn.Parameter]], step: int) -> None:
        """Set the gradients of this step, which are the same whenever it is asked for."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + step + 1)
        for group in params:
            for param in group:
                grad = torch.randn(param.shape, generator=generator, dtype=self.dtype)
                drawn = torch.rand((), generator=generator).item()
                param.grad = None if drawn < self.absent else grad


_SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=3).map(tuple)
_FLOATS = (torch.float64, torch.float32)


@st.composite
def training_runs(
    draw: DrawFn,
    *,
    dtypes: tuple[torch.dtype, ...] = _FLOATS,
    max_groups: int = 3,
    schedules: SearchStrategy[Policy | None] | None = None,
) -> TrainingRun:
    """Small training runs: see :class:`TrainingRun`.

    1 to ``max_groups`` groups of 1 to 3 parameters, each with 0 to 3 dimensions of 0, 1, 2, 3 or 5; all gradients
    there, or each absent at 30 % of the steps; seeds up to ``10**6``. With ``schedules`` each group has an ``lr`` in
    [1e-3, 1] and may have a policy of its own, and then a clock of its own, in [0, 30].

    Args:
        dtypes: to choose from.
        max_groups: the most param groups.
        schedules: what to draw the groups' own policies from (None is a group without one); by default groups say
            nothing of their schedules.

    Example:
        >>> from hypothesis import given, settings
        >>> from cyclic_optim import CyclicAdamW
        >>> from cyclic_optim.testing import check_optimizer, training_runs
        >>> @settings(max_examples=5, database=None, derandomize=True)
        ... @given(training_runs())
        ... def test_any_run(run):
        ...     check_optimizer(CyclicAdamW, run=run)
        >>> test_any_run()
    """
    group = st.lists(_SHAPES, min_size=1, max_size=3).map(tuple)
    shapes = draw(st.lists(group, min_size=1, max_size=max_groups).map(tuple))
    return TrainingRun(
        shapes,
        draw(st.sampled_from(dtypes)),
        draw(st.integers(0, 10**6)),
        draw(st.sampled_from([0.0, 0.3])),
        () if schedules is None else tuple(draw(_options(schedules)) for _ in shapes),
    )


@st.composite
def _options(draw: DrawFn, schedules: SearchStrategy[Policy | None]) -> dict[str, Any]:
    options: dict[str, Any] = {"lr": draw(st.floats(1e-3, 1))}
    if draw(st.booleans()):
        options["policy"] = draw(schedules)
        if options["policy"] is not None and draw(st.booleans()):
            options["schedule_step"] = draw(st.integers(0, 30))
    return options


def param_groups(
    schedules: SearchStrategy[Policy | None] | None = None,
    *,
    dtypes: tuple[torch.dtype, ...] = _FLOATS,
    max_groups: int = 3,
) -> SearchStrategy[list[dict[str, Any]]]:
    """What to build an optimizer of: lists of param groups, with rates, policies and clocks of their own.

    Ranges are those of :func:`training_runs`. No parameter has a gradient yet.

    Args:
        schedules: what to draw the groups' own policies from; by default :func:`policies`, or None.
        dtypes, max_groups: as for :func:`training_runs`.

    Example:
        >>> from hypothesis import given, settings
        >>> from cyclic_optim import CyclicSGD
        >>> from cyclic_optim.testing import param_groups
        >>> @settings(max_examples=10, database=None, derandomize=True)
        ... @given(param_groups())
        ... def test_groups_keep_their_peaks(groups):
        ...     optimizer = CyclicSGD(groups, momentum=0.9)
        ...     assert all(group["lr"] <= given["lr"] for group, given in zip(optimizer.param_groups, groups))
        >>> test_groups_keep_their_peaks()
    """
    runs = training_runs(dtypes=dtypes, max_groups=max_groups, schedules=schedules or (policies() | st.none()))
    return runs.map(lambda run: run.param_groups(run.params()))
