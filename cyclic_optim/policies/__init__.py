"""Schedules as pure values: whole numbers in, ``(lr_factor, momentum)`` out. Standard library only."""

from .base import Policy, Values
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
from .spec import POLICIES, describe, rebuild

__all__ = [
    "POLICIES",
    "Constant",
    "CosineDecay",
    "CosineRestarts",
    "CosineWave",
    "ExpRange",
    "ExponentialDecay",
    "ExponentialRamp",
    "InverseTimeDecay",
    "LambdaPolicy",
    "LinearRamp",
    "MultiStepDecay",
    "OneCycle",
    "Plateau",
    "Policy",
    "PolynomialDecay",
    "Scaled",
    "Sequential",
    "Staircase",
    "StepDecay",
    "Triangular",
    "Triangular2",
    "Values",
    "WarmupStableDecay",
    "describe",
    "rebuild",
]
