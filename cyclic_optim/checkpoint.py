"""Loading state dicts: they are validated, their state and schedules adopted, and differences warned about.

A state dict comes from outside and may hold anything. torch's own loading copies, casts and indexes it without a check,
and may fail halfway. Here it is validated first, by rules that say what is wrong. Nothing is looked up, called or
imported by a name in the dict.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .groups import MARKS, Kinds, add_policy_key, check_has_string_keys
from .policies import Policy
from .policies.spec import check_description, rebuild
from .rules import finite, shown
from .schedule import (
    MOST_SET_STEPS,
    Known,
    as_held,
    at_once,
    decay_put_back,
    encode,
    enrol,
    merged,
    plan,
    policy_values,
    values_of,
    warn,
    with_own_tensors,
    writing,
)
from .slots import OWN_DECAY, Group, Slots

#: The most levels of containers in a state dict. Four or five are usual; copying recurses for each.
MOST_LEVELS = 20

#: What the user had edited by hand in a group: "lr", "momentum", "weight_decay".
Edited = set[str]

_CONTAINERS = (dict, list, tuple, set, frozenset)

# -- validation -----------------------------------------------------------------------------------------------------


def check_state_dict(state_dict: Any, groups: list[Group], kinds: Kinds) -> None:
    """Refuse what cannot be loaded into an optimizer of these param groups."""
    if not isinstance(state_dict, dict):
        raise TypeError(f"need a state dict as state_dict() returns it, got {shown(state_dict)}")
    if _nests_deeper(state_dict, MOST_LEVELS):
        raise ValueError(f"need a state dict of at most {MOST_LEVELS} levels, got one that is nested deeper")
    saved, state = state_dict.get("param_groups"), state_dict.get("state")
    if not isinstance(state, dict) or not isinstance(saved, list):
        raise ValueError(
            "need a state dict with a dict 'state' and a list 'param_groups', "
            f"got {type(state).__name__} and {type(saved).__name__}"
        )
    for group in saved:
        if not isinstance(group, dict) or not isinstance(group.get("params"), list):
            raise ValueError(f"need param groups that are dicts with a list 'params', got {shown(group)}")
        check_has_string_keys(group)
    _check_copies(saved)
    _check_state(state, _numbered(saved, groups), kinds)


def _nests_deeper(value: Any, levels: int) -> bool:
    """Whether containers are nested more than ``levels`` deep, or contain themselves."""
    level = [value]
    for _ in range(levels):
        # Each container once: shared ones would otherwise multiply with every level.
        level = list({id(item): item for holder in level for item in _contents(holder)}.values())
    return any(isinstance(item, _CONTAINERS) for item in level)


def _contents(holder: Any) -> Any:
    if isinstance(holder, dict):
        return holder.values()
    return holder if isinstance(holder, _CONTAINERS) else ()


def _check_copies(saved: list[Group]) -> None:
    """Refuse what cannot be copied, as loading does: a tensor with an autograd graph, a generator."""
    for group in saved:
        try:
            copy.deepcopy(group)
        except Exception as error:  # noqa: PERF203 (any error; the message says in which group)
            raise ValueError(f"need param groups that can be copied, got {shown(group)}: {error}") from error


def _numbered(saved: list[Group], groups: list[Group]) -> dict[Any, Tensor]:
    """The parameters by the numbers that the state dict gives them."""
    numbered: dict[Any, Tensor] = {}
    for group, live in zip(saved, groups, strict=False):  # torch raises for groups that do not match
        for number, param in zip(group["params"], live["params"], strict=False):
            if not isinstance(number, (int, str)):
                raise ValueError(f"need 'params' to be numbers or names, got {shown(number)}")
            if numbered.setdefault(number, param) is not param:
                raise ValueError(f"need another number in 'params' for every parameter, got {number!r} twice")
    return numbered


def _check_state(state: dict[Any, Any], numbered: dict[Any, Tensor], kinds: Kinds) -> None:
    for number, entries in state.items():
        if not isinstance(number, (int, str)):
            raise ValueError(f"need 'state' by the numbers in 'params', got the key {shown(number)}")
        if not isinstance(entries, dict):
            raise ValueError(f"need the state of a parameter to be a dict, got {shown(entries)} for {number!r}")
        param = numbered.get(number)
        for key, value in entries.items():
            _check_entry(key, value, param, kinds)
        buffer = entries.get("momentum_buffer") if kinds.momentum_buffer else None
        if buffer is not None and not _is_empty(buffer) and param is not None:
            _check_buffer(buffer, param)


def _is_empty(value: Any) -> bool:
    """Whether it is the empty dict that distributed checkpointing puts where a parameter has no such entry."""
    return isinstance(value, dict) and not value


def _check_entry(key: Any, value: Any, param: Tensor | None, kinds: Kinds) -> None:
    """Refuse what torch cannot cast or copy."""
    if isinstance(value, Tensor):
        _check_tensor(key, value, param)
    elif kinds.nested_state and isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_entry(key, item, param, kinds)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and not _is_empty(value):
        raise ValueError(
            f"need the state of a parameter to hold tensors and plain values, got {shown(key)}={shown(value)}"
        )


def _check_tensor(key: Any, value: Tensor, param: Tensor | None) -> None:
    has_elements = value.device.type != "meta" or (param is not None and param.device.type == "meta")
    if value.is_quantized or not has_elements or value.layout not in (torch.strided, torch.sparse_coo):
        raise ValueError(
            "need tensors in the state that are strided or sparse COO, of plain numbers, "
            f"got {shown(key)} with {value.layout}, {value.dtype}, on {value.device}"
        )


def _check_buffer(buffer: Any, param: Tensor) -> None:
    if not isinstance(buffer, Tensor) or buffer.shape != param.shape:
        found = tuple(buffer.shape) if isinstance(buffer, Tensor) else type(buffer).__name__
        raise ValueError(f"need a momentum_buffer of shape {tuple(param.shape)}, got {found}")
    if buffer.is_complex() != param.is_complex():
        raise ValueError(f"need a momentum_buffer of {param.dtype}, or one that becomes it, got {buffer.dtype}")


# -- state ----------------------------------------------------------------------------------------------------------


def cloned_state(state: Any, groups: list[Group]) -> dict[Any, Any]:
    """A clone of the loaded state: torch's loading may return the tensors of the dict themselves."""
    # Keep a buffer's autograd graph only with differentiable=True; otherwise it leaks.
    with_graph = any(group.get("differentiable") for group in groups)
    return {key: _cloned(value, with_graph) for key, value in state.items()}


def _cloned(value: Any, with_graph: bool) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if with_graph else value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(item, with_graph) for key, item in value.items() if not _is_empty(item)}
    if type(value) in (list, tuple):
        return type(value)(_cloned(item, with_graph) for item in value)
    return value


def drop_empty(state: dict[Any, Any]) -> None:
    """Drop what distributed checkpointing puts where a parameter has no such entry; base classes stumble over it."""
    for param, entries in list(state.items()):
        if isinstance(entries, dict) and any(map(_is_empty, entries.values())):
            state[param] = {key: value for key, value in entries.items() if not _is_empty(value)}
            if not state[param]:
                del state[param]


def with_capturable(state_dict: dict[str, Any], groups: list[Group], capturable: bool) -> dict[str, Any]:
    """The state dict, beside a policy with the code's ``capturable``: it decides where state and schedules are."""
    saved = state_dict["param_groups"]
    if all(group.get("policy") is None for group in (*groups, *saved)):
        return state_dict
    return {**state_dict, "param_groups": [_replaced(group, capturable) for group in saved]}


def _replaced(group: Group, capturable: bool) -> Group:
    return {**group, "capturable": capturable} if "capturable" in group else group


def fill(groups: list[Group], previous: list[Group], keys: Iterable[str]) -> None:
    """Give groups from an older or foreign dict the hyperparameters that they lack: keep the code's."""
    for group, old in zip(groups, previous, strict=False):
        for key in keys:
            if key in old:
                group.setdefault(key, old[key])


# -- schedules ------------------------------------------------------------------------------------------------------


def adopt(groups: list[Group], previous: list[Group], known: Known, slots: Slots, kinds: Kinds) -> dict[int, Edited]:
    """Give freshly loaded groups their schedules; returns what was edited by hand in each group with a clock.

    The policy in the code wins over the one in the checkpoint, with a warning where they differ; without one in the
    code the checkpoint's is used. The peak in the checkpoint wins over the one in the code, with a warning where they
    differ. Groups of an optimizer without schedules (``torch.optim.SGD``) start at step 0, with the code's peaks.

    Args:
        groups: the loaded groups.
        previous: the groups before.
        known: the policies behind the texts of ``previous``; gets those of the checkpoint.
        slots: where momentum and weight decay live.
        kinds: what must be numbers and flags.

    Raises:
        ValueError, TypeError: the groups hold what no schedule can have written.
    """
    _check_presence(groups)
    previous = known.resolved(previous)
    by_hand = {i: _marks(group) for i, group in enumerate(groups) if "schedule_step" in group}
    messages: dict[str, None] = {}  # each once
    differences: dict[int, Difference | None] = {}
    for i, (group, old) in enumerate(zip(groups, previous, strict=True)):
        if i in by_hand or old["policy"] is not None:
            group.update(with_own_tensors(group, {}))  # a tensor may be in several groups of the checkpoint
        if i in by_hand:
            message, differences[i] = _adopt_group(group, old, slots, kinds, by_hand[i])
            if message is not None:
                messages[message] = None
        elif old["policy"] is not None:
            _start(group, old, groups[:i], slots)
            kinds.check_scheduled(group)
    if any(group.get("policy") is not None for group in groups):
        add_policy_key(groups)
    for message in messages:
        warn(message)
    _warn_of_values({i: found for i, found in differences.items() if found is not None})
    _warn_of_peaks(groups, previous)
    for group in groups:
        group.update(known.stored(group))
    return by_hand


def _check_presence(groups: list[Group]) -> None:
    """Refuse a policy without a clock: all groups have clocks but those with ``policy=None``, or none has."""
    scheduled = ["schedule_step" in group for group in groups]
    without = [group.get("policy", group) for group, here in zip(groups, scheduled, strict=True) if not here]
    if any(scheduled) and any(policy is not None for policy in without):
        raise ValueError(
            "need schedule_step in every param group of the checkpoint that has a policy, or in none; a group without "
            "a policy says policy=None"
        )
    if not any(scheduled) and any(isinstance(policy, str) for policy in without):
        raise ValueError("need schedule_step beside policy in a param group of the checkpoint, got policy alone")


def _marks(group: Group) -> Edited:
    """Remove the marks of edits from a group; returns what they say."""
    return {key for key, mark in MARKS.items() if group.pop(mark, False) is True}


def _adopt_group(
    group: Group, old: Group, slots: Slots, kinds: Kinds, by_hand: Edited
) -> tuple[str | None, Difference | None]:
    """Give a group its policy and what follows; returns what to warn of: another policy, and other values."""
    in_code: Policy | None = old["policy"]
    if in_code is not None:
        # Keys missing from an older checkpoint keep the code's values.
        group.setdefault("max_lr", old["max_lr"])
        group.setdefault("policy", encode(in_code))
    _check_clock(group)
    saved = group["policy"]
    policy = group["policy"] = policy_of(saved) if in_code is None else in_code
    kinds.check_scheduled(group)
    if in_code is None or _describes(saved, policy):
        _take_reports(policy, group)
        difference = _difference(group, slots, by_hand)
        if difference is not None:
            _write_values(group, slots, by_hand, {})
        return None, difference
    message = (
        f"the checkpoint was written under the policy {_text(saved)}; going on at step {group['schedule_step']} "
        f"under the one in the code, {_text(encode(policy))}"
    )
    difference = _carried(group, saved, slots, by_hand)
    _change_policy(group, policy, old, slots, by_hand)
    _write_values(group, slots, by_hand, decay_put_back(group))
    return message, difference


def _describes(saved: Any, policy: Policy) -> bool:
    """Whether a text from a checkpoint describes this policy; in an older one new fields are missing."""
    if isinstance(saved, str) and saved.rstrip() == encode(policy):
        return True
    try:
        return bool(policy_of(saved) == policy)
    except ValueError:  # no text, or one of a policy with code in it
        return False


def _check_clock(group: Group) -> None:
    step = group["schedule_step"]
    if type(step) is not int or not 0 <= step < MOST_SET_STEPS:
        raise ValueError(f"need schedule_step to be an int >= 0 and < 2**62, got schedule_step={shown(step)}")
    for key in ("max_lr", "policy"):
        if key not in group:
            raise ValueError(f"need {key} beside schedule_step in a param group of the checkpoint")
    group["max_lr"] = finite("max_lr", group["max_lr"], minimum=0)


def policy_of(saved: Any) -> Policy:
    """The policy that a text describes.

    Raises:
        ValueError: it is no such text, or of a policy with code in it.
    """
    try:
        return rebuild(_decoded(saved))
    except ValueError as error:
        raise ValueError(f"{error}; pass the policy to the optimizer to load this checkpoint") from error


def _decoded(saved: Any) -> Any:
    if not isinstance(saved, str):
        raise ValueError(f"need the policy in a param group to be JSON, got {shown(saved)}")
    try:
        return json.loads(saved)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"need the policy in a param group to be JSON, got {shown(saved)} ({error})") from error


def _take_reports(policy: Policy, group: Group) -> None:
    """Check the group's state of reports, and copy it; where there is none, take the policy's initial one."""
    state = group.pop("policy_state", policy.initial_state())
    policy.check_state(state)
    if state is not None:
        group["policy_state"] = dict(state)


def _change_policy(group: Group, policy: Policy, old: Group, slots: Slots, by_hand: Edited) -> None:
    """Take over the memory of reports, and the code's momentum."""
    slot = slots.momentum
    try:
        _take_reports(policy, group)
    except ValueError:  # the state of the other policy
        at_once(writing(group, {"policy_state": policy_values(policy, group)["policy_state"]}))
    if slot is not None and slot.key in old and "momentum" not in by_hand:
        # Momentum is not to stay where the old policy left it, if the new one does not set it.
        group[slot.key] = slot.stored(group, slot.read(old))


def _write_values(group: Group, slots: Slots, by_hand: Edited, changed: Group) -> None:
    """Write these values and the schedule's, but for those that were edited by hand."""
    after = merged(group, changed)
    values = {**changed, **values_of(plan(after, group["schedule_step"], slots), after, slots)}
    for name in by_hand & slots.keys.keys():
        values.pop(slots.keys[name], None)
    at_once(writing(group, values))


def _carried(group: Group, saved: Any, slots: Slots, by_hand: Edited) -> Difference | None:
    """How a group differs from its saved policy, which is not the code's."""
    try:
        policy = policy_of(saved)
        policy.check_state(group.get("policy_state", policy.initial_state()))
        return _difference({**group, "policy": policy}, slots, by_hand)
    except (TypeError, ValueError):  # code that data cannot hold, or numbers that the rules refuse later
        return None


def _text(saved: Any) -> str:
    """A policy from a checkpoint as it would print."""
    name, fields = check_description(_decoded(saved))
    return f"{name}({', '.join(f'{key}={shown(value)}' for key, value in fields.items())})"


def _start(group: Group, old: Group, peers: list[Group], slots: Slots) -> None:
    """Start the code's schedule at step 0, in a group of an optimizer without schedules."""
    slot = slots.momentum
    # torch's schedulers leave another max_lr behind, and the momentum of their last step.
    group["max_lr"] = old["max_lr"]
    group.pop(OWN_DECAY, None)
    if "max_momentum" in group and slot is not None:
        group[slot.key] = slot.stored(group, slot.read(old))
    group.pop("initial_lr", None)  # else a scheduler would seem to be attached
    group["schedule_step"] = 0
    enrol(group, old["policy"], peers, slots)


# -- warnings -------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Saved values of a group that are not its schedule's at its step."""

    step: int
    due: str
    held: str


def _difference(group: Group, slots: Slots, by_hand: Edited) -> Difference | None:
    """How a group differs from its schedule, but for what was edited by hand; None where it does not."""
    planned = plan(group, group["schedule_step"], slots)
    if "lr" in by_hand:
        return None  # of momentum, too: older checkpoints mark lr alone where both were edited
    found = [("lr", planned.lr, group["lr"])]
    for slot in slots.present:
        due = getattr(planned, slot.name)
        if due is not None and slot.name not in by_hand:
            found.append((slot.where, due, slot.read(group)))
    if all(_is_close(due, held) for _, due, held in found):
        return None
    due = ", ".join(f"{key}={value}" for key, value, _ in found)
    held = ", ".join(f"{key}={float(value)}" for key, _, value in found)
    return Difference(planned.step, due, held)


def _is_close(due: float, held: Any) -> bool:
    """Equal up to the precision of the held number, and up to rounding on other machines."""
    if not isinstance(held, Tensor) or not held.is_floating_point():
        return math.isclose(due, held, rel_tol=1e-6)
    tolerance = max(1e-6, 4 * torch.finfo(held.dtype).eps)
    return math.isclose(as_held(held, due), held.item(), rel_tol=tolerance)


def _warn_of_values(differing: dict[int, Difference]) -> None:
    """Warn of values in a checkpoint, by group, that are not its schedule's and not marked as edits."""
    if differing:
        first, (step, due, held) = next(iter(differing.items()))
        warn(
            f"param group {first} of the checkpoint has {held}, and its schedule {due} at its step {step}: another "
            "optimizer trained on with it, or its clock was edited. Going on with the schedule's values in param "
            f"groups {[*differing]}; call reschedule(step=...) or reschedule(lr=...) for others"
        )


def was_moved(group: Group) -> bool:
    """Whether a scheduler has changed the rate of a loaded group without momentum: it keeps the first one beside it.

    With momentum, and in other optimizers, the state says what there is to know.
    """
    if _as_float(group.get("momentum")) != 0:
        return False
    first, now = (_as_float(group.get(key)) for key in ("initial_lr", "lr"))
    # A scheduler's first rate is rounded.
    return first is not None and now is not None and not math.isclose(first, now, rel_tol=1e-6)


def _as_float(value: Any) -> float | None:
    """A finite number from a checkpoint; None for anything else."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and value.device.type != "meta" else None
    is_finite = isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    return float(value) if is_finite else None


def warn_of_starts(starting: list[int], moved: set[int], groups: list[Group], state: Any) -> None:
    """Warn where schedules of these groups start at step 0, and what was loaded is of a run under way.

    Its state says so, or a rate that a scheduler has ``moved``.
    """
    entries = [state[param] for i in starting for param in groups[i]["params"] if state.get(param)]
    keys = sorted({str(key) for entry in entries for key, value in entry.items() if value is not None})
    updates = max((_updates(entry["step"]) for entry in entries if "step" in entry), default=None)
    found = None
    if updates:
        found = f"after {updates} updates"
    elif keys and updates is None:  # Adagrad has its state, and a count of 0, from the start
        found = f"with the state {', '.join(keys)}"
    elif not moved.isdisjoint(starting):
        found = "with a rate that a scheduler has moved"
    if found is not None:
        warn(
            f"the checkpoint is of a run without a schedule, {found}: the schedule starts at step 0 in param groups "
            f"{starting}. Call reschedule(step={updates or '...'}) to go on from there, or from_torch(optimizer, "
            "scheduler), which takes over a run with its scheduler"
        )


def _updates(count: Any) -> int:
    """The number of updates that a parameter's state counts; 0 where that is no number."""
    number = _as_float(count) or 0.0
    return int(number) if 0 < number < MOST_SET_STEPS else 0


def _warn_of_peaks(groups: list[Group], previous: list[Group]) -> None:
    """Warn of peaks that are not the code's."""
    pairs = [
        (i, group["max_lr"], float(old["max_lr"]))
        for i, (group, old) in enumerate(zip(groups, previous, strict=True))
        if group.get("policy") is not None and old.get("policy") is not None
    ]
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    if differing:
        indices, saved, in_code = map(list, zip(*differing, strict=True))
        warn(
            f"the peak in the checkpoint is kept where the code has another: max_lr={saved}, in the code {in_code}, in "
            f"param groups {indices}. For the code's, call reschedule(lr=...)"
        )
