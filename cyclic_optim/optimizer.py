"""CyclicSGD: torch.optim.SGD that moves its own learning rate and momentum along a policy."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import (
    ParamsT,
    _device_dtype_check_for_fused,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    _use_grad_for_differentiable,
)
from torch.optim.sgd import sgd

from .capturable import DevicePath
from .checkpoint import check_state_dict
from .policies.asked import values_at
from .policies.base import Policy
from .rules import finite, shown
from .schedule import Group, Schedule, adopt, all_zero, check_tensor_lr, highest_held, warn
from .updates import HYPERPARAMETERS, dense_beside, fused_update, takes_fused, unscale, update_ordinary

if TYPE_CHECKING:
    from typing_extensions import Self

    from .passive import PassiveScheduler

_BOTH_WRITE = (
    "an LR scheduler is attached to a CyclicSGD that has a policy: both write lr, and the last to do so "
    "before a step wins. Remove the scheduler, or the policy."
)


class CyclicSGD(SGD):
    """Stochastic gradient descent (optionally with momentum) that owns its schedule.

    A drop-in replacement for :class:`torch.optim.SGD`: the same arguments, the same update of every element,

        d = grad + weight_decay * param             (-grad with maximize)
        b = momentum * b + (1 - dampening) * d      (b = d where there is no b yet)
        param = param - lr * b                      (lr * (d + momentum * b) with nesterov)

    with ``lr = max_lr * lr_factor``, and ``lr_factor`` and ``momentum`` from ``policy.at(t)``, t counting the updates
    applied so far. There is no scheduler object and no ``scheduler.step()``. What is not listed here is SGD's.

    ``lr`` is the peak. It is kept in ``group["max_lr"]``, where it may be edited; ``group["lr"]`` and
    ``group["momentum"]`` hold the values in force for the coming step. They are written when the optimizer
    is built and after each applied update, so an edit of ``group["lr"]`` holds for one step. The counter
    advances if, and only if, an update was applied: not when AMP found an inf, and not in a dry run (a
    step before which every ``group["lr"]`` was set to 0 from outside, as distributed checkpointing does).

    With ``policy=None`` it is ``torch.optim.SGD``: the same param groups, implementations and errors.

    A KeyboardInterrupt in ``step()`` leaves the schedule before or after that step, in all groups; weights and
    buffers may hold a part of its update then, as with SGD. Other optimizers may step in other threads; of this one,
    another thread may at most call :meth:`state_dict` meanwhile.

    Args:
        params: parameters, named parameters or param groups to optimize.
        lr: the peak learning rate (default: 1e-3). A 1-element Tensor is allowed; the rate in force
            is then written into a copy of it, in place.
        momentum: momentum factor (default: 0), where the policy does not cycle momentum.
        dampening: dampening for momentum (default: 0).
        weight_decay: L2 penalty (default: 0).
        nesterov: Nesterov momentum; needs a momentum, be it the policy's, and zero dampening.
        policy: what the learning rate and momentum do over the steps; None for nothing.
        maximize: maximize the objective instead of minimizing it.
        foreach, fused: torch's implementations, honoured where set. With neither set, and a policy, the
            fused update is taken wherever it is right for the tensors at hand, torch's elsewhere.
        differentiable: whether autograd goes through the step.
        capturable: whether the step runs without the host's being asked anything, so that it can be captured in a
            CUDA graph and compiled by ``torch.compile(fullgraph=True)``, with rate and momentum that go on cycling.
            Needs a policy (``Constant()`` for none); ``group["lr"]``, ``["momentum"]``, ``["max_lr"]`` and
            ``["schedule_step"]`` are then 0-dim tensors on the device (float32, the last two float64 and int64).
        horizon: with ``capturable``, the number of steps to tabulate for a policy that neither ends nor repeats
            (default: 100,000), counted from where the optimizer was built or last loaded; afterwards the last values
            hold.

    Raises:
        ValueError, TypeError: an argument breaks its rule; nothing is built then.
    """

    def __init__(
        self,
        params: ParamsT,
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
        _check_policy(policy)
        _check_capturable(capturable, policy, horizon)
        self._schedule: Schedule | None = None
        self._device: DevicePath | None = None
        # The outermost of the steps (of this class, of a subclass) that are running; a closure's own step is a new one.
        # In a list: the compiler of some torch (2.11) has no way to set an optimizer's attribute.
        self._running: list[Callable[..., Any] | None] = [None]
        if policy is not None:
            _check_numbers(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay)
            self._schedule = Schedule(policy)
        cycled = policy is not None and values_at(policy, 0, policy.initial_state())[1] is not None
        super().__init__(
            params,
            lr,
            # A policy that cycles momentum writes its own into every group; this is for SGD's check of Nesterov.
            momentum or 1.0 if cycled else momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults["momentum"] = momentum
        if capturable and self._schedule is not None:
            self._device = DevicePath(self._schedule, self.param_groups, self.state, horizon)
            self._step_supports_amp_scaling = True

    @classmethod
    def from_torch(
        cls,
        optimizer: SGD,
        scheduler: Any = None,
        *,
        steps_per_epoch: int | None = None,
        steps_into_epoch: int = 0,
    ) -> Self:
        """Take over a run of ``torch.optim.SGD`` and its scheduler, in mid-training.

        Returns the optimizer that goes on where they stand: the same param groups with the same options, the same
        momentum buffers (the very tensors, as the parameters are: of the two optimizers use only the new one from
        then on), the counter at the scheduler's position, and the same learning rate and momentum at every later
        step that torch defines, to 1e-10 relative. The optimizer and the scheduler given are left as they are.
        Call it where an iteration ends, after ``scheduler.step()``.

        A ``ReduceLROnPlateau`` goes on with the reports it has had; ``report(metric)`` then does what
        ``scheduler.step(metric)`` did, and the rate it has reached becomes the peak. Without a scheduler there is no
        policy, and the rates stay where they are.

        Args:
            optimizer: a ``torch.optim.SGD``, or a CyclicSGD without a policy; no subclass.
            scheduler: its scheduler: a CyclicLR, OneCycleLR, CosineAnnealingLR, CosineAnnealingWarmRestarts, StepLR,
                MultiStepLR, ExponentialLR, PolynomialLR, LinearLR, ConstantLR, LambdaLR, a SequentialLR of these, or
                a ReduceLROnPlateau.
            steps_per_epoch: optimizer steps for each step of the scheduler; 1 if it was stepped after every update. To
                be left out only where the momentum buffers tell the latter: where nothing but updates has written to
                them since they were made. With ``fused=True``, after loading a checkpoint, and without momentum they
                do not.
            steps_into_epoch: updates since the scheduler's last step, less than ``steps_per_epoch``; the scheduler
                of a run that is taken over at the end of an epoch has just been stepped, which is 0.

        Raises:
            TypeError: not SGD, or a scheduler (ChainedScheduler, MultiplicativeLR, a subclass) that no policy equals.
            ValueError: what cannot be taken over exactly, with the reason: rates edited by hand, groups in which
                the schedule differs by more than the peak, a scheduler that was, or may have been, stepped once
                per epoch without ``steps_per_epoch``, the scheduler of another optimizer, hooks, arguments that the
                policy refuses.
        """
        from .interop import from_torch

        return from_torch(cls, optimizer, scheduler, steps_per_epoch, steps_into_epoch)

    def _go_on_at(self, step: int, state: dict[str, Any] | None) -> None:
        """Move the schedule to a step, with what the policy remembers of reports."""
        assert self._schedule is not None
        for group in self.param_groups:
            group["schedule_step"] = step
            if state is not None:
                group["policy_state"] = dict(state)
        self._schedule.rewrite(self.param_groups)

    @property
    def policy(self) -> Policy | None:
        """The policy in force; None for plain SGD."""
        return None if self._schedule is None else self._schedule.policy

    def __repr__(self) -> str:
        if self._schedule is None:
            return super().__repr__()
        lines = [f"{type(self).__name__} (", f"policy: {self.policy!r}"]
        for i, group in enumerate(self.param_groups):
            shown = sorted(group.keys() - {"params", "policy"})
            lines += [f"Parameter Group {i}", *(f"    {key}: {group[key]}" for key in shown)]
        return "\n".join([*lines, ")"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its ``lr`` is its peak, and it joins the cycle where that stands.

        Args:
            param_group: a dict as for ``SGD``; it is left as it is.

        Raises:
            ValueError, TypeError: a value in it breaks its rule; no group is added then.
        """
        if self._schedule is None:
            super().add_param_group(param_group)
            return
        peers = list(self.param_groups)
        try:
            # A copy, because the schedule's keys go in: the caller's dict stays the caller's.
            super().add_param_group(dict(param_group) if isinstance(param_group, dict) else param_group)
            _check_group(self.param_groups[-1])
            if self._device is None:
                self._schedule.enrol(self.param_groups[-1], peers)
            else:
                self._schedule.enrol(self.param_groups[-1], self._device.plain(peers))
                self._device.join(self.param_groups[-1], self.state)
        except BaseException:
            self.param_groups[:] = peers
            raise

    def report(self, metric: float | Tensor) -> None:
        """Tell the policy a metric, commonly the validation loss once per epoch.

        For :class:`Plateau`. Where it lowers the rate, the new one is in force at once.
        NaN counts as no improvement.

        Args:
            metric: a number, or a tensor that holds one.

        Raises:
            TypeError: there is no policy, or none that listens; ``metric`` is no number.
        """
        if self._schedule is None:
            raise TypeError("need a policy that listens to a metric (Plateau), got policy=None")
        _check_groups(self.param_groups)
        (self._device or self._schedule).report(self.param_groups, _as_float(metric))

    def passive_scheduler(self) -> PassiveScheduler:
        """An ``LRScheduler`` for frameworks that insist on one: it reports the rates in force, and moves nothing.

        Without a policy, too: one may yet come with a checkpoint.
        """
        from .passive import PassiveScheduler

        return PassiveScheduler(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update with the values in force, then move them along the policy.

        Args:
            closure: reevaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: the policy has no valid values for the next step. No update was applied.
        """
        if _compiler_is_near():
            if self._device is not None:
                with torch.no_grad():
                    return self._step(closure)
            return _step_as_torch_wraps_it(self, closure)
        # The same, in a tenth of the time.
        enabled = _is_grad_enabled()
        try:
            _set_grad_enabled(self.defaults["differentiable"])
            return self._step(closure, eagerly=True)
        finally:
            _set_grad_enabled(enabled)

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """What torch puts round the ``step`` of a class, hooks and profiling; most steps have neither.

        torch calls it, not you.
        """
        watched = SGD.profile_hook_step(func)

        @wraps(func)
        def step(self: CyclicSGD, *args: Any, **kwargs: Any) -> Any:
            if (
                _compiler_is_near()
                or args  # a closure may do anything, also register a hook
                or kwargs
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
                or _profiler_enabled()
            ):
                running = self._running
                outer = running[0]
                if outer is not None and outer is not step:  # that of a subclass, which has had its hooks
                    return func(self, *args, **kwargs)
                if self._device is not None and torch.compiler.is_compiling() and not _has_hooks(self):
                    # Traced as it is, so that the compiler need not see torch's wrapper.
                    return func(self, *args, **kwargs)
                running[0] = step
                try:
                    return watched(self, *args, **kwargs)
                finally:
                    running[0] = outer
            return func(self)

        return step

    def _step(self, closure: Callable[[], Any] | None = None, *, eagerly: bool = False) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = self.__dict__.get("found_inf")  # GradScaler sets it for fused=True
        if self._device is not None:
            _check_groups(self.param_groups)
            if "step" in self.__dict__ and not torch.compiler.is_compiling():
                self._watch_for_scheduler(None)
            self._device.step(self.param_groups, self.state, self.__dict__.get("grad_scale"), found_inf)
        elif self._schedule is not None:
            # Numbers that change with every step would be compiled in anew until torch gives up.
            uncompiled = not eagerly and _compiler_is_near()
            update = _uncompiled_scheduled_update if uncompiled else CyclicSGD._scheduled_update
            update(self, self._schedule, found_inf)
        elif torch.compiler.is_compiling():
            self._update_by_torch(self.param_groups, found_inf)
        else:
            uncompiled = not eagerly and _compiler_is_near()
            (_uncompiled_update if uncompiled else CyclicSGD._update)(self, found_inf)
        return loss

    def _scheduled_update(self, schedule: Schedule, found_inf: Tensor | None) -> None:
        groups = self.param_groups
        _check_groups(groups)
        if "initial_lr" in groups[0] or "step" in self.__dict__:
            self._watch_for_scheduler(schedule)
        if found_inf is not None and found_inf.item() != 0:
            return
        if all_zero(groups) and (schedule.is_dry_run(groups) or self._is_first_dry_run(schedule)):
            self._create_buffers()
            schedule.rewrite(groups)
            return
        # Before the update: where the policy has no valid answer, nothing must have moved.
        upcoming = schedule.upcoming(groups)
        self._update(found_inf=None)
        schedule.write(groups, upcoming)

    def _update(self, found_inf: Tensor | None) -> None:
        """Apply one update to every group, with the values in force, as SGD.step does."""
        groups, scheduled = self.param_groups, self._schedule is not None
        grad_scale: Tensor | None = self.__dict__.get("grad_scale")
        if scheduled:
            if not self._was_checked:  # before anything moves
                self._check_that_it_can_be_fused()
                self._was_checked = True
            rest = update_ordinary(groups, self.state, grad_scale)
            if not rest:
                return
        else:
            rest = [(group, group["params"]) for group in groups]
        self._check_that_it_can_be_fused()
        fused = [row for row in rest if takes_fused(row[0], scheduled)]
        if fused:
            fused_update(fused, self.state, grad_scale, found_inf)
        others = [group for group, _ in rest if not takes_fused(group, scheduled)]
        if scheduled:  # torch's own loops know no loss scale
            for group in others:
                unscale([param.grad for param in group["params"] if param.grad is not None], grad_scale)
        self._update_by_torch(others, found_inf)

    _was_checked = False

    def _check_that_it_can_be_fused(self) -> None:
        """Once, with SGD's errors, where fused was asked for."""
        if getattr(self, "_need_device_dtype_check_for_fused", True):
            for group in self.param_groups:
                for param in group["params"] if group["fused"] else ():
                    if param.grad is not None:
                        _device_dtype_check_for_fused(param)
                        self._need_device_dtype_check_for_fused = False
                        return

    def _update_by_torch(self, groups: list[Group], found_inf: Tensor | None) -> None:
        scale: dict[str, Any] = {} if self._schedule is not None else {"grad_scale": self.__dict__.get("grad_scale")}
        for group in groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            buffers: list[Tensor | None] = []
            has_sparse_grad = self._init_group(group, params, grads, buffers)  # type: ignore[no-untyped-call]
            if self._schedule is not None and buffers:  # SGD itself raises
                buffers = dense_beside(grads, buffers)
            options: dict[str, Any] = {key: group[key] for key in HYPERPARAMETERS}
            foreach, fused = group["foreach"], group["fused"]
            sgd(params, grads, buffers, has_sparse_grad, foreach, fused, found_inf=found_inf, **scale, **options)
            for param, buffer in zip(params, buffers, strict=False):  # there are none without momentum
                self.state[param]["momentum_buffer"] = buffer

    def _create_buffers(self) -> None:
        for group in self.param_groups:
            for param in group["params"] if group["momentum"] != 0 else ():
                if param.grad is not None and self.state[param].get("momentum_buffer") is None:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param, requires_grad=False)

    def _is_first_dry_run(self, schedule: Schedule) -> bool:
        """A dry run of a fresh optimizer whose policy starts at a rate of 0: its value does not tell.

        Nor do gradients of 0 alone: below a zero-initialized head there are no others, and a process may own no more.
        """
        groups = self.param_groups
        if groups[0]["schedule_step"] > 0 or any(self.state.values()) or schedule.wrote_first(groups):
            return False
        grads = [param.grad for group in groups for param in group["params"] if param.grad is not None]
        telling = [grad for grad in grads if grad.numel() > 0]
        return len(telling) > 0 and not any(grad.any() for grad in telling)

    def _watch_for_scheduler(self, schedule: Schedule | None) -> None:
        if self._warned_of_scheduler:
            return
        wrapped = getattr(self.__dict__.get("step"), "_wrapped_by_lr_sched", False)
        # Unpickled, or wrapped again by somebody else, it shows by what it writes.
        if wrapped or (schedule and "initial_lr" in self.param_groups[0] and schedule.is_edited(self.param_groups)):
            self._warned_of_scheduler = True
            warn(_BOTH_WRITE)

    _warned_of_scheduler = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_schedule": self._schedule, "_device": self._device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch calls this to unpickle and, with new state and groups alone, to load a state dict.
        previous: list[Group] = self.__dict__.get("param_groups", [])
        if self.__dict__.get("_schedule") is not None:
            # What an older dict lacks is as the code has it; torch would fall back on slower paths.
            _fill(state["param_groups"], previous)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.__dict__.setdefault("_running", [None])
        if self.defaults.get("fused") or self.__dict__.get("_device") is not None:
            self._step_supports_amp_scaling = True  # torch forgets it on unpickling
        if previous:
            self._adopt(previous)

    def _adopt(self, previous: list[Group]) -> None:
        """Take over state and groups that were just loaded in place of ``previous``."""
        _fill(self.param_groups, previous)
        for group in self.param_groups:
            _check_kinds(group)
        # A graph behind a buffer is of use where autograd goes through steps; elsewhere it is only kept alive.
        with_graph = any(group["differentiable"] for group in self.param_groups)
        self.state.update({key: _own(value, with_graph) for key, value in self.state.items()})
        self._schedule = adopt(self._schedule, self.param_groups, previous)
        for group in self.param_groups if self._schedule is not None else ():
            _check_group(group)

    def state_dict(self) -> dict[str, Any]:
        """All there is to save, as plain data. With ``capturable``, this waits for the device.

        Another thread may call it while this optimizer steps, unless ``capturable``: the param groups are then those
        of one moment between two steps, and the dict loads. Momentum buffers are the optimizer's own tensors, as
        torch has it, and move on; for a checkpoint that resumes exactly, hold a lock around ``step()`` and around
        copying or saving weights and state.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        saved = self._state_of_one_moment()
        if self._device is not None:
            saved = self._device.state_dict(self.param_groups, saved)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, saved)
            saved = saved if changed is None else changed
        return saved

    def _state_of_one_moment(self) -> dict[str, Any]:
        """What torch makes of state and groups, without its hooks, while another thread may be changing them."""
        twin = object.__new__(type(self))
        for _ in range(100):
            # In one call into C, in which no other thread writes, as it may between the turns of torch's own loops:
            # unless the garbage collector sets in, and what it calls in Python lets others have a turn.
            groups = list(map(dict, self.param_groups))
            first, *others = [group.get("schedule_step") for group in groups] or [None]
            if all(other is first or other == first for other in others):
                break
        now = {"param_groups": groups, "state": dict(self.state)}
        hooks: dict[str, Any] = {"_optimizer_state_dict_pre_hooks": {}, "_optimizer_state_dict_post_hooks": {}}
        twin.__dict__.update(self.__dict__, **now, **hooks)
        return super(CyclicSGD, twin).state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of ``torch.optim.SGD``.

        The policy in the code wins over the one in the checkpoint, with a warning where they differ;
        with ``policy=None`` the checkpoint's is taken. An SGD checkpoint starts the schedule at step 0,
        with the peaks given in the code. The given dict is left as it is and shares no tensor with the
        optimizer afterwards.

        Args:
            state_dict: what ``state_dict()`` returned, of either class.

        Raises:
            ValueError, TypeError: the dict is not such a checkpoint; the optimizer is as it was.
        """
        if not self._optimizer_load_state_dict_pre_hooks:  # which may make one of anything
            check_state_dict(state_dict, self.param_groups)
        if self._schedule is not None:
            _check_groups(self.param_groups)
        kept = (self.state, self.param_groups, self._schedule)
        if self._device is not None:
            # Loading sees plain numbers, and what comes of it goes into the tensors that there are.
            plain = self._device.plain(self.param_groups)
            undo = self._device.remember()
        try:
            if self._device is not None:
                self.param_groups = plain
            super().load_state_dict(state_dict)
            if self._device is not None:
                self._device.load(self.param_groups, self.state, kept[0])
        except BaseException:
            self.state, self.param_groups, self._schedule = kept
            if self._device is not None:
                undo()
            raise


_step_as_torch_wraps_it = _use_grad_for_differentiable(CyclicSGD._step)

# What the compiler must not look into, also where it fell back to eager and looks at every function called.
_uncompiled_scheduled_update = torch._disable_dynamo(CyclicSGD._scheduled_update)  # type: ignore[attr-defined]
_uncompiled_update = torch._disable_dynamo(CyclicSGD._update)  # type: ignore[attr-defined]
# Looked up once, as they are called on every step.
_profiler_enabled = torch._C._autograd._profiler_enabled
_is_grad_enabled, _set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled
_callback = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: "unknown")


def _compiler_is_near() -> bool:
    """Whether torch.compile traces this, or watches which functions are called."""
    return torch.compiler.is_compiling() or _callback() is not None


def _has_hooks(optimizer: CyclicSGD) -> bool:
    own = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return any((*own, _global_optimizer_pre_hooks, _global_optimizer_post_hooks))


_DEFAULTS = (*HYPERPARAMETERS, "foreach", "differentiable", "fused")
_FLAGS = ("nesterov", "maximize", "foreach", "differentiable", "fused")
_NUMBERS = ("lr", "momentum", "dampening", "weight_decay")


def _check_policy(policy: object) -> None:
    if policy is None or isinstance(policy, Policy):
        return
    hint = ""
    if isinstance(policy, type) and issubclass(policy, Policy):
        hint = f": pass an instance, {policy.__name__}(...)"
    elif callable(policy):
        hint = ": wrap a function of the step in LambdaPolicy"
    raise TypeError(f"need policy to be a Policy or None, got {policy=}{hint}")


def _check_capturable(capturable: object, policy: Policy | None, horizon: object) -> None:
    if not isinstance(capturable, bool):
        raise TypeError(f"need capturable to be True or False, got {capturable=}")
    if capturable and policy is None:
        raise ValueError("need a policy with capturable=True, got policy=None: pass policy=Constant() for a fixed rate")
    if horizon is not None and not capturable:
        raise ValueError(f"need horizon only with capturable=True, got {horizon=}")


def _check_numbers(**given: Any) -> None:
    """What plain SGD lets pass (NaN, inf) would poison a schedule for good."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"need {name} as a number or a Tensor of 1 element, got shape {tuple(value.shape)}")
            value = value.item() if value.device.type != "meta" else value
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"need {name} to be a number, got {name}={shown(value)}")
        finite(name, value, minimum=-math.inf if name == "dampening" else 0)


def _check_groups(groups: list[Group]) -> None:
    if not groups:
        raise ValueError("need at least one param group beside a policy, whose counter they keep, got none")


def _as_float(metric: Any) -> float:
    if not isinstance(metric, (str, bytes)):
        try:
            return float(metric)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # which a tensor without a value raises
            pass
    raise TypeError(f"need metric to be a number that a float can hold, got metric={shown(metric)}")


def _check_kinds(group: Group) -> None:
    """What a param group from a checkpoint may hold, with a policy or without: kinds, whatever the values."""
    for key in _NUMBERS:
        if not isinstance(group[key], (numbers.Real, Tensor)):
            raise TypeError(f"need {key} to be a number, got {key}={shown(group[key])}")
    for key in _FLAGS:
        if not isinstance(group[key], (numbers.Real, type(None))):
            raise TypeError(f"need {key} to be a bool, got {key}={shown(group[key])}")


def _check_group(group: Group) -> None:
    """What a policy's param group may hold; plain SGD's is SGD's affair."""
    if isinstance(group["lr"], Tensor):
        check_tensor_lr(group["lr"])
    given = {key: group[key] for key in (*_NUMBERS, "max_lr") if key in group}
    _check_numbers(**given)
    highest = highest_held(group)
    for name, value in given.items():
        if isinstance(value, Tensor):
            learned = value.requires_grad and not group["differentiable"]
            if name != "lr" and (value.dim() > 0 or learned):
                raise ValueError(f"need {name} to be a number, or a tensor that holds one, got {name}={shown(value)}")
        elif not _is_taken_by_torch(value):
            raise TypeError(f"need {name} to be a float, or an int of 64 bits, got {name}={shown(value)}")
        if abs(value) > highest:
            raise ValueError(f"need {name} to be a number that the parameters can hold (up to {highest}), got {value}")
    for key in _FLAGS:
        if not isinstance(group[key], bool) and not (group[key] is None and key in ("foreach", "fused")):
            raise TypeError(f"need {key} to be a bool, got {key}={shown(group[key])}")
    if group["fused"] and group["foreach"]:
        raise ValueError("need at most one of fused and foreach, got both")


def _is_taken_by_torch(number: Any) -> bool:
    """Whether operations on tensors know what to do with a real number: with no fraction, and no larger int."""
    if isinstance(number, numbers.Integral):
        return -(2**63) <= int(number) < 2**63
    return not isinstance(number, numbers.Rational)


def _fill(groups: list[Group], previous: list[Group]) -> None:
    """Give groups from an older or foreign dict the hyperparameters that they lack."""
    for group, old in zip(groups, previous, strict=False):
        for key in _DEFAULTS:
            group.setdefault(key, old[key])


def _own(value: Any, with_graph: bool) -> Any:
    """The value with tensors of its own; torch's loading may hand over the very tensors of the dict."""
    if isinstance(value, Tensor):
        return value.clone() if with_graph else value.detach().clone()
    if isinstance(value, dict):
        return {key: _own(item, with_graph) for key, item in value.items()}
    return value
