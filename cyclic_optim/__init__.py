"""SGD that owns its learning-rate and momentum cycle. See the README for a tour."""

from typing import TYPE_CHECKING

from ._on_demand import names_on_demand

if TYPE_CHECKING:
    from .optimizer import CyclicSGD as CyclicSGD
    from .plotting import plot_policy as plot_policy
    from .policies import Constant as Constant
    from .policies import CosineDecay as CosineDecay
    from .policies import CosineRestarts as CosineRestarts
    from .policies import CosineWave as CosineWave
    from .policies import ExponentialDecay as ExponentialDecay
    from .policies import ExponentialRamp as ExponentialRamp
    from .policies import ExpRange as ExpRange
    from .policies import InverseTimeDecay as InverseTimeDecay
    from .policies import LambdaPolicy as LambdaPolicy
    from .policies import LinearRamp as LinearRamp
    from .policies import MultiStepDecay as MultiStepDecay
    from .policies import OneCycle as OneCycle
    from .policies import Plateau as Plateau
    from .policies import Policy as Policy
    from .policies import PolynomialDecay as PolynomialDecay
    from .policies import Scaled as Scaled
    from .policies import Sequential as Sequential
    from .policies import Staircase as Staircase
    from .policies import StepDecay as StepDecay
    from .policies import Triangular as Triangular
    from .policies import Triangular2 as Triangular2
    from .policies import Values as Values
    from .policies import WarmupStableDecay as WarmupStableDecay
    from .range_test import LRRangeTest as LRRangeTest
    from .range_test import NoSuggestionError as NoSuggestionError
    from .range_test import lr_range_test as lr_range_test
    from .range_test import supervised_step as supervised_step

__version__ = "0.1.0"

_MODULES: dict[str, tuple[str, ...]] = {
    "optimizer": ("CyclicSGD",),
    "plotting": ("plot_policy",),
    "range_test": (
        "LRRangeTest",
        "NoSuggestionError",
        "lr_range_test",
        "supervised_step",
    ),
    "policies": (
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
    ),
}
__all__, _get = names_on_demand(__name__, _MODULES)
if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__ = _get
