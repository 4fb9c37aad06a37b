"""Pickling an optimizer: a clear error where its policies carry functions that cannot be pickled."""

from __future__ import annotations

import pickle
import sys
from typing import Any

#: Picklers that pickle functions by value.
_PICKLE_FUNCTIONS = ("cloudpickle", "dill")


class Guard:
    """Pickled before the rest of an optimizer; raises what to do instead, if a policy cannot be pickled."""

    def __init__(self, policies: list[Any] | None = None) -> None:
        self._policies = policies

    def __deepcopy__(self, memo: Any) -> Guard:
        return Guard()

    def __reduce__(self) -> Any:
        if not _is_called_from(_PICKLE_FUNCTIONS):
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
