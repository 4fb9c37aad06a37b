"""All policies of the library by name: what a checkpoint may ask for, and nothing else."""

from __future__ import annotations

from .base import Policy
from .compose import LambdaPolicy, Scaled, Sequential, Staircase
from .cyclic import CosineRestarts, CosineWave, ExpRange, Triangular, Triangular2
from .decay import (
    Constant,
    CosineDecay,
    ExponentialDecay,
    ExponentialRamp,
    InverseTimeDecay,
    LinearRamp,
    MultiStepDecay,
    PolynomialDecay,
    StepDecay,
    WarmupStableDecay,
)
from .onecycle import OneCycle
from .plateau import Plateau

POLICIES: dict[str, type[Policy]] = {
    policy.__name__: policy
    for policy in (
        Constant,
        Triangular,
        Triangular2,
        ExpRange,
        OneCycle,
        CosineRestarts,
        CosineWave,
        CosineDecay,
        PolynomialDecay,
        ExponentialDecay,
        StepDecay,
        MultiStepDecay,
        InverseTimeDecay,
        WarmupStableDecay,
        LinearRamp,
        ExponentialRamp,
        Sequential,
        Staircase,
        Scaled,
        Plateau,
        LambdaPolicy,
    )
}
