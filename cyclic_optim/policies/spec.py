"""Policies as plain data, for checkpoints: a name and fields, and back by the library's own table."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

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


def describe(policy: Policy) -> dict[str, Any]:
    """The policy as ``{"name": ..., "fields": {...}}`` of strings, numbers, lists and dicts.

    Equal policies have equal descriptions. A function is described by its name: a checkpoint can say
    which one it was, and cannot hold it.
    """
    cls = type(policy)
    ours = POLICIES.get(cls.__name__) is cls
    names = [field.name for field in fields(policy)] if is_dataclass(policy) else sorted(vars(policy))
    return {
        "name": cls.__name__ if ours else f"{cls.__module__}.{cls.__qualname__}",
        "fields": {name: _plain(getattr(policy, name)) for name in names},
    }


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Policy):
        return describe(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    source = value if hasattr(value, "__qualname__") else type(value)
    return {"code": f"{source.__module__}.{source.__qualname__}"}


def rebuild(description: object) -> Policy:
    """The policy that was described. Nothing is looked up but the names in ``POLICIES``.

    Raises:
        ValueError: not a description, or not of a policy that data alone can rebuild.
    """
    if (
        not isinstance(description, dict)
        or not isinstance(description.get("name"), str)
        or not isinstance(description.get("fields"), dict)
    ):
        raise ValueError(f"need a policy as {{'name': ..., 'fields': {{...}}}}, got {description!r}")
    name, described = description["name"], description["fields"]
    if name not in POLICIES:
        raise ValueError(f"need a policy of this library to rebuild it from data, got {name!r}")
    arguments = {key: _argument(name, key, value) for key, value in described.items()}
    try:
        return POLICIES[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"need the arguments of {name}, got {described!r}: {error}") from error


def _argument(name: str, key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_argument(name, key, item) for item in value]
    if isinstance(value, dict) and "code" in value:
        raise ValueError(f"need the code of {name}.{key} ({value['code']}), which data cannot hold")
    return rebuild(value) if isinstance(value, dict) else value
