"""Schedules as pure values: whole numbers in, ``(lr_factor, momentum)`` out. Standard library only."""

from typing import TYPE_CHECKING

from .._on_demand import names_on_demand

if TYPE_CHECKING:
    from .base import Policy as Policy
    from .base import Values as Values
    from .compose import LambdaPolicy as LambdaPolicy
    from .compose import Scaled as Scaled
    from .compose import Sequential as Sequential
    from .compose import Staircase as Staircase
    from .cyclic import CosineRestarts as CosineRestarts
    from .cyclic import CosineWave as CosineWave
    from .cyclic import ExpRange as ExpRange
    from .cyclic import Triangular as Triangular
    from .cyclic import Triangular2 as Triangular2
    from .decay import Constant as Constant
    from .decay import CosineDecay as CosineDecay
    from .decay import ExponentialDecay as ExponentialDecay
    from .decay import ExponentialRamp as ExponentialRamp
    from .decay import InverseTimeDecay as InverseTimeDecay
    from .decay import LinearRamp as LinearRamp
    from .decay import MultiStepDecay as MultiStepDecay
    from .decay import PolynomialDecay as PolynomialDecay
    from .decay import StepDecay as StepDecay
    from .decay import WarmupStableDecay as WarmupStableDecay
    from .onecycle import OneCycle as OneCycle
    from .plateau import Plateau as Plateau
    from .spec import describe as describe
    from .spec import rebuild as rebuild
    from .table import POLICIES as POLICIES

_MODULES: dict[str, tuple[str, ...]] = {
    "base": (
        "Policy",
        "Values",
    ),
    "compose": (
        "LambdaPolicy",
        "Scaled",
        "Sequential",
        "Staircase",
    ),
    "cyclic": (
        "CosineRestarts",
        "CosineWave",
        "ExpRange",
        "Triangular",
        "Triangular2",
    ),
    "decay": (
        "Constant",
        "CosineDecay",
        "ExponentialDecay",
        "ExponentialRamp",
        "InverseTimeDecay",
        "LinearRamp",
        "MultiStepDecay",
        "PolynomialDecay",
        "StepDecay",
        "WarmupStableDecay",
    ),
    "onecycle": ("OneCycle",),
    "plateau": ("Plateau",),
    "spec": (
        "describe",
        "rebuild",
    ),
    "table": ("POLICIES",),
}
__all__, _get = names_on_demand(__name__, _MODULES)
if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__ = _get
