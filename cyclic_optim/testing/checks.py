"""What all checks have in common: a name, a message, and failures that are expected."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..rules import shown

#: What a check is made of: a generator of what it finds wrong. Its docstring has the rule, and what to do.
Finder = Callable[..., Iterator[str]]


@dataclass(frozen=True)
class Check:
    """One named claim about one subject. Call it to test the claim.

    Raises:
        AssertionError: the claim is wrong; the message has the rule, the values and what to do.
    """

    finder: Finder
    subject: str
    arguments: tuple[Any, ...]

    @property
    def __name__(self) -> str:  # which pytest shows as the id
        return self.finder.__name__

    def __call__(self) -> None:
        try:
            found = next(self.finder(*self.arguments), None)
        except Exception as error:
            raise AssertionError(self._message(" ".join(f"{type(error).__name__}: {error}".split()))) from error
        if found is not None:
            raise AssertionError(self._message(found))

    @property
    def rule(self) -> str:
        """What has to hold."""
        return self._paragraph(0)

    def _paragraph(self, i: int) -> str:
        text = " ".join(inspect.cleandoc(self.finder.__doc__ or "").replace("``", "").split("\n\n")[i].split())
        return text[0].lower() + text[1:].rstrip(".")

    def _message(self, found: str) -> str:
        return f"{self.__name__}: need {self.rule}, got {found} from {self.subject}: {self._paragraph(1)}"


def checks_of(finders: Iterable[Finder], subject: str, *arguments: Any) -> list[Check]:
    """A check of each claim."""
    return [Check(finder, subject, arguments) for finder in finders]


def _expected(checks: list[Check], expected_failed_checks: Mapping[str, str] | None) -> Mapping[str, str]:
    expected, names = expected_failed_checks or {}, [check.__name__ for check in checks]
    for name in expected:
        if name not in names:
            raise ValueError(f"need expected_failed_checks to name checks, got {name!r}: one of {', '.join(names)}")
    return expected


def run_all(checks: list[Check], expected_failed_checks: Mapping[str, str] | None) -> None:
    """Run them all, and raise one AssertionError for all that went otherwise than expected."""
    expected, surprises = _expected(checks, expected_failed_checks), []
    for check in checks:
        reason = expected.get(check.__name__)
        try:
            check()
        except AssertionError as error:
            if reason is None:
                surprises.append(str(error))
        else:
            if reason is not None:
                surprises.append(
                    f"{check.__name__}: need it to fail as expected ({reason}), got a pass from {check.subject}: "
                    "remove it from expected_failed_checks"
                )
    if surprises:
        raise AssertionError("\n".join(surprises))


def parametrized(checks: list[Check], expected_failed_checks: Mapping[str, str] | None) -> list[Any]:
    """What ``pytest.mark.parametrize`` takes: the checks, those that are expected to fail as strict xfails."""
    expected = _expected(checks, expected_failed_checks)
    return [_marked(check, expected[check.__name__]) if check.__name__ in expected else check for check in checks]


def _marked(check: Check, reason: str) -> Any:
    import pytest  # whoever parametrizes has it

    return pytest.param(check, marks=pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError))


def one_line(value: Any) -> str:
    """A value in a message."""
    return " ".join(shown(value).split())
