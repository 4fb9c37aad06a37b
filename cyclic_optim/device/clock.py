"""The schedules of all groups on the device: clocks, one flat table of what the policies say, and a tick.

Everything that an update needs of the schedules is in tensors, so that a captured or compiled step goes on cycling by
itself. The table is the policies' own ``at()``, in float64; no formula is written twice. A rate is
``max_lr * lr_factor`` in float64, as on the host, rounded once to the float32 that ``group["lr"]`` shows. The number
of operations of a tick does not depend on the number of groups or policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..policies import Policy
from ..policies.asked import values_at
from ..rules import whole
from ..schedule import at_once
from ..torch_private import version_of

#: Steps that the table of a policy without end or period reaches, where the user names no ``horizon``.
HORIZON = 100_000
#: Rows (16 bytes each) that a policy with an end or a period may take without the user's asking for them.
MOST_ROWS = 2**20
#: Rows and groups that there is room for from the start: what comes later goes into the same memory.
LEAST_ROWS, LEAST_GROUPS = 2**15, 8
#: The period of a policy that does not repeat.
NEVER = 2**62

_check_horizon = whole(1, optional=True)["rule"]
_NOBODY = (torch.nan, torch.nan)  # the row of a group without a policy: its values stay


class Part(NamedTuple):
    """The rows of one policy in one state of its reports: from step ``start`` on."""

    policy: Policy | None
    state: dict[str, Any] | None
    start: int
    moves: bool  # whether it starts where it was made, and not at step 0
    period: int | None
    rows: Tensor  # float64 [n, 2], on the host: factor and momentum, NaN where the policy leaves momentum alone
    highest_factor: float
    cycles_momentum: bool

    def held(self, step: int) -> int:
        """The step whose values count at ``step``: an earlier one, where the last row holds."""
        return step if self.period is not None else min(step, self.start + len(self.rows) - 1)


class Stand(NamedTuple):
    """Where one group stands."""

    policy: Policy | None = None
    state: dict[str, Any] | None = None
    step: int = 0
    restarts: bool = False  # whether its horizon is counted from this step


class DeviceClock:
    """Counts applied updates on the device, and keeps the current values of every group there.

    With room for more groups than there are (``n`` of them):

    ==============  ==================  =================================================================
    ``step``        int64 ``[n]``       updates applied since each group's step 0
    ``values``      float32 ``[n, 2]``  the next step's lr and momentum; groups show views of these
    ``scale``       float64 ``[n, 2]``  the peak, and 1
    ``table``       float64 ``[rows, 2]``  factor and momentum, the policies' parts one after another
    ``place``       int64 ``[4, n]``    of each group's part: first row, period, last row, step of the first row
    ``now``         float64 ``[n, 2]``  the table's row for the current step
    ``seen``        float64 ``[n, 2]``  the ``scale`` that ``values`` were made with
    ==============  ==================  =================================================================

    A periodic policy is tabulated for one period and its step taken modulo that; one with an end, up to it, and the
    last row holds. For one with neither, and one whose end lies farther than ``horizon``, there are ``horizon`` rows
    from the step at which they were made; then the last row holds.
    """

    def __init__(self, device: torch.device, horizon: int | None = None) -> None:
        self.horizon: int | None = _check_horizon("horizon", horizon)
        self.device = device
        self.parts: list[Part] = []  # of each group
        self._make_room(LEAST_GROUPS)
        self.table = torch.full((LEAST_ROWS, 2), torch.nan, dtype=torch.float64, device=device)

    def _make_room(self, n: int) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.step = zeros(n, dtype=torch.int64)
        self.values = zeros(n, 2, dtype=torch.float32)
        self.scale = zeros(n, 2, dtype=torch.float64).fill_(1)
        self.place = zeros(4, n, dtype=torch.int64)
        self.place[1].fill_(NEVER)
        self.now, self.seen = zeros(n, 2, dtype=torch.float64), self.scale.clone()
        self._show()

    def _show(self) -> None:
        # Views, made once: groups show these objects, and an edit shows as another object.
        self.lr, self.momentum = [*self.values[:, 0].unbind()], [*self.values[:, 1].unbind()]
        self.max_lr, self.steps = [*self.scale[:, 0].unbind()], [*self.step.unbind()]
        self._known_scale = version_of(self.scale)

    def __getstate__(self) -> dict[str, Any]:
        views = ("lr", "momentum", "max_lr", "steps")  # which pickling would tear from what they are views of
        return {key: value for key, value in vars(self).items() if key not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._show()

    @property
    def tensors(self) -> list[Tensor]:
        """All that a graph reads or writes."""
        return [self.step, self.values, self.scale, self.place, self.now, self.seen, self.table]

    # -- groups -------------------------------------------------------------------------------------------------------

    def join(self) -> bool:
        """Make room for one more group; whether all groups got new tensors for it."""
        n, room = len(self.parts), len(self.step)
        self.parts.append(_part(Stand(), self.horizon))
        if n < room:
            return False
        old = self.step, self.values, self.scale, self.now, self.seen, self.place
        self._make_room(2 * room)
        for new, before in zip((self.step, self.values, self.scale, self.now, self.seen), old, strict=False):
            new[:room].copy_(before)
        self.place[:, :room].copy_(old[-1])
        self._show()
        return True

    def leave(self) -> None:
        """Take back the last :meth:`join`."""
        self.parts.pop()

    def parts_for(self, stands: Sequence[Stand]) -> list[Part]:
        """For each group its part: shared where it can be, and the old one where nothing changed.

        Raises:
            ValueError, TypeError: a policy has no valid answer, or needs more rows than it may have.
        """
        known = list({id(part): part for part in self.parts}.values())
        parts = []
        for stand in stands:
            part = next((part for part in known if _serves(part, stand)), None)
            if part is None:
                known.append(part := _part(stand, self.horizon))
            parts.append(part)
        return parts

    def fill(self, parts: list[Part], steps: Sequence[int]) -> None:
        """Write parts and clocks of all groups, into the memory that captured graphs read."""
        distinct = list({id(part): part for part in parts}.values())
        ends = [*accumulate(len(part.rows) for part in distinct)]
        first = {id(part): end - len(part.rows) for part, end in zip(distinct, ends, strict=True)}
        if ends[-1] > len(self.table):  # graphs captured before this go on with the old one
            self.table = torch.full((2 * ends[-1], 2), torch.nan, dtype=torch.float64, device=self.device)
        self.table[: ends[-1]].copy_(torch.cat([part.rows for part in distinct]))
        places = [(first[id(part)], part.period or NEVER, len(part.rows) - 1, part.start) for part in parts]
        self.place[:, : len(parts)].copy_(torch.tensor(places, dtype=torch.int64, device="cpu").t())
        self.step[: len(parts)].copy_(torch.tensor([*steps], dtype=torch.int64, device="cpu"))
        self.parts = parts

    # -- the step -----------------------------------------------------------------------------------------------------

    def follow_edits(self) -> None:
        """Where a peak was edited, write the rate that follows; a rate that was edited, too, stays."""
        edited = (self.scale != self.seen) & (self.values == (self.now * self.seen).float())
        self.values.copy_(torch.where(edited, (self.now * self.scale).float(), self.values))
        self.seen.copy_(self.scale)

    def settle(self) -> None:
        """The current values are those of the current steps and peaks: what differs from now on was edited."""
        first, period, last, start = self.place.unbind()
        self.now.copy_(self.table.index_select(0, first + ((self.step - start) % period).minimum(last)))
        self.seen.copy_(self.scale)
        self.settled()

    def settled(self) -> None:
        """What was written to the peaks so far was no edit."""
        self._known_scale = version_of(self.scale)

    def is_edited_in_place(self) -> bool:
        """Whether somebody wrote into a peak since this was asked last, without looking at values."""
        if version_of(self.scale) == self._known_scale:
            return False
        self._known_scale = version_of(self.scale)
        return True

    def tick(self, found_inf: Tensor | None) -> None:
        """Count one update, unless ``found_inf`` is other than 0, and write the next step's values."""
        applied: Any = 1 if found_inf is None else found_inf.to(self.device).reshape(()) == 0
        first, period, last, start = self.place.unbind()
        step = self.step + applied
        rows = self.table.index_select(0, first + ((step - start) % period).minimum(last))
        values = (rows * self.scale).float()
        stays = rows.isnan()
        if found_inf is not None:
            stays = stays | ~applied  # an edited rate waits for the step that uses it
            rows = torch.where(applied, rows, self.now)
        values = torch.where(stays, self.values, values)
        if torch.compiler.is_compiling():
            self.step.copy_(step)
            self.now.copy_(rows)
            self.values.copy_(values)
        else:
            at_once([partial(self.step.copy_, step), partial(self.now.copy_, rows), partial(self.values.copy_, values)])


def _serves(part: Part, stand: Stand) -> bool:
    """Whether a part that exists is what a group needs."""
    if part.policy is not stand.policy or part.state != stand.state:
        return False
    return not part.moves or (part.start == stand.step if stand.restarts else part.start <= stand.step)


def _part(stand: Stand, horizon: int | None) -> Part:
    """Ask a policy for all of its rows."""
    policy, state, step, _ = stand
    if policy is None:
        return Part(None, None, 0, False, None, torch.tensor([_NOBODY], dtype=torch.float64, device="cpu"), 0.0, False)
    period, length, moves = _extent(policy, horizon)
    start = step if moves else 0
    answers = [values_at(policy, start + row, state) for row in range(length)]
    rows = [(factor, torch.nan if momentum is None else momentum) for factor, momentum in answers]
    table = torch.tensor(rows, dtype=torch.float64, device="cpu")
    cycles_momentum = any(momentum is not None for _, momentum in answers)
    return Part(policy, state, start, moves, period, table, max(factor for factor, _ in answers), cycles_momentum)


def _extent(policy: Policy, horizon: int | None) -> tuple[int | None, int, bool]:
    """The period to take steps modulo, if any; the rows of the table; whether it starts where it is made."""
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
