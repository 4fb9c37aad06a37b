"""SGD that owns its learning-rate and momentum cycle. The README is the tour, this the reference.

    optimizer = CyclicSGD(model.parameters(), lr=0.1, policy=OneCycle(total_steps=1000))

:class:`CyclicSGD` is the optimizer, a :class:`Policy` says what its learning rate and momentum do over the steps, and
:func:`lr_range_test` finds the rates to move between. All lengths are optimizer steps, not epochs.
"""

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

# In the order of the reference.
_MODULES: dict[str, tuple[str, ...]] = {
    "optimizer": ("CyclicSGD",),
    "policies": (
        "Policy",
        "Values",
        "Constant",
        "Triangular",
        "Triangular2",
        "ExpRange",
        "OneCycle",
        "CosineRestarts",
        "CosineDecay",
        "CosineWave",
        "PolynomialDecay",
        "ExponentialDecay",
        "StepDecay",
        "MultiStepDecay",
        "InverseTimeDecay",
        "WarmupStableDecay",
        "LinearRamp",
        "ExponentialRamp",
        "Sequential",
        "Staircase",
        "Scaled",
        "Plateau",
        "LambdaPolicy",
    ),
    "range_test": (
        "lr_range_test",
        "supervised_step",
        "LRRangeTest",
        "NoSuggestionError",
    ),
    "plotting": ("plot_policy",),
}
__all__, _get = names_on_demand(__name__, _MODULES)
if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__ = _get
