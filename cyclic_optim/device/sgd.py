"""SGD's update on the device: one kernel launch for all tensors of all groups, or plain operations."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..groups import check_held
from ..native import holds, layout
from ..slots import Group, Slot
from .capture import is_capturing, refuse_in_capture
from .clock import Part
from .portable import DeviceRow, PortableUpdate, Update, options_of
from .update import BaseUpdate, State

#: The options of a group that its update depends on, beside the schedule's values.
_OPTIONS = ("dampening", "weight_decay", "nesterov", "maximize")
_STATE = ("momentum_buffer", "started")


class SGDUpdate(BaseUpdate):
    """SGD's update of all groups, with the clock's values.

    An update that was built is reused while the tensors, their addresses and the options stay the same; native code
    compares them on every step.
    """

    unscales = True
    moves_decay = True

    def __init__(self, base: type) -> None:
        super().__init__(base)
        self._built: Built | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": None}  # it may hold addresses

    # -- groups and state ---------------------------------------------------------------------------------------------

    def check(self, group: Group, device: torch.device) -> None:
        for key in ("foreach", "fused", "differentiable"):
            if group[key]:
                raise ValueError(
                    f"need {key} unset with capturable=True, which has an update of its own, got {key}=True"
                )
        for key in ("weight_decay", "dampening"):
            if isinstance(group[key], Tensor):
                raise TypeError(f"need {key} as a number with capturable=True, got {key}={group[key]!r}")
        super().check(group, device)
        for param in group["params"]:
            if not param.is_floating_point():
                raise ValueError(f"need floating-point parameters with capturable=True, got {param.dtype}")

    def shows_momentum(self, part: Part) -> bool:
        return True

    def stored_momentum(self, slot: Slot, i: int, group: Group, momentum: Tensor) -> Any:
        return momentum

    def create(self, schedules: Any, i: int, group: Group, state: State) -> None:
        """Create missing buffers: all when the optimizer is built, but for frozen parameters."""
        if not schedules.shown.has_momentum[i]:
            return
        for param in group["params"]:
            if not param.requires_grad and param.grad is None:
                continue
            entries = state[param]
            if entries.get("momentum_buffer") is None:
                refuse_in_capture("a parameter that was frozen when the optimizer was built has no buffer yet")
                entries["momentum_buffer"] = torch.zeros_like(param, requires_grad=False)
            if group["dampening"] != 0 and "started" not in entries:
                refuse_in_capture("dampening was 0 so far")
                entries["started"] = (local_shard(entries["momentum_buffer"]) != 0).any().to(torch.float32)

    def saved(self, state: State) -> None:
        """Remove the ``started`` flags, and the buffers of parameters that were never updated."""
        flags = [(key, entries["started"]) for key, entries in state.items() if "started" in entries]
        started = torch.stack([flag for _, flag in flags]).tolist() if flags else []
        for (key, _), has_started in zip(flags, started, strict=True):
            dropped = ("started",) if has_started else ("started", "momentum_buffer")
            state[key] = {name: value for name, value in state[key].items() if name not in dropped}

    def load(self, schedules: Any, groups: list[Group], state: State, previous: State) -> None:
        for i, group in enumerate(groups):
            for param in group["params"]:
                self._complete(param, state, previous)
            self.create(schedules, i, group, state)
        # Last, when nothing can fail any more.
        for param in (param for group in groups for param in group["params"]):
            for key in _STATE:
                old, value = previous.get(param, {}).get(key), state.get(param, {}).get(key)
                if old is not None:
                    state[param][key] = old.zero_() if value is None else old.copy_(value)

    def _complete(self, param: Tensor, state: State, previous: State) -> None:
        """Make the buffer dense, and the ``started`` flag what it says."""
        entries, before = state.get(param, {}), previous.get(param, {})
        entries.pop("started", None)  # checkpoints have no such flag
        loaded = entries.get("momentum_buffer")
        if loaded is not None and loaded.layout is not torch.strided:
            entries["momentum_buffer"] = loaded.to_dense()
        if "started" in before:
            state[param]["started"] = torch.full_like(before["started"], loaded is not None)

    # -- the update ---------------------------------------------------------------------------------------------------

    def apply(self, schedules: Any, optimizer: Any, closure: Any, grad_scale: Any, found_inf: Any) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups, state = optimizer.param_groups, optimizer.state
        if torch.compiler.is_compiling():
            rows, grads = self._rows(schedules, groups, state)
            if rows:
                PortableUpdate(rows)(grads, grad_scale, found_inf)  # the compiler makes a kernel of it
            return loss
        update, grads, addresses = self._update_for(schedules, groups, state)
        if grads:
            update(grads, grad_scale, found_inf, addresses)
        return loss

    def _update_for(self, schedules: Any, groups: list[Group], state: State) -> tuple[Update, list[Any], bytes | None]:
        """The update, the gradients, and their addresses where native code has checked everything."""
        built, found = self._built, layout(groups, state, _STATE)
        if built is not None and found is not None and built.serves(found[0], schedules.shown.has_momentum, groups):
            return built.update, [row.param.grad for row in built.rows], found[1]
        rows, grads = self._rows(schedules, groups, state)
        key = [(*map(id, row[:5]), *options_of(row)) for row in rows]
        update = built.update if built is not None and built.key == key else self._choose(rows, schedules.clock.device)
        if not is_capturing():  # no kernel can be loaded in a capture: that update is used once
            found = layout(groups, state, _STATE)  # with the buffers that were just created
            options = tuple([group[option] for group in groups] for option in _OPTIONS)
            self._built = Built(key, rows, update, found and found[0], schedules.shown.has_momentum, options)
        return update, grads, None

    def _choose(self, rows: list[DeviceRow], device: torch.device) -> Update:
        for row in rows:
            if row.param.device != device:
                raise ValueError(
                    f"need parameters where they were when the optimizer was built, on {device}, got "
                    f"{row.param.device}: build it after model.to(device)"
                )
        return choose_device_update(rows)

    def _rows(self, schedules: Any, groups: list[Group], state: State) -> tuple[list[DeviceRow], list[Any]]:
        rows, grads = [], []
        for i, group in enumerate(groups):
            self.create(schedules, i, group, state)
            with_buffers = schedules.shown.has_momentum[i]
            values = schedules.clock.lr[i], schedules.clock.momentum[i]
            moves_decay = schedules.shown.moves_decay(i)
            decay = schedules.clock.weight_decay[i] if moves_decay else group["weight_decay"]
            check_held(group, [key for key in ("dampening", "weight_decay") if not isinstance(group[key], Tensor)])
            options = group["dampening"], decay, bool(group["nesterov"]), bool(group["maximize"])
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                if grad.layout is not torch.strided:
                    raise ValueError(f"need dense gradients with capturable=True, got {grad.layout}")
                buffer = local_shard(state[param]["momentum_buffer"]) if with_buffers else None
                started = state[param].get("started") if with_buffers else None
                rows.append(DeviceRow(local_shard(param), buffer, started, *values, *options))
                grads.append(local_shard(grad))
        return rows, grads


class Built(NamedTuple):
    """An update, and what it was built for."""

    key: list[Any]
    rows: list[DeviceRow]  # keeps the tensors alive, so that no id in the key is reused
    update: Update
    layout: bytes | None
    has_momentum: tuple[bool, ...]
    options: tuple[list[Any], ...]

    def serves(self, layout: bytes, has_momentum: tuple[bool, ...], groups: list[Group]) -> bool:
        """Whether it can be used for this layout and the groups' present options."""
        return layout == self.layout and has_momentum == self.has_momentum and holds(groups, _OPTIONS, self.options)


def choose_device_update(rows: list[DeviceRow]) -> Update:
    """The update of a capturable step: one Triton kernel on CUDA where Triton is usable, else plain operations."""
    if all(row.param.is_cuda for row in rows):
        try:
            triton_sgd = import_module(".triton_sgd", __package__)
            if triton_sgd.supports(rows):
                update: Update = triton_sgd.TritonUpdate(rows)
                return update
        except Exception:  # whatever is wrong with Triton or the compiler that it calls
            return PortableUpdate(rows)
    return PortableUpdate(rows)


def local_shard(tensor: Any) -> Any:
    """The shard of a DTensor: the update is elementwise."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
