"""The schedules of all groups on the device: clocks, one flat table of the policies' values, and a tick.

Everything that an update needs of the schedules is in tensors, so that a captured or compiled step goes on cycling by
itself. The table comes from the policies' own ``at()``, in float64; no formula is written twice. A rate is
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

#: Steps in the table of a policy without end or period, unless the user gives a ``horizon``.
HORIZON = 100_000
#: The most rows (24 bytes each) for a policy with an end or a period, unless the user gives a ``horizon``.
MOST_ROWS = 2**20
#: Room for rows and groups from the start, so that later ones go into the memory that captured graphs read.
LEAST_ROWS, LEAST_GROUPS = 2**15, 8
#: The period of a policy that does not repeat.
NEVER = 2**62

#: The smallest float32 above 0.
LEAST_MOMENTUM = 2.0**-149

_check_horizon = whole(1, optional=True)["rule"]
_NO_POLICY = (torch.nan, torch.nan, torch.nan)  # the row of a group without a policy: its values stay


class Part(NamedTuple):
    """The rows of one policy in one state of its reports: from step ``start`` on."""

    policy: Policy | None
    state: dict[str, Any] | None
    start: int
    is_window: bool  # whether it starts at the step for which it was made, not at step 0
    period: int | None
    rows: Tensor  # float64 [n, 3], on the host: policies' values, NaN where the policy leaves one alone
    highest_factor: float
    cycles_momentum: bool
    highest_decay_factor: float | None  # None: the policy leaves weight decay alone

    def row_step(self, step: int) -> int:
        """The step whose row is used at ``step``: after the end of the table, the last row's."""
        return step if self.period is not None else min(step, self.start + len(self.rows) - 1)


class Position(NamedTuple):
    """Where one group is on its policy."""

    policy: Policy | None = None
    state: dict[str, Any] | None = None
    step: int = 0
    restarts: bool = False  # whether its horizon is counted from this step


class Held(NamedTuple):
    """What the tensors of one group hold, in numbers."""

    step: int
    lr: float
    momentum: float
    weight_decay: float
    peak: float
    own_decay: float
    peak_of_lr: float  # the peak that lr was computed from
    own_of_decay: float  # the group's own weight decay that weight_decay was computed from


class DeviceClock:
    """Counts applied updates on the device, and keeps the current values of every group there.

    With room for more groups than there are (``n`` of them):

    ==============  ==================  =================================================================
    ``step``        int64 ``[n]``       updates applied since each group's step 0
    ``values``      float32 ``[n, 3]``  the next step's lr, momentum and weight decay; groups show views of these
    ``scale``       float64 ``[n, 3]``  the peak, 1, and the group's own weight decay
    ``table``       float64 ``[rows, 3]``  factor, momentum, and factor of weight decay: the policies' parts in turn
    ``place``       int64 ``[4, n]``    of each group's part: first row, period, last row, step of the first row
    ``now``         float64 ``[n, 3]``  the table's row for the current step
    ``seen``        float64 ``[n, 3]``  the ``scale`` that ``values`` were made with
    ==============  ==================  =================================================================

    A periodic policy is tabulated for one period, and its step taken modulo that; a policy with an end is tabulated up
    to it. A policy with neither, or with an end beyond ``horizon``, has ``horizon`` rows from the step at which they
    were made. After the last row its values stay.
    """

    def __init__(self, device: torch.device, horizon: int | None = None) -> None:
        self.horizon: int | None = _check_horizon("horizon", horizon)
        self.device = device
        self.parts: list[Part] = []  # of each group
        self.rows = 0  # of all of them
        self._make_room(LEAST_GROUPS)
        self.table = torch.full((LEAST_ROWS, 3), torch.nan, dtype=torch.float64, device=device)

    def _make_room(self, n: int) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.step = zeros(n, dtype=torch.int64)
        self.values = zeros(n, 3, dtype=torch.float32)
        self.scale = zeros(n, 3, dtype=torch.float64).fill_(1)
        self.place = zeros(4, n, dtype=torch.int64)
        self.place[1].fill_(NEVER)
        self.now, self.seen = zeros(n, 3, dtype=torch.float64), self.scale.clone()
        self._make_views()

    def _make_views(self) -> None:
        # Made once: groups show these objects, and an edit shows as another object.
        self.lr, self.momentum, self.weight_decay = ([*column.unbind()] for column in self.values.t())
        self.max_lr, _, self.max_weight_decay = ([*column.unbind()] for column in self.scale.t())
        self.steps = [*self.step.unbind()]
        self.expect_no_edit()

    def __getstate__(self) -> dict[str, Any]:
        views = (
            "lr",
            "momentum",
            "weight_decay",
            "max_lr",
            "max_weight_decay",
            "steps",
        )  # pickling would make copies of them
        return {key: value for key, value in vars(self).items() if key not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_views()

    @property
    def tensors(self) -> list[Tensor]:
        """All that a graph reads or writes."""
        return [self.step, self.values, self.scale, self.place, self.now, self.seen, self.table[: self.rows]]

    # -- groups -------------------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Make room for one more group; where there is none, all groups get new tensors."""
        n, room = len(self.parts), len(self.step)
        self.parts.append(_tabulated(Position(), self.horizon))
        if n < room:
            return
        by_group = self.step, self.values, self.scale, self.now, self.seen, self.place.t()
        self._make_room(2 * room)
        for new, old in zip(
            (self.step, self.values, self.scale, self.now, self.seen, self.place.t()), by_group, strict=True
        ):
            new[:room].copy_(old)
        self._make_views()

    def parts_for(self, positions: Sequence[Position]) -> list[Part]:
        """The part for each group: shared where possible, and the present one where nothing changed.

        Raises:
            ValueError, TypeError: a policy has no valid values, or needs more rows than it may have.
        """
        known = list({id(part): part for part in self.parts}.values())
        parts = []
        for position in positions:
            part = next((part for part in known if _serves(part, position)), None)
            if part is None:
                known.append(part := _tabulated(position, self.horizon))
            parts.append(part)
        return parts

    def fill(self, parts: list[Part], steps: Sequence[int]) -> None:
        """Write parts and clocks of all groups, into the memory that captured graphs read."""
        distinct = list({id(part): part for part in parts}.values())
        ends = [*accumulate(len(part.rows) for part in distinct)]
        first = {id(part): end - len(part.rows) for part, end in zip(distinct, ends, strict=True)}
        if ends[-1] > len(self.table):  # graphs captured before this go on reading the old one
            self.table = torch.full((2 * ends[-1], 3), torch.nan, dtype=torch.float64, device=self.device)
        self.rows = ends[-1]
        self.table[: self.rows].copy_(torch.cat([part.rows for part in distinct]))
        places = [(first[id(part)], part.period or NEVER, len(part.rows) - 1, part.start) for part in parts]
        self.place[:, : len(parts)].copy_(torch.tensor(places, dtype=torch.int64, device="cpu").t())
        self.step[: len(parts)].copy_(torch.tensor([*steps], dtype=torch.int64, device="cpu"))
        self.parts = parts

    def write(self, i: int, key: str, value: Any) -> None:
        """Write one group's value, as groups show it by this key."""
        # Not through the view that is shown: a number that torch.compile saw assigned would be lost (torch 2.13).
        places: dict[str, tuple[Tensor, Any]] = {
            "lr": (self.values, (i, 0)),
            "momentum": (self.values, (i, 1)),
            "weight_decay": (self.values, (i, 2)),
            "max_lr": (self.scale, (i, 0)),
            "max_weight_decay": (self.scale, (i, 2)),
            "schedule_step": (self.step, i),
        }
        tensor, place = places[key]
        tensor[place] = value

    # -- the step -----------------------------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        """What the tensors of each group hold; synchronizes with the device."""
        n = len(self.parts)
        rows = torch.cat([self.values[:n].double(), self.scale[:n, ::2], self.seen[:n, ::2]], dim=1)
        return [Held(step, *row) for step, row in zip(self.step[:n].tolist(), rows.tolist(), strict=True)]

    def follow_edits(self) -> None:
        """Where a peak (or own weight decay) was edited, write the value that follows, unless that was edited, too."""
        edited = (self.scale != self.seen) & (self.values == (self.now * self.seen).float())
        self.values.copy_(torch.where(edited, (self.now * self.scale).float(), self.values))
        self.seen.copy_(self.scale)

    def refresh(self) -> None:
        """Look up the rows of the current steps: values and peaks that differ from now on were edited."""
        self.now.copy_(self._rows_at(self.step))
        self.seen.copy_(self.scale)
        self.expect_no_edit()

    def expect_no_edit(self) -> None:
        """What was written to the peaks so far was no edit."""
        self._known_scale = version_of(self.scale)

    def is_edited_in_place(self) -> bool:
        """Whether a peak was written to since the last call, without looking at values."""
        known = self._known_scale
        self.expect_no_edit()
        return self._known_scale != known

    def _rows_at(self, step: Tensor) -> Tensor:
        """The table's row for each group's step."""
        first, period, last, start = self.place.unbind()
        return self.table.index_select(0, first + ((step - start) % period).minimum(last))

    def tick(self, found_inf: Tensor | None) -> None:
        """Count one update, unless ``found_inf`` is other than 0, and write the next step's values."""
        applied: Any = 1 if found_inf is None else found_inf.to(self.device).reshape(()) == 0
        step = self.step + applied
        rows = self._rows_at(step)
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


def _serves(part: Part, position: Position) -> bool:
    """Whether a part that exists has the rows for a position."""
    if part.policy is not position.policy or part.state != position.state:
        return False
    if not part.is_window:
        return True
    return part.start == position.step if position.restarts else part.start <= position.step


def _tabulated(position: Position, horizon: int | None) -> Part:
    """The part for a position: all rows of its policy."""
    policy, state, step, _ = position
    if policy is None:
        return Part(None, None, 0, False, None, _table([_NO_POLICY]), 0.0, False, None)
    period, length, is_window = _extent(policy, horizon)
    start = step if is_window else 0
    values = [values_at(policy, start + row, state) for row in range(length)]
    factors, momenta, decays = zip(*values, strict=True)
    held = zip(factors, map(above_0, momenta), decays, strict=True)
    rows = _table([tuple(torch.nan if value is None else value for value in row) for row in held])
    cycles_momentum = any(momentum is not None for momentum in momenta)
    highest_decay = max((factor for factor in decays if factor is not None), default=None)
    return Part(policy, state, start, is_window, period, rows, max(factors), cycles_momentum, highest_decay)


def above_0(momentum: Any) -> Any:
    """The momentum; one that float32 would round to 0 is the least above it: at 0, SGD leaves buffers as they are."""
    return LEAST_MOMENTUM if momentum is not None and 0 < momentum < LEAST_MOMENTUM else momentum


def _table(rows: list[tuple[float, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _extent(policy: Policy, horizon: int | None) -> tuple[int | None, int, bool]:
    """The period to take steps modulo, if any; the rows of the table; whether it starts where it is made."""
    end, period = policy.end, policy.period
    if end is not None and (horizon is None or end < horizon):
        return None, _checked_length(policy, end + 1, horizon), False
    if end is not None or period is None:
        return None, HORIZON if horizon is None else horizon, True
    if horizon is not None and horizon < period:
        raise ValueError(f"need horizon >= the policy's period, got {horizon=}, period={period} of {policy!r}")
    return period, _checked_length(policy, period, horizon), False


def _checked_length(policy: Policy, length: int, horizon: int | None) -> int:
    if length > MOST_ROWS and horizon is None:
        raise ValueError(
            f"need a policy of at most {MOST_ROWS} steps with capturable=True, got {length} steps of {policy!r}: "
            "give horizon=, the number of steps to tabulate"
        )
    return length
