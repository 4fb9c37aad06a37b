"""torch's fused SGD op, with everything that it gets wrong kept away from it, at the cost of little but the op.

The op walks memory and knows one flag for all its tensors, so it is right only for plain, dense,
floating-point tensors of one dtype and device whose parameter, gradient and buffer lie in memory
alike, and which have either all stepped before or all not. On the CPU it is wrong for half precision.
Tensors are therefore sorted into calls: one of the op for each kind that it can do, torch's exact
loop for the rest. Sorting costs far more than updating small tensors does, so the calls are remembered, and
on every step everything that they depend on is looked at again, in the cheapest way there is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.sgd import sgd
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from .threads import set_own_threads
from .witness import Check, facts, slow_witness, witness

Group = dict[str, Any]
State = dict[Any, dict[str, Any]]
Tensors = tuple[list[Any], list[Any], list[Any]]  # parameters, gradients, buffers (None where there is none)

#: The hyperparameters of a param group that torch's ``sgd`` and its fused op take by these names.
HYPERPARAMETERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")

#: On the CPU the op starts a team of threads for every tensor. Below this many elements that costs more than
#: it saves: benchmarks/crossing.py has the measurement.
SMALL = 2**14

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# torch 2.13's op on the CPU leaves all but a few parameters of half precision where they were.
_DTYPES_ON_CPU = {torch.float32, torch.float64}
_PLAIN = {Tensor, Parameter}
_NO_STATE: dict[str, Any] = {"momentum_buffer": None}

_gradient, _buffer = attrgetter("grad"), itemgetter("momentum_buffer")
_hyperparameters = itemgetter(*HYPERPARAMETERS)  # in this order
_flags = itemgetter("foreach", "differentiable", "fused")


class Kind(NamedTuple):
    """What tensors must have in common to be updated in one call."""

    group: int
    exact: bool  # by torch's loop, as the op is not right for them
    serial: bool  # too small for threads
    first: bool  # without a momentum buffer yet
    dtype: torch.dtype
    device: torch.device


class Call(NamedTuple):
    """An update of the tensors from ``start`` to ``stop``, which are of one kind."""

    kind: Kind
    start: int
    stop: int


class Calls(NamedTuple):
    """The calls of one step, in the order of the tensors: by the op on one thread, on all threads, by torch's loop."""

    serial: list[Call]
    parallel: list[Call]
    exact: list[Call]

    @property
    def first(self) -> list[Call]:
        return [call for calls in self for call in calls if call.kind.first]


class FusedUpdate:
    """The fused update of an optimizer's param groups."""

    def __init__(self) -> None:
        self._memory: Memory | None = None
        self._last: list[list[Any]] = []  # of the gradients sorted last: whose they were, and what they were like

    def again(self, groups: list[Group], state: State, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
        """Update all groups by what is remembered; False, and nothing done, if anything is not as it was."""
        memory = self._memory
        recalled = None if memory is None else memory.recall(groups, state)
        if memory is None or recalled is None:
            return False
        _run(memory.calls, groups, *recalled, grad_scale, found_inf)
        return True

    def anew(
        self, groups: list[Group], state: State, grad_scale: Tensor | None, found_inf: Tensor | None, *, whole: bool
    ) -> None:
        """Sort the tensors of these groups, and update them; worth remembering if they are the whole optimizer's.

        A ``found_inf`` of any non-zero value makes all of it do nothing; gradients are left divided by
        ``grad_scale``, as the op leaves them.
        """
        calls, tensors = _sort(groups, state)
        params, _, buffers = tensors
        first = calls.first
        for kind, start, stop in first:
            if not kind.exact:
                # Zeros rather than uninitialised memory: whatever comes between, nothing foreign is in it.
                buffers[start:stop] = [torch.zeros_like(param, requires_grad=False) for param in params[start:stop]]
        if _run(calls, groups, tensors, _local(tensors), grad_scale, found_inf):
            for _, start, stop in first:
                for param, buffer in zip(params[start:stop], buffers[start:stop], strict=True):
                    state[param]["momentum_buffer"] = buffer
        # Where the next step brings other gradients again, remembering is lost labour.
        seen = [[*map(id, params)], [*map(facts, tensors[1])]]
        settled = whole and not first and seen == self._last
        self._memory = Memory(groups, state, calls, tensors) if settled else None
        self._last = [] if settled else seen


class Memory:
    """The calls of a step, and all that they depend on.

    It holds no tensor and no state, which would outlive their removal by the user: it knows by ``id`` who stood
    where in the param groups and the optimizer's state, and takes those who stand there now.
    """

    def __init__(self, groups: list[Group], state: State, calls: Calls, tensors: Tensors) -> None:
        self.calls = calls
        self._flags = [*map(_flags, groups)]
        self._without_buffers = [i for i, group in enumerate(groups) if group["momentum"] == 0]
        params, _, buffers = tensors
        standing = _standing(groups, state)
        self._ids = [*map(id, standing)]
        place = {id(one): i for i, one in enumerate(standing)}
        active = set(map(id, params))
        self._params = _pick([place[id(param)] for param in params])
        self._idle = _pick([place[id(p)] for group in groups for p in group["params"] if id(p) not in active])
        owner = {id(param): i for i, param in enumerate(state)}
        self._states = _pick(  # -1: of none
            [-1 if buffer is None else owner[id(param)] for param, buffer in zip(params, buffers, strict=True)]
        )
        self._by_op = calls.exact[0].start if calls.exact else len(params)
        self._simple = not calls.exact and not self._without_buffers
        # Parameters that are no shards now are none later: the check of their types would notice.
        self._sharded = _local(tensors) is not tensors
        by_op, by_loop = self._halves(_local(tensors))
        self._op_is_right: Check = witness(by_op)
        self._loop_is_right: Check = slow_witness(by_loop)

    def recall(self, groups: list[Group], state: State) -> tuple[Tensors, Tensors] | None:
        """The tensors in the order of the calls, and their local shards; None if the calls may be wrong for them.

        All that the sorting depends on, every time: stale calls would be silently wrong.
        """
        standing = _standing(groups, state)
        if [*map(id, standing)] != self._ids or [*map(_flags, groups)] != self._flags:
            return None
        for i in self._without_buffers:
            if groups[i]["momentum"] != 0:
                return None
        for param in self._idle(standing):
            if param.grad is not None:
                return None
        params = [*self._params(standing)]
        try:
            buffers = [*map(_buffer, self._states([*state.values(), _NO_STATE]))]
        except (KeyError, TypeError):  # a buffer was taken away, or the state is of another kind
            return None
        tensors = params, [*map(_gradient, params)], buffers
        local = _local(tensors) if self._sharded else tensors
        by_op, by_loop = self._halves(local)
        if self._op_is_right(*by_op) and (not by_loop or self._loop_is_right(*by_loop)):
            return tensors, local
        return None

    def _halves(self, tensors: Tensors) -> tuple[list[Any], list[Any]]:
        """The tensors that the op updates, and those that torch's loop does."""
        params, grads, buffers = tensors
        if self._simple:
            return [*params, *grads, *buffers], []
        # Those of groups without momentum have no buffer; a gradient that is missing shows in the number.
        n = self._by_op
        by_op, by_loop = [*params[:n], *grads[:n], *buffers[:n]], [*params[n:], *grads[n:], *buffers[n:]]
        return [t for t in by_op if t is not None], [t for t in by_loop if t is not None]


def _standing(groups: list[Group], state: State) -> list[Any]:
    """Whoever has a state, and every group, followed by its parameters."""
    standing = [*state]
    for group in groups:
        standing.append(group)
        standing += group["params"]
    return standing


def _pick(places: list[int]) -> Callable[[list[Any]], Sequence[Any]]:
    """A function that takes the items at these places out of a list."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda items: [items[place] for place in places]


# -- sorting ----------------------------------------------------------------------------------------


def _sort(groups: list[Group], state: State) -> tuple[Calls, Tensors]:
    """The calls that update every parameter that has a gradient, and the tensors in their order."""
    kinds: dict[Kind, list[tuple[Any, Any, Any]]] = {}
    for index, group in enumerate(groups):
        with_buffers = group["momentum"] != 0
        params = [param for param in group["params"] if param.grad is not None]
        grads = [param.grad for param in params]
        buffers = [state[param].get("momentum_buffer") if with_buffers else None for param in params]
        rows = zip(params, grads, buffers, strict=True)
        for row, local in zip(rows, zip(*_local((params, grads, buffers)), strict=True), strict=True):
            kinds.setdefault(_kind(index, with_buffers, *local), []).append(row)
    in_order = sorted(kinds, key=lambda kind: (kind.exact, not kind.serial, kind.group))
    tensors = [row for kind in in_order for row in kinds[kind]]
    ends = [*accumulate(len(kinds[kind]) for kind in in_order)]
    calls = [Call(kind, end - len(kinds[kind]), end) for kind, end in zip(in_order, ends, strict=True)]
    return (
        Calls(
            serial=[call for call in calls if call.kind.serial],
            parallel=[call for call in calls if not call.kind.serial and not call.kind.exact],
            exact=[call for call in calls if call.kind.exact],
        ),
        ([row[0] for row in tensors], [row[1] for row in tensors], [row[2] for row in tensors]),
    )


def _kind(group: int, with_buffers: bool, param: Tensor, grad: Tensor, buffer: Tensor | None) -> Kind:
    exact = not _fusible(param, grad, buffer)
    serial = not exact and param.device.type == "cpu" and param.numel() < SMALL
    return Kind(group, exact, serial, with_buffers and buffer is None, param.dtype, param.device)


def _fusible(param: Tensor, *others: Tensor | None) -> bool:
    tensors = [param, *(other for other in others if other is not None)]
    device = param.device
    return (
        all(
            type(t) in _PLAIN and t.layout is torch.strided and not t.is_neg() and not t._is_zerotensor()
            for t in tensors
        )
        and param.dtype in (_DTYPES_ON_CPU if device.type == "cpu" else _DTYPES)
        and device.type in _get_fused_kernels_supported_devices()
        and all(t.dtype is param.dtype and t.device == device and t.shape == param.shape for t in tensors)
        and _lie_alike(tensors)
    )


def _lie_alike(tensors: list[Tensor]) -> bool:
    # Strides of dimensions of size 1 may differ without meaning anything; contiguity looks past them.
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    same = len({tensor.stride() for tensor in tensors}) == 1
    return same and bool(torch.ops.aten.is_non_overlapping_and_dense(tensors[0]))


def _local(tensors: Tensors) -> Tensors:
    """The tensors with DTensors replaced by their local shards, where all three are sharded alike.

    The update is elementwise, so shards can be updated where they lie; the op itself refuses DTensors.
    """
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None or _PLAIN.issuperset(map(type, tensors[0])):
        return tensors
    sharded = distributed.DTensor

    def shards(*row: Any) -> tuple[Any, ...]:
        given = [tensor for tensor in row if tensor is not None]
        if not all(isinstance(tensor, sharded) for tensor in given):
            return row
        if len({(tensor.device_mesh, tensor.placements) for tensor in given}) > 1:
            return row
        if any(placement.is_partial() for placement in given[0].placements):
            return row
        return tuple(None if tensor is None else tensor.to_local() for tensor in row)

    rows = [shards(*row) for row in zip(*tensors, strict=True)]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


# -- updating ---------------------------------------------------------------------------------------


def _run(
    calls: Calls,
    groups: list[Group],
    tensors: Tensors,
    local: Tensors,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> bool:
    """Make the calls; False if ``found_inf`` said not to."""
    if found_inf is not None:
        # Creating a buffer and torch's own loop are decided on the host; the op can decide by itself.
        if found_inf.device.type == "cpu" or calls.exact or calls.first:
            if found_inf.item() != 0:
                return False
            found_inf = None
        else:
            found_inf = (found_inf != 0).to(torch.float32)  # the op itself knows 1 alone
    if calls.serial:
        threads = torch.get_num_threads()
        try:
            if set_own_threads is not None:
                set_own_threads(1)
            for call in calls.serial:
                _by_op(call, groups[call.kind.group], local, grad_scale, found_inf)
        finally:
            if set_own_threads is not None:
                set_own_threads(threads)
    for call in calls.parallel:
        _by_op(call, groups[call.kind.group], local, grad_scale, found_inf)
    for call in calls.exact:
        _by_loop(call, groups[call.kind.group], tensors, grad_scale)
    # The op does not, and autograd would not notice that what it saved was overwritten.
    torch._C._increment_version(local[0])
    return True


def _by_op(call: Call, group: Group, tensors: Tensors, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    kind, start, stop = call
    params, grads, buffers = tensors
    lr, momentum, dampening, weight_decay, nesterov, maximize = _hyperparameters(group)
    torch._fused_sgd_(
        params[start:stop],
        grads[start:stop],
        buffers[start:stop] if momentum != 0 else [],
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=nesterov,
        maximize=maximize,
        is_first_step=kind.first,
        grad_scale=None if grad_scale is None else grad_scale.to(kind.device),
        found_inf=None if found_inf is None else found_inf.to(kind.device),
    )


def _by_loop(call: Call, group: Group, tensors: Tensors, grad_scale: Tensor | None) -> None:
    _, start, stop = call
    params, grads, buffers = (kept[start:stop] for kept in tensors)
    unscale(grads, grad_scale)
    sgd(
        params,
        grads,
        buffers if group["momentum"] != 0 else [],
        foreach=False,
        fused=False,
        **{key: group[key] for key in HYPERPARAMETERS},
    )
    tensors[2][start:stop] = buffers  # new ones among them


def unscale(grads: list[Tensor], grad_scale: Tensor | None) -> None:
    """Divide gradients by the loss scale, in place as the fused op and GradScaler do."""
    if grad_scale is not None:
        for grad in grads:
            grad.div_(grad_scale.to(grad.device))
