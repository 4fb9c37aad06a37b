"""Carrying out everything that puts training back, even if single things fail."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .interrupts import Interrupts

if TYPE_CHECKING:
    from .result import LRRangeTest

T = TypeVar("T")

#: So many things that could not be put back are named in an error.
MOST_NAMES = 10


class Undo(NamedTuple):
    """How one thing is put back."""

    name: str
    put_back: Callable[[], object]


class RestoreError(RuntimeError):
    """The range test could not put everything back. The message names what stays changed; all else is as before.

    Attributes:
        result: the :class:`LRRangeTest`, or None if the test itself failed (the exception's ``__cause__`` is why).
        failures: what stays changed: pairs of a name and the exception that its restoring raised.
    """

    failures: list[tuple[str, Exception]]
    result: LRRangeTest | None

    def __init__(self, failures: list[tuple[str, Exception]], result: Any) -> None:
        self.failures, self.result = failures, result
        names = [f"{name} ({type(error).__name__}: {error})" for name, error in failures[:MOST_NAMES]]
        if len(failures) > MOST_NAMES:
            names.append(f"{len(failures) - MOST_NAMES} more")
        super().__init__(
            f"the range test could not put back: {'; '.join(names)}. All else is as before the test"
            + (f", and its result is this error's .result: {result!r}" if result is not None else "")
        )


def run_and_put_back(body: Callable[[], T], save: Callable[[], Iterable[Undo]]) -> T:
    """Call ``save`` and ``body``, carry out what ``save`` returned, and return what ``body`` returned.

    The undos are carried out in their order, also after an exception, each of them even if others fail. A Ctrl-C
    meanwhile is raised at the end.

    Raises:
        RestoreError: something could not be put back.
    """
    interrupts = Interrupts()
    result: T | None = None
    raised: BaseException | None = None
    try:
        interrupts.catch()
        undos = save()
        try:
            interrupts.wait = False
            interrupts.raise_late()
            result = body()
        except BaseException as error:
            raised = error
            raise
        finally:
            interrupts.wait = True
            if failures := put_back(undos):
                _report(RestoreError(failures, result), raised)
        return result
    finally:
        raised = None  # it holds this frame, which would hold it
        interrupts.release()


def put_back(undos: Iterable[Undo]) -> list[tuple[str, Exception]]:
    """Carry out every undo; returns the failures."""
    failures = []
    for name, undo in undos:
        try:
            undo()
        except Exception as error:  # noqa: PERF203 (each is carried out, even if others fail)
            failures.append((name, error))
    return failures


def _report(error: RestoreError, cause: BaseException | None) -> None:
    # An interrupt or exit must go on as one; no loop may catch it as an error.
    if cause is not None and not isinstance(cause, Exception):
        warnings.warn(str(error), stacklevel=5)
    else:
        raise error from cause
