"""CyclicSGD: torch.optim.SGD that owns its learning-rate and momentum cycle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.sgd import sgd

from . import native
from .grad_mode import with_grad
from .groups import Kinds, Params, check_before_update, check_named, check_numbers, check_one_lr, check_policy
from .host.fused import HYPERPARAMETERS, Rows, fused_update, read_rows, sgd_beside_sparse, takes_fused, unscale
from .host.ordinary import update_ordinary
from .policies import Policy
from .policies.asked import values_at
from .scheduled import Scheduled
from .slots import Group
from .torch_private import NEEDS_FUSED_CHECK, check_fused_param, sgd_tensors, uncompiled

if TYPE_CHECKING:
    from .device.sgd import SGDUpdate


class CyclicSGD(Scheduled, SGD):
    """Stochastic gradient descent (optionally with momentum) that owns its schedule.

    A drop-in replacement for :class:`torch.optim.SGD`: the same arguments, the same update of every element,

        d = grad + weight_decay * param             (-grad with maximize)
        b = momentum * b + (1 - dampening) * d      (b = d where there is no b yet)
        param = param - lr * b                      (lr * (d + momentum * b) with nesterov)

    with ``lr = max_lr * lr_factor``, and ``lr_factor`` and ``momentum`` from ``policy.at(t)``, t counting the updates
    applied so far. There is no scheduler object and no ``scheduler.step()``. What is not listed here is SGD's.

    Where the policy moves weight decay, ``weight_decay = max_weight_decay * weight_decay_factor``. The group's own
    weight decay is kept in ``group["max_weight_decay"]``, and the next step's is ``group["weight_decay"]``; they may be
    edited like peak and rate. With a later policy that leaves weight decay alone it is the group's own again.

    ``lr`` is the peak. It is kept in ``group["max_lr"]``, where it may be edited; ``group["lr"]`` and
    ``group["momentum"]`` are the next step's values. They are written when the optimizer is built and after each
    applied update, so an edit of ``group["lr"]`` lasts for one step; an edit of ``group["max_lr"]`` counts from the
    next step on. The clock advances if, and only if, an update was applied: not when AMP found an inf, and not in the
    dry run of distributed checkpointing (every ``group["lr"]`` set to 0 from outside, every gradient 0, no state).

    Each param group may have a ``policy`` of its own, and its own clock, ``group["schedule_step"]``.
    :meth:`reschedule` changes policy, peak or clock.

    With ``policy=None``, and no policy in any group, it is ``torch.optim.SGD``: the same param groups,
    implementations and errors.

    A KeyboardInterrupt in ``step()`` leaves the schedule before or after that step, in all groups; weights and
    buffers may hold a part of its update then, as with SGD.

    During a step, another thread may step another optimizer, and may call :meth:`state_dict` of this one (not with
    ``capturable``, nor on a free-threaded Python). Nothing else is safe: ``loss.backward()`` or
    ``optimizer.zero_grad()`` for the same parameters can free a gradient that the step reads, and crash the process, as
    with every optimizer of torch. Hold a lock around both.

    Args:
        params: parameters, named parameters or param groups to optimize.
        lr: the peak learning rate (default: 1e-3). A 1-element Tensor is allowed; rates are then written into a copy
            of it, in place.
        momentum: momentum factor (default: 0), where the policy does not cycle momentum.
        dampening: dampening for momentum (default: 0).
        weight_decay: L2 penalty (default: 0); where the policy moves it, what its factor multiplies. A 1-element Tensor
            is allowed, as for lr.
        nesterov: Nesterov momentum; needs a momentum, be it the policy's, and zero dampening.
        policy: the schedule of learning rate and momentum for groups that name none; None for no schedule.
        maximize: maximize the objective instead of minimizing it.
        foreach, fused: torch's implementations, honoured where set. With neither set, and a policy, the
            fused update is taken wherever it is right for the tensors at hand, torch's elsewhere; it rounds otherwise
            than torch's default. For results that are SGD's to the last bit, set the same ``foreach`` in both.
        differentiable: whether autograd goes through the step.
        capturable: whether the step never synchronizes with the host, so that it can be captured in a CUDA graph and
            compiled by ``torch.compile(fullgraph=True)``, while rate and momentum go on cycling. Needs a policy
            (``Constant()`` for a fixed rate); ``group["lr"]``, ``["momentum"]``, ``["max_lr"]`` and
            ``["schedule_step"]`` are then 0-dim tensors on the device (float32, the last two float64 and int64); so are
            ``["weight_decay"]`` and ``["max_weight_decay"]`` (float32, float64) where the policy moves weight decay.
        horizon: with ``capturable``, the number of steps to tabulate for a policy that neither ends nor repeats
            (default: 100,000), counted from where the optimizer was built, loaded or rescheduled; afterwards the last
            values stay.

    Raises:
        ValueError, TypeError: an argument breaks its rule; nothing is built then.

    Example:
        >>> import torch
        >>> from cyclic_optim import CyclicSGD, OneCycle
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = CyclicSGD([weight], lr=0.1, momentum=0.9, policy=OneCycle(total_steps=1000))
        >>> optimizer.param_groups[0]["lr"]
        0.004

    Source: :class:`torch.optim.SGD`; L. N. Smith 2017 (arXiv 1506.01186).
    """

    _kinds = Kinds(
        numbers=("lr", "momentum", "dampening", "weight_decay"),
        flags=("nesterov", "maximize", "differentiable"),
        optional_flags=("foreach", "fused"),
        nested_state=False,
        momentum_buffer=True,
    )
    _is_prepared = False  # for its first update

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        policy: Policy | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        horizon: int | None = None,
    ) -> None:
        check_policy(policy)
        check_named(lr, momentum, dampening, weight_decay, nesterov)
        check_one_lr(lr)
        _check_capturable(capturable, horizon)
        if policy is not None:
            check_numbers(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
        self._begin(policy)
        # A policy that cycles momentum is one for Nesterov; SGD's check looks at the argument.
        stand_in = float(momentum) or 1.0 if _cycles_momentum(policy) else momentum
        super().__init__(
            params,  # type: ignore[arg-type]
            lr,
            stand_in,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults["momentum"] = momentum
        for group in self.param_groups:
            if group["momentum"] is stand_in:  # a group without a policy
                group["momentum"] = momentum
        if capturable and self.policies.count(None) == len(self.param_groups) and policy is None:
            raise ValueError(
                "need a policy with capturable=True, got policy=None: pass policy=Constant() for a fixed rate"
            )
        self._ready(capturable, horizon)

    def _device_update(self) -> SGDUpdate:
        from .device.sgd import SGDUpdate

        return SGDUpdate(SGD)

    # -- the update -------------------------------------------------------------------------------------------------

    def _apply(self, closure: Callable[[], Any] | None) -> Any:
        loss = None if closure is None else with_grad(True, closure)
        self._scheduled_update()
        return loss

    def _plain_step(self, closure: Callable[[], Any] | None) -> Any:
        loss = None if closure is None else with_grad(True, closure)
        with_grad(self.defaults["differentiable"], self._plain_update)
        return loss

    def _compiled_plain_step(self, closure: Callable[[], Any] | None) -> Any:
        if torch.compiler.is_compiling():
            return self._base_step(closure)
        return _uncompiled_plain_step(self, closure)

    def _scheduled_update(self) -> None:
        """Update every group: the fused update wherever it is right and no flag says otherwise."""
        if not self._is_prepared:  # before anything moves
            self._check_fused_params()
            native.prepare()
            self._is_prepared = True
        grad_scale: Tensor | None = self.__dict__.get("grad_scale")
        rest = update_ordinary(self.param_groups, self.state, grad_scale)
        if rest:
            with_grad(self.defaults["differentiable"], lambda: self._update_rest(rest, grad_scale))

    def _update_rest(self, rest: Rows, grad_scale: Tensor | None) -> None:
        """Update what is out of the ordinary."""
        self._check_fused_params()
        rest = [row for row in rest if row[1]]
        for group, *_ in rest:  # all of them, before anything moves
            check_before_update(group)
        fused = [row for row in rest if takes_fused(row[0], True)]
        if fused:
            fused_update(fused, self.state, grad_scale, None)
        for group, _, grads in (row for row in rest if not takes_fused(row[0], True)):
            unscale(grads, grad_scale)
            self._by_torch(group, sgd_beside_sparse, {})

    def _plain_update(self) -> None:
        """Update every group as SGD.step does, with the bugs of torch's fused op avoided."""
        scale = {name: self.__dict__.get(name) for name in ("grad_scale", "found_inf")}
        self._check_fused_params()
        fused = read_rows([group for group in self.param_groups if takes_fused(group, False)])
        if fused:
            fused_update(fused, self.state, **scale)
        for group in self.param_groups:
            if not takes_fused(group, False):
                self._by_torch(group, sgd, scale)

    def _check_fused_params(self) -> None:
        """Once, with SGD's errors, where fused was asked for."""
        if getattr(self, NEEDS_FUSED_CHECK, True):
            for group in self.param_groups:
                for param in group["params"] if group["fused"] else ():
                    if param.grad is not None:
                        check_fused_param(param)
                        setattr(self, NEEDS_FUSED_CHECK, False)
                        return

    def _by_torch(self, group: Group, update: Callable[..., None], scale: dict[str, Any]) -> None:
        """Update a group by torch's own ``sgd``, which knows no loss scale unless it is fused."""
        params, grads, buffers, has_sparse_grad = sgd_tensors(self, group)
        options: dict[str, Any] = {key: group[key] for key in HYPERPARAMETERS}
        update(params, grads, buffers, has_sparse_grad, group["foreach"], group["fused"], **scale, **options)
        for param, buffer in zip(params, buffers, strict=False):  # there are none without momentum
            self.state[param]["momentum_buffer"] = buffer

    def _create_state(self) -> None:
        for group in self.param_groups:
            for param in group["params"] if group["momentum"] != 0 else ():
                if param.grad is not None and self.state[param].get("momentum_buffer") is None:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param, requires_grad=False)


# What torch.compile must not look into where it fell back to eager and watches every function called.
_uncompiled_plain_step = uncompiled(CyclicSGD._plain_step)


def _cycles_momentum(policy: Policy | None) -> bool:
    return policy is not None and values_at(policy, 0, policy.initial_state())[1] is not None


def _check_capturable(capturable: object, horizon: object) -> None:
    if not isinstance(capturable, bool):
        raise TypeError(f"need capturable to be True or False, got {capturable=}")
    if horizon is not None and not capturable:
        raise ValueError(f"need horizon only with capturable=True, got {horizon=}")
