"""Optimizers that own their learning-rate and momentum schedule. The README is the tour, this the reference.

    optimizer = CyclicSGD(model.parameters(), lr=0.1, policy=OneCycle(total_steps=len(loader) * epochs))

:class:`CyclicSGD` and :class:`CyclicAdamW` are ready made, and :func:`cyclic` makes one of any other torch optimizer;
their methods are those of :class:`Scheduled`. A :class:`Policy` defines learning rate and momentum over the steps, and
:func:`lr_range_test` finds the rates to move between. All lengths are optimizer steps, not epochs.
"""

from typing import TYPE_CHECKING, Any

from .policies import POLICIES as _POLICIES
from .policies import Policy as Policy
from .policies import Values as Values

if TYPE_CHECKING:
    from .plotting import plot_policy as plot_policy
    from .policies.combine import Combined as Combined
    from .policies.combine import Product as Product
    from .policies.combine import Warmup as Warmup
    from .policies.compose import LambdaPolicy as LambdaPolicy
    from .policies.compose import Scaled as Scaled
    from .policies.compose import Sequential as Sequential
    from .policies.compose import Staircase as Staircase
    from .policies.cyclic import CosineRestarts as CosineRestarts
    from .policies.cyclic import CosineWave as CosineWave
    from .policies.cyclic import ExpRange as ExpRange
    from .policies.cyclic import Triangular as Triangular
    from .policies.cyclic import Triangular2 as Triangular2
    from .policies.decay import Constant as Constant
    from .policies.decay import CosineDecay as CosineDecay
    from .policies.decay import ExponentialDecay as ExponentialDecay
    from .policies.decay import ExponentialRamp as ExponentialRamp
    from .policies.decay import InverseTimeDecay as InverseTimeDecay
    from .policies.decay import LinearDecay as LinearDecay
    from .policies.decay import LinearRamp as LinearRamp
    from .policies.decay import MultiStepDecay as MultiStepDecay
    from .policies.decay import PolynomialDecay as PolynomialDecay
    from .policies.decay import StepDecay as StepDecay
    from .policies.decay import WarmupStableDecay as WarmupStableDecay
    from .policies.onecycle import OneCycle as OneCycle
    from .policies.plateau import Plateau as Plateau
    from .range_test import LRRangeTest as LRRangeTest
    from .range_test import NoSuggestionError as NoSuggestionError
    from .range_test import RestoreError as RestoreError
    from .range_test import TrainStep as TrainStep
    from .range_test import lr_range_test as lr_range_test
    from .range_test import supervised_step as supervised_step
    from .scheduled import Scheduled as Scheduled
    from .sgd import CyclicSGD as CyclicSGD
    from .wrap import CyclicAdamW as CyclicAdamW
    from .wrap import cyclic as cyclic

__version__ = "0.1.0"

_OPTIMIZERS = ("CyclicSGD", "CyclicAdamW", "cyclic", "Scheduled")
_RANGE_TEST = ("lr_range_test", "supervised_step", "TrainStep", "LRRangeTest", "NoSuggestionError", "RestoreError")

if not TYPE_CHECKING:
    # A type checker can read none of these: to it, what is imported "as" itself above is public, and nothing else.

    # In the order of the reference.
    __all__ = [*_OPTIMIZERS, "Policy", "Values", *_POLICIES]
    __all__ += [*_RANGE_TEST, "plot_policy"]

    def __getattr__(name: str) -> Any:
        """Import on first use: what needs torch, as the command line needs none, and what takes long to import."""
        if name == "CyclicSGD":
            from .sgd import CyclicSGD as value
        elif name in _OPTIMIZERS:
            from . import wrap

            value = getattr(wrap, name)
        elif name in _RANGE_TEST:
            from . import range_test

            value = getattr(range_test, name)
        elif name == "plot_policy":
            from .plotting import plot_policy as value
        elif name in _POLICIES:
            value = _POLICIES[name]
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__} - _NOT_OFFERED)


_NOT_OFFERED = {"Any", "TYPE_CHECKING", "__dir__", "__getattr__"}  # help() would document the last two
