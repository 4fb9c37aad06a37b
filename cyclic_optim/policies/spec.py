"""Policies as plain data, for checkpoints: a name and fields, and back by the table of the library's policies."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..rules import shown
from .base import Policy
from .table import POLICIES

#: Maximum nesting of policies in a checkpoint. Each level costs one call per step.
MOST_LEVELS = 50


def describe(policy: Policy) -> dict[str, Any]:
    """The policy as ``{"name": ..., "fields": {...}}`` of strings, numbers, lists and dicts.

    Equal policies have equal descriptions. A function is described by its name, as a checkpoint cannot hold the
    function.
    """
    cls = type(policy)
    ours = cls.__module__.rpartition(".")[0] == __package__
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


def check_description(description: object) -> tuple[str, dict[str, Any]]:
    """The name and the fields of a description, or a ValueError where it is none."""
    if (
        not isinstance(description, dict)
        or not isinstance(description.get("name"), str)
        or not isinstance(description.get("fields"), dict)
    ):
        raise ValueError(f"need a policy as {{'name': ..., 'fields': {{...}}}}, got {shown(description)}")
    return description["name"], description["fields"]


def rebuild(description: object, levels: int = MOST_LEVELS) -> Policy:
    """The policy that was described. Only the names in :mod:`.table` are looked up.

    Raises:
        ValueError: it is no description, its policy cannot be rebuilt from data alone, or it has policies nested more
            than ``levels`` deep.
    """
    name, described = check_description(description)
    if levels < 1:
        raise ValueError(f"need policies nested at most {MOST_LEVELS} deep, got more")
    if name not in POLICIES:
        raise ValueError(f"need a policy of this library to rebuild it from data, got {shown(name)}")
    arguments = {key: _argument(f"{name}.{key}", value, levels) for key, value in described.items()}
    try:
        return POLICIES[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"need the arguments of {name}, got {shown(described)}: {error}") from error


def _argument(where: str, value: Any, levels: int) -> Any:
    if isinstance(value, list):
        return [_rebuilt(where, item, levels) for item in value]
    return _rebuilt(where, value, levels)


def _rebuilt(where: str, value: Any, levels: int) -> Any:
    if isinstance(value, dict) and "code" in value:
        raise ValueError(f"need the code of {where} ({shown(value['code'])}), which data cannot hold")
    return rebuild(value, levels - 1) if isinstance(value, dict) else value
