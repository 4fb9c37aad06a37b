"""Rules for arguments, of policies and optimizers alike, and the text of the errors. Standard library only."""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

#: Steps, and lengths in steps, must be below this: an int64 holds them, and every formula is defined for them.
MOST_STEPS = 2**63


class _Shown(reprlib.Repr):
    """A repr that shortens long values, with limits that fit a policy of policies."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxtuple, self.maxlist, self.maxset, self.maxfrozenset = 4, 12, 12, 12, 12, 12
        self.maxstring, self.maxother, self.maxlong = 500, 2000, 500

    def repr_int(self, x: int, level: int) -> str:
        # Python raises a ValueError for the repr of an int of very many digits.
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"<int of {x.bit_length()} bits>"


_shown = _Shown()


def shown(value: Any) -> str:
    """``repr(value)`` for an error message: shortened where it is long. It never raises, whatever the value is."""
    return _shown.repr(value)


class Rule(NamedTuple):
    """What one argument must be. Called with its name and value, it returns the value as plain data, or raises."""

    kind: Any  # int, float, bool, str, tuple (of ints) or Callable
    text: str = ""  # the bound, with {} for the argument's name
    holds: Callable[[Any], bool] = lambda value: True
    optional: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        if value is None and self.optional:
            return None
        value = _CONVERTERS[self.kind](name, value)
        if not self.holds(value):
            raise ValueError(f"need {self.text.format(name)}, got {name}={shown(value)}")
        return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        if int(value) >= MOST_STEPS:
            raise ValueError(f"need {name} < 2**63 (a number of optimizer steps), got {name}={shown(value)}")
        return int(value)
    hint = f": pass an int, for example int({name})" if isinstance(value, numbers.Real) else ""
    raise TypeError(f"need {name} to be an int (a number of optimizer steps), got {name}={shown(value)}{hint}")


def _real(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"need {name} to be a number, got {name}={shown(value)}")
    plain = finite(name, value)
    # An int stays an int: it counts exactly.
    return int(value) if isinstance(value, numbers.Integral) else plain


def finite(name: str, value: Any, minimum: float = -math.inf, where: str = "") -> float:
    """``value`` as a Python float, or a ValueError. For arguments, and for what a user's function returned."""
    try:
        plain = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # an int beyond the range of floats
        plain = math.inf
    if not (minimum <= plain and abs(plain) < math.inf):  # torch.compile does not trace math.isfinite
        bound = f" >= {minimum}" if minimum > -math.inf else ""
        raise ValueError(f"need {name} to be a finite number{bound}, got {name}={shown(value)}{where}")
    return plain


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"need {name} to be True or False, got {name}={shown(value)}")
    return value


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"need {name} to be a string, got {name}={shown(value)}")
    return str.__str__(value)  # strings of an enum or of numpy are not plain data


def _function(name: str, value: Any) -> Any:
    if not callable(value):
        raise TypeError(f"need {name} to be callable, got {name}={shown(value)}")
    return value


def _wholes(name: str, value: Any) -> tuple[int, ...]:
    try:
        items = tuple(value)
    except TypeError:
        raise TypeError(f"need {name} to be a sequence of ints, got {name}={shown(value)}") from None
    return tuple(_whole(f"{name}[{i}]", item) for i, item in enumerate(items))


#: By a rule's kind.
_CONVERTERS: dict[Any, Callable[[str, Any], Any]] = {
    int: _whole,
    float: _real,
    bool: _flag,
    str: _word,
    tuple: _wholes,
    Callable: _function,
}


def whole(minimum: int, *, optional: bool = False) -> dict[str, Rule]:
    """Field metadata: an int of at least ``minimum``."""
    return {"rule": Rule(int, f"{minimum} <= {{}}", lambda value: value >= minimum, optional)}


def real(text: str, holds: Callable[[float], bool]) -> dict[str, Rule]:
    """Field metadata: a finite number for which ``holds`` is true; ``text`` states the bound, with {} for the name."""
    return {"rule": Rule(float, text, holds)}


def one_of(literal: Any) -> dict[str, Rule]:
    """Field metadata: one of the words of this ``Literal``, with which the field is annotated."""
    words: tuple[str, ...] = get_args(literal)
    return {"rule": Rule(str, "{} to be one of " + ", ".join(map(repr, words)), lambda value: value in words)}


def ascending(minimum: int, *, repeats: bool) -> dict[str, Rule]:
    """Field metadata: a sequence of ints in ascending order, the first at least ``minimum``; kept as a tuple."""
    order = operator.le if repeats else operator.lt
    sign = "<=" if repeats else "<"
    return {
        "rule": Rule(
            tuple,
            f"{minimum} <= {{0}}[0] {sign} {{0}}[1] {sign} ...",
            lambda items: all(map(order, items, items[1:])) and all(item >= minimum for item in items),
        )
    }


FLAG = {"rule": Rule(bool)}
FUNCTION = {"rule": Rule(Callable)}
OPTIONAL_FUNCTION = {"rule": Rule(Callable, optional=True)}
POSITIVE = real("0 < {}", lambda value: value > 0)
AT_LEAST_ONE = real("1 <= {}", lambda value: value >= 1)
UNIT = real("0 <= {} <= 1", lambda value: 0 <= value <= 1)
OPTIONAL_UNIT = {"rule": UNIT["rule"]._replace(optional=True)}
POSITIVE_UNIT = real("0 < {} <= 1", lambda value: 0 < value <= 1)


def check_momenta(base_momentum: float, max_momentum: float) -> None:
    """Raise a ValueError where the lower end of a cycled momentum is above the upper one."""
    if base_momentum > max_momentum:
        raise ValueError(f"need base_momentum <= max_momentum, got {base_momentum=}, {max_momentum=}")


def step_index(step: int) -> int:
    """``step`` as an int; an error unless it is a whole number, at least 0 and below 2**63."""
    if type(step) is int and 0 <= step < MOST_STEPS:
        return step
    try:
        index = operator.index(step)
    except TypeError:
        raise TypeError(f"need step to be an int (optimizer steps, not epochs), got step={shown(step)}") from None
    if index < 0:
        raise ValueError(f"need 0 <= step, got step={shown(step)}")
    if index >= MOST_STEPS:
        raise ValueError(f"need step < 2**63, got step={shown(step)}")
    return index
