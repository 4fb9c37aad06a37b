"""Pickling an optimizer whose policies carry functions: what to say where they cannot be pickled."""

from __future__ import annotations

import pickle
import sys
from typing import Any

#: Picklers that write functions out themselves.
_WRITE_FUNCTIONS = ("cloudpickle", "dill")


class Guard:
    """Stands first in a pickled optimizer, and fails where its policies will, in words that say what to do."""

    def __init__(self, policies: list[Any] | None = None) -> None:
        self._policies = policies

    def __deepcopy__(self, memo: Any) -> Guard:
        return Guard()

    def __reduce__(self) -> Any:
        if not _is_called_from(_WRITE_FUNCTIONS):
            for policy in self._policies or ():
                _check(policy)
        return Guard, ()


def _check(policy: Any) -> None:
    try:
        pickle.dumps(policy)
    except Exception as error:
        raise pickle.PicklingError(
            f"need policies that can be pickled to pickle the optimizer, got {policy!r} ({error}): save "
            "optimizer.state_dict() instead, and give the policy in the code when it is loaded"
        ) from error


def _is_called_from(packages: tuple[str, ...]) -> bool:
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] in packages:
            return True
        frame = frame.f_back
    return False
