"""What ``CyclicSGD(capturable=True)`` does: a step that neither asks the host nor is asked by it.

The values that a step reads and writes are tensors of the clock's, and the param groups show those very tensors.
Rules of schedules stay where they are (:mod:`.schedule`): they see param groups of plain numbers, made from the
tensors and written back into them. That waits for the device, and happens when a checkpoint is made or loaded, a
metric reported or a group added; never in a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .device_clock import DeviceClock
from .policies.asked import values_at
from .rules import finite, whole
from .schedule import Group, Schedule
from .updates import DeviceRow, PortableUpdate, Update, choose_device_update

State = dict[Any, dict[str, Any]]

#: What the param groups show as tensors.
SHOWN = ("lr", "momentum", "max_lr", "schedule_step")

_check_step = whole(0)["rule"]
_LARGEST = torch.finfo(torch.float32).max


class DevicePath:
    """Clock and buffers of an optimizer on its device, and the update that uses them."""

    def __init__(self, schedule: Schedule, groups: list[Group], state: State, horizon: int | None) -> None:
        device = next((param.device for group in groups for param in group["params"]), torch.device("cpu"))
        self._schedule, self._reports = schedule, groups[0].get("policy_state")
        self.clock = DeviceClock(schedule.policy, self._at, device, horizon=horizon)
        # Numbers as they were given, before float32 rounded them; None where a tensor was.
        self._given: list[dict[str, Any]] = []
        self._update: tuple[Any, list[DeviceRow], Update] | None = None
        for group in groups:
            self.join(group, state)

    def _at(self, step: int) -> tuple[float, float | None]:
        return values_at(self._schedule.policy, step, self._reports)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_update": None}  # which may hold addresses

    # -- between steps: plain numbers and back ------------------------------------------------------

    def join(self, group: Group, state: State) -> None:
        """Take in a group of plain numbers: from now on it shows the device's."""
        self._check(group)
        index = len(self._given)
        self.clock.join()
        self._given.append({})
        try:
            self._put(index, group)
            self._create(index, group, state)
        except BaseException:
            self.clock.leave()
            del self._given[index:]
            for param in group["params"]:
                state.pop(param, None)
            raise

    def _check(self, group: Group) -> None:
        for key in ("foreach", "fused", "differentiable"):
            if group[key]:
                raise ValueError(
                    f"need {key} unset with capturable=True, which has an update of its own, got {key}=True"
                )
        for key in ("weight_decay", "dampening"):
            if isinstance(group[key], Tensor):
                raise TypeError(f"need {key} as a number with capturable=True, got {key}={group[key]!r}")
        for param in group["params"]:
            if param.device != self.clock.device:
                devices = f"{self.clock.device} and {param.device}"
                raise ValueError(f"need all parameters on one device with capturable=True, got {devices}")
            if not param.is_floating_point():
                raise ValueError(f"need floating-point parameters with capturable=True, got {param.dtype}")
        highest = max(group["max_lr"] * self.clock.highest_factor, group["lr"], group["momentum"])
        if highest > _LARGEST:
            raise ValueError(f"need rates and momenta that float32 can hold with capturable=True, got up to {highest}")

    def _put(self, index: int, group: Group) -> None:
        for key, own in zip(SHOWN, self._own(index), strict=True):
            value = group[key]
            own.fill_(value.reshape(()) if isinstance(value, Tensor) else value)
            self._given[index][key] = value
            group[key] = own

    def _own(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        clock = self.clock
        return clock.lr[index], clock.momentum[index], clock.max_lr[index], clock.step

    def plain(self, groups: list[Group]) -> list[Group]:
        """The groups in plain numbers, as a host's schedule would have them. Waits for the device."""
        if not groups:
            return []
        self._take_edits(groups)
        step = int(self.clock.step.item())
        lr_factor, momentum = self._at(self.clock.held(step))
        values = torch.stack([value.double() for i in range(len(groups)) for value in self._own(i)[:3]])
        numbers = iter(values.tolist())
        made = []
        for group, given, lr, held, max_lr in zip(groups, self._given, numbers, numbers, numbers, strict=False):
            # In full precision, where float32 holds what the policy or the user said.
            lr = _unrounded(lr, max_lr * lr_factor, given["lr"])
            held = _unrounded(held, momentum, given["momentum"])
            made.append({**group, "lr": lr, "momentum": held, "max_lr": max_lr, "schedule_step": step})
        return made

    def report(self, groups: list[Group], metric: float) -> None:
        """Tell the policy a metric, and write what follows from it into the tensors."""
        plain = self.plain(groups)
        undo = self.remember()
        try:
            self._schedule.report(plain, metric)
            self.take(plain)
        except BaseException:
            undo()
            raise
        for group, reported in zip(groups, plain, strict=True):
            group["policy_state"] = reported["policy_state"]

    def take(self, groups: list[Group]) -> None:
        """Go on from groups of plain numbers, in the tensors that there are."""
        self._reports = groups[0].get("policy_state")
        self.clock.fill(self._at, groups[0]["schedule_step"])
        for group in groups:
            self._check(group)
        for index, group in enumerate(groups):
            self._put(index, group)

    def remember(self) -> Callable[[], None]:
        """What puts everything back that loading, up to where it copies buffers, may have written to."""
        own, clock = dict(vars(self)), dict(vars(self.clock))
        given = [dict(numbers) for numbers in self._given]
        tensors = [self.clock.table, self.clock.start, self.clock.step]
        tensors += [*self.clock.lr, *self.clock.momentum, *self.clock.max_lr]
        kept = [tensor.clone() for tensor in tensors]

        def undo() -> None:
            vars(self).update(own, _given=given)
            vars(self.clock).update(clock)
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)

        return undo

    def load(self, groups: list[Group], state: State, previous: State) -> None:
        """Go on from a checkpoint: groups of plain numbers, and buffers to be copied into the ``previous`` ones."""
        self.take(groups)
        for index, group in enumerate(groups):
            for param in group["params"]:
                kept, own = state.get(param, {}), previous.get(param, {})
                kept.pop("started", None)  # a flag of ours, which no checkpoint has
                loaded = kept.get("momentum_buffer")
                if loaded is not None and loaded.layout is not torch.strided:
                    kept["momentum_buffer"] = loaded.to_dense()
                if "started" in own:
                    state[param]["started"] = torch.full_like(own["started"], loaded is not None)
            self._create(index, group, state)
        # Only now, when nothing can fail any more.
        for param in (param for group in groups for param in group["params"]):
            for key in ("momentum_buffer", "started"):
                held, value = previous.get(param, {}).get(key), state.get(param, {}).get(key)
                if held is not None:
                    state[param][key] = held.zero_() if value is None else held.copy_(value)

    def state_dict(self, groups: list[Group], saved: dict[str, Any]) -> dict[str, Any]:
        """torch's state dict with plain numbers, and without the buffers of parameters that never moved."""
        for packed, plain in zip(saved["param_groups"], self.plain(groups), strict=True):
            packed.update({key: plain[key] for key in SHOWN})
        flags = [(key, kept["started"]) for key, kept in saved["state"].items() if "started" in kept]
        started = torch.stack([flag for _, flag in flags]).tolist() if flags else []
        for (key, _), has_started in zip(flags, started, strict=True):
            dropped = ("started",) if has_started else ("started", "momentum_buffer")
            saved["state"][key] = {name: value for name, value in saved["state"][key].items() if name not in dropped}
        return saved

    # -- the step -----------------------------------------------------------------------------------

    def step(self, groups: list[Group], state: State, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Apply one update with the values in force, then move them along the policy, all on the device."""
        if self._take_edits(groups, steps=True):
            return
        rows, grads = [], []
        for index, group in enumerate(groups):
            self._create(index, group, state)
            with_buffers = self._has_momentum(index)
            options = group["dampening"], group["weight_decay"], group["nesterov"], group["maximize"]
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                if grad.layout is not torch.strided:
                    raise ValueError(f"need dense gradients with capturable=True, got {grad.layout}")
                buffer = _local(state[param]["momentum_buffer"]) if with_buffers else None
                started = state[param].get("started") if with_buffers else None
                values = self.clock.lr[index], self.clock.momentum[index]
                rows.append(DeviceRow(_local(param), buffer, started, *values, *options))
                grads.append(_local(grad))
        if rows:
            self._updater(rows)(grads, grad_scale, found_inf)
        self.clock.tick(found_inf)

    def _updater(self, rows: list[DeviceRow]) -> Update:
        if torch.compiler.is_compiling():
            return PortableUpdate(rows)  # the compiler makes a kernel of it
        key = [tuple(map(id, row[:5])) + row[5:] for row in rows]
        if self._update is not None and self._update[0] == key:
            return self._update[2]
        for row in rows:
            if row.param.device != self.clock.device:
                raise ValueError(
                    f"need parameters where they were when the optimizer was built, on {self.clock.device}, got "
                    f"{row.param.device}: build it after model.to(device)"
                )
        update = choose_device_update(rows)
        if not _is_capturing():  # where no kernel can be loaded: the steps outside of that graph need not go without
            self._update = key, rows, update  # the rows, so that no id is given out again
        return update

    def _has_momentum(self, index: int) -> bool:
        return self.clock.cycles_momentum or self._given[index]["momentum"] != 0

    def _create(self, index: int, group: Group, state: State) -> None:
        """Buffers for those that lack them; all but those thawed later were given theirs at the start."""
        if not self._has_momentum(index):
            return
        for param in group["params"]:
            if not param.requires_grad and param.grad is None:
                continue
            kept = state[param]
            if kept.get("momentum_buffer") is None:
                _refuse_in_capture("a parameter that was frozen when the optimizer was built has no buffer yet")
                kept["momentum_buffer"] = torch.zeros_like(param, requires_grad=False)
            if group["dampening"] != 0 and "started" not in kept:
                _refuse_in_capture("dampening was 0 so far")
                kept["started"] = (_local(kept["momentum_buffer"]) != 0).any().to(torch.float32)

    def _take_edits(self, groups: list[Group], *, steps: bool = False) -> bool:
        """Write what was assigned to a group's values since the last step; True if a step would be a dry run.

        Distributed checkpointing puts a 0 in place of every rate before a step that is to move nothing, and which
        ends there; until that comes, the zeros stay. Rates set to 0 inside the tensors are rates like others: the
        host does not look.
        """
        edits = [
            (index, key, group[key], own)
            for index, group in enumerate(groups)
            for key, own in zip(SHOWN, self._own(index), strict=True)
            if group[key] is not own
        ]
        if not edits:
            return False
        _refuse_in_capture("lr, momentum or max_lr was assigned to since the last step")
        for _, key, value, _ in edits:
            if isinstance(value, Tensor):
                _check_one(key, value)
            else:
                (_check_step if key == "schedule_step" else _check_value)(key, value)
        is_dry_run = sum(key == "lr" and _is_zero(value) for _, key, value, _ in edits) == len(groups)
        # Copies, as one group may have been given the very tensor of another that is written to, too.
        values = [value.detach().clone() if isinstance(value, Tensor) else value for _, _, value, _ in edits]
        for (_, key, _, _), value in zip(edits, values, strict=True):
            if key == "schedule_step":
                self.clock.fill(self._at, _check_step(key, int(value)))  # the only one that can fail comes first
        for (index, key, _, own), value in zip(edits, values, strict=True):
            if key == "lr" and is_dry_run:
                if steps:
                    groups[index][key] = own
                continue
            groups[index][key] = own
            if isinstance(value, Tensor):
                own.copy_(value.reshape(()))
            else:
                own.fill_(value)
            self._given[index][key] = None if isinstance(value, Tensor) else value
        return is_dry_run


def _check_value(name: str, value: Any) -> None:
    if finite(name, value, minimum=0) > _LARGEST:
        raise ValueError(f"need {name} to be a number that float32 can hold, got {name}={value!r}")


def _check_one(name: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise ValueError(f"need {name} to be a number or a tensor of one, got {name}={value!r}")


def _unrounded(held: float, *said: float | None) -> float:
    """The number that was said and that float32 rounds to ``held``; ``held`` itself if it is another's."""
    for number in said:
        if number is not None and torch.tensor(number, dtype=torch.float32, device="cpu").item() == held:
            return number
    return held


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return False
    return bool(value == 0)


def _local(tensor: Any) -> Any:
    """The shard of a DTensor: the update is elementwise."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _refuse_in_capture(why: str) -> None:
    # What is done here would be done again, with the same numbers, in every replay.
    if _is_capturing():
        raise RuntimeError(
            f"need nothing to be set up while a CUDA graph is captured, but {why}: call step() once before"
        )
