"""The schedule on the device: a counter, a table of what the policy says, and a tick that copies a row into force.

Everything that an update needs to know of the schedule is in tensors, so that a captured or compiled step goes on
cycling by itself. The table is the policy's own ``at()``, in float64; no formula is written down twice. A rate is
``max_lr * lr_factor`` in float64, as on the host, rounded once to the float32 that ``group["lr"]`` holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .policies.base import Policy
from .rules import whole
from .schedule import at_once

#: Updates that the table of a policy without end or period reaches, where the user names no ``horizon``.
HORIZON = 100_000
#: Rows (16 bytes each) that a policy with an end or a period may take without the user's asking for them.
MOST_ROWS = 2**20

_check_horizon = whole(1, optional=True)["rule"]

#: What a policy says of a step: ``(lr_factor, momentum)``.
At = Callable[[int], "tuple[float, float | None]"]


class DeviceClock:
    """Counts applied updates on the device, and keeps the values in force there.

    ====================  =============================================================================
    ``step``              int64, 0-dim: updates applied so far
    ``lr[i]``             float32, 0-dim: the rate in force for group i
    ``momentum[i]``       float32, 0-dim: likewise
    ``max_lr[i]``         float64, 0-dim: its peak
    ``table``             float64 [rows, 2]: factor and momentum; NaN where the policy leaves momentum alone
    ``start``             int64, 0-dim: the step of the first row
    ====================  =============================================================================

    A periodic policy is tabulated for one period and its step taken modulo that; one with an end, up to it, and
    the last row holds. For one with neither, and one whose end lies farther than ``horizon``, the table has ``horizon``
    rows from the step at which it was filled (0, or the step of a checkpoint that was loaded); then the last row holds.
    """

    def __init__(self, policy: Policy, at: At, device: torch.device, *, step: int = 0, horizon: int | None = None):
        horizon = _check_horizon("horizon", horizon)
        self.device = device
        self.period, self.rows, self._moves = _extent(policy, horizon)
        self.table = torch.zeros(self.rows, 2, dtype=torch.float64, device=device)
        self.step = torch.full((), step, dtype=torch.int64, device=device)
        self.start = torch.zeros((), dtype=torch.int64, device=device)
        self.lr: list[Tensor] = []
        self.momentum: list[Tensor] = []
        self.max_lr: list[Tensor] = []
        self.fill(at, step)

    def fill(self, at: At, step: int) -> None:
        """Write the table anew, into the tensor that a captured graph reads. Nothing changes where ``at`` fails."""
        start = step if self._moves else 0
        rows = [at(start + row) for row in range(self.rows)]
        table = [(factor, torch.nan if momentum is None else momentum) for factor, momentum in rows]
        self.table.copy_(torch.tensor(table, dtype=torch.float64, device="cpu"))
        self.start.fill_(start)
        self._start = start
        self.highest_factor = max(factor for factor, _ in rows)
        self.cycles_momentum = any(momentum is not None for _, momentum in rows)

    def held(self, step: int) -> int:
        """The step whose values are in force at ``step``: an earlier one, where the last row holds."""
        return step if self.period is not None else min(step, self._start + self.rows - 1)

    def join(self) -> None:
        """Make room for one more group."""
        self.lr.append(torch.zeros((), dtype=torch.float32, device=self.device))
        self.momentum.append(torch.zeros((), dtype=torch.float32, device=self.device))
        self.max_lr.append(torch.zeros((), dtype=torch.float64, device=self.device))

    def leave(self) -> None:
        """Take back the last :meth:`join`."""
        for values in (self.lr, self.momentum, self.max_lr):
            values.pop()

    def tick(self, found_inf: Tensor | None) -> None:
        """One update was applied, unless ``found_inf`` is other than 0: count it, and put the next values in force."""
        applied: Any = 1 if found_inf is None else found_inf.to(self.device).reshape(()) == 0
        step = self.step + applied
        row = step if self.period is not None else step - self.start
        row = (row % self.period if self.period is not None else row).clamp(0, self.rows - 1)
        factor, momentum = self.table.index_select(0, row.reshape(1)).reshape(2).unbind()
        # All groups at once: an operation for each would cost a launch for each.
        lrs = _together(self.max_lr).mul(factor).float()
        held = _together(self.momentum)
        momenta = torch.where(momentum.isnan(), held, momentum)
        if found_inf is not None:
            # An edited rate waits for the step that uses it.
            lrs = torch.where(applied, lrs, _together(self.lr))
            momenta = torch.where(applied, momenta, held)
        if torch.compiler.is_compiling():
            self.step.copy_(step)
            torch._foreach_copy_(self.lr, lrs.unbind())
            torch._foreach_copy_(self.momentum, momenta.unbind())
        else:
            write: Any = torch._foreach_copy_
            rates, momentums = partial(write, self.lr, lrs.unbind()), partial(write, self.momentum, momenta.unbind())
            at_once([partial(self.step.copy_, step), rates, momentums])


def _together(values: list[Tensor]) -> Tensor:
    """A tensor with the numbers of all groups."""
    return torch.stack(values) if len(values) > 1 else values[0].reshape(1)


def _extent(policy: Policy, horizon: int | None) -> tuple[int | None, int, bool]:
    """The period to take steps modulo, if any; the rows of the table; whether it starts where it is filled."""
    end, period = policy.end, policy.period
    if end is not None:
        if horizon is not None and end >= horizon:
            return None, horizon, True
        length, period = end + 1, None
    elif period is not None:
        length = period
        if horizon is not None and horizon < period:
            raise ValueError(f"need horizon >= the policy's period, got {horizon=}, period={period} of {policy!r}")
    else:
        return None, HORIZON if horizon is None else horizon, True
    if length > MOST_ROWS and horizon is None:
        raise ValueError(
            f"need a policy of at most {MOST_ROWS} steps with capturable=True, got {length} steps of {policy!r}: "
            "give horizon=, the number of steps to tabulate"
        )
    return period, length, False
