"""SGD that owns its learning-rate and momentum cycle. See the README for a tour."""

from .optimizer import CyclicSGD
from .plotting import plot_policy
from .policies import (
    Constant,
    CosineDecay,
    CosineRestarts,
    CosineWave,
    ExponentialDecay,
    ExponentialRamp,
    ExpRange,
    InverseTimeDecay,
    LambdaPolicy,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Plateau,
    Policy,
    PolynomialDecay,
    Scaled,
    Sequential,
    Staircase,
    StepDecay,
    Triangular,
    Triangular2,
    Values,
    WarmupStableDecay,
)
from .range_test import LRRangeTest, NoSuggestionError, lr_range_test, supervised_step

__version__ = "0.1.0"

__all__ = [
    "Constant",
    "CosineDecay",
    "CosineRestarts",
    "CosineWave",
    "CyclicSGD",
    "ExpRange",
    "ExponentialDecay",
    "ExponentialRamp",
    "InverseTimeDecay",
    "LRRangeTest",
    "LambdaPolicy",
    "LinearRamp",
    "MultiStepDecay",
    "NoSuggestionError",
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
    "lr_range_test",
    "plot_policy",
    "supervised_step",
]
