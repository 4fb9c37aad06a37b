"""The strategies of ``cyclic_optim.testing``, from which these tests draw, and those that are for these tests alone."""

from dataclasses import fields
from typing import Any

import torch
from hypothesis import strategies as st

from cyclic_optim import CosineRestarts, LambdaPolicy, Policy, Triangular
from cyclic_optim.testing.strategies import (
    COMPOSITES,
    FAR,
    LR_FUNCTIONS,
    POLICY_STRATEGIES,
    SCALE_FUNCTIONS,
    TrainingRun,
    div_factors,
    gammas,
    growths,
    halving,
    inverse_root,
    lengths,
    lengths_or_none,
    momenta,
    one_cycles_that_climb,
    one_cycles_without_a_climb,
    param_groups,
    policies,
    positive_units,
    sawtooth,
    slowly,
    steps,
    training_runs,
    triangles,
    units,
    warm_up_20,
    wave,
)

__all__ = [
    "COMPOSITES",
    "FAR",
    "IMPLEMENTATIONS",
    "LR_FUNCTIONS",
    "POLICY_STRATEGIES",
    "SCALE_FUNCTIONS",
    "Problem",
    "TrainingRun",
    "carries_code",
    "cyclic_policies",
    "div_factors",
    "finite_policies",
    "flat",
    "gammas",
    "growths",
    "halving",
    "implementations",
    "inverse_root",
    "lengths",
    "lengths_or_none",
    "momenta",
    "one_cycles_that_climb",
    "one_cycles_without_a_climb",
    "param_groups",
    "parameter",
    "parts_of",
    "periodic_policies",
    "policies",
    "positive_units",
    "problems",
    "sawtooth",
    "sgd_options",
    "slowly",
    "steps",
    "training_runs",
    "triangles",
    "triangular_policies",
    "units",
    "warm_up_20",
    "wave",
]

#: Most tests use the model and the gradients of a run, and steps of their own.
Problem, problems = TrainingRun, training_runs


def parameter(dtype=torch.float64):
    """Two ones with a gradient of one half."""
    param = torch.nn.Parameter(torch.ones(2, dtype=dtype))
    param.grad = torch.full_like(param, 0.5)
    return param


def held_momentum(momentum):
    """A momentum as the device holds it: in float32, but above 0 where it is above 0, as at 0 there is none."""
    return max(torch.tensor(momentum, dtype=torch.float32).item(), 2.0**-149) if momentum > 0 else 0.0


# --- kinds of policies


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


# --- parameters and flags


def flat(params: list[list[torch.nn.Parameter]]) -> list[torch.nn.Parameter]:
    return [param for group in params for param in group]


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
