"""Scheduled: what makes an optimizer own its schedules, whatever its update is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, SupportsFloat, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from .groups import Kinds, check_capturable, check_groups, check_keys, check_policy, check_unscheduled
from .policies import Policy
from .rules import shown
from .schedule import Known, changes_of, enrol, to_numbers, undoing
from .slots import LR, Group, Slots, slots_of
from .torch_private import (
    NO_STATE_DICT_HOOKS,
    SUPPORTS_AMP_SCALING,
    compiler_is_near,
    hooks_of_step,
    load_is_hooked,
    state_dict_hooks,
    step_is_watched,
    without_hooks,
)
from .unscheduled import Unscheduled

if TYPE_CHECKING:
    from collections import defaultdict

    from torch.optim.lr_scheduler import LRScheduler
    from typing_extensions import Self

    from .device import BaseUpdate
    from .passive import PassiveScheduler
    from .schedules import Closure, Schedules


Loss = TypeVar("Loss")


# What only loading, pickling or a framework needs is imported where it is used: importing the package is quick.


class Scheduled(Optimizer):
    """An optimizer that owns its schedules: what :class:`CyclicSGD`, :class:`CyclicAdamW` and :func:`cyclic` share.

    Use it to ask whether an optimizer owns its schedules, and as a type; to make such a class, call :func:`cyclic`.
    Each param group with a policy holds, beside the base class's keys,

        group["policy"]           the policy, as text; None for a group without a schedule
        group["schedule_step"]    its clock: updates applied since its step 0
        group["max_lr"]           the peak; an edit counts at the next step
        group["lr"]               the next step's rate: max_lr * lr_factor; an edit lasts for one step
        group["momentum"]         the next step's momentum (betas[0] where there are betas), where the policy cycles it
        group["max_weight_decay"] the group's own weight decay, where the policy moves it; edits as for max_lr
        group["weight_decay"]     the next step's then: max_weight_decay * weight_decay_factor; edits as for lr

    and all clocks advance together, whenever an update was applied. ``policies`` has the policies themselves, and
    ``reschedule`` changes policy, peak or clock.

    Example:
        >>> import torch
        >>> from cyclic_optim import CyclicSGD, OneCycle, Scheduled
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = CyclicSGD([weight], lr=0.1, policy=OneCycle(total_steps=1000))
        >>> isinstance(optimizer, Scheduled), isinstance(optimizer, torch.optim.SGD)
        (True, True)
    """

    # A mixin, before a torch optimizer: ``class CyclicAdamW(Scheduled, AdamW)``. A subclass calls `_begin` before the
    # base's ``__init__`` and `_ready` after it.

    if TYPE_CHECKING:  # torch's own; from the assignments below, a type checker might infer others
        param_groups: list[Group]
        state: defaultdict[Tensor, Any]

    _kinds: ClassVar[Kinds] = Kinds()
    _policy: Policy | None
    _known: Known
    _schedules: Schedules

    # -- building ---------------------------------------------------------------------------------------------------

    def _begin(self, policy: Policy | None) -> None:
        check_policy(policy)
        self._policy = policy
        self._known = Known()
        self._schedules = Unscheduled()
        # The outermost `step` wrapper now running, so that `super().step()` does not fire hooks twice; a closure's own
        # step is a new one. In a list: the compiler of some torch (2.11) has no way to set an optimizer's attribute.
        self._running: list[Callable[..., Any] | None] = [None]
        self._capturable = False  # until the base's __init__ has run

    def _ready(self, capturable: bool, horizon: int | None = None) -> None:
        """The base's ``__init__`` has run."""
        self._capturable, self._horizon = capturable, horizon
        self._to_device()

    def _to_device(self) -> None:
        """Move schedules to the device, where the optimizer is capturable and they are not there yet."""
        if not self._capturable or self._schedules.is_traced:
            return
        if any(policy is not None for policy in (self._policy, *self.policies)):
            from .device import DeviceSchedules  # a third of all there is to import, for the few that need it

            schedules = DeviceSchedules(self, self._horizon)
            schedules.update.claim_scaling(self)
            self._schedules = schedules

    @property
    def _slots(self) -> Slots:
        return slots_of(self.defaults)

    @classmethod
    def _base(cls) -> type[Optimizer]:
        """The torch optimizer below this class."""
        return next(base for base in cls.__mro__ if issubclass(base, Optimizer) and not issubclass(base, Scheduled))

    def _device_update(self) -> BaseUpdate:
        """What updates parameters where schedules are on the device: here, the base class itself."""
        from .device import BaseUpdate

        return BaseUpdate(self._base())

    @classmethod
    def from_torch(
        cls,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        steps_per_epoch: int | None = None,
        steps_into_epoch: int = 0,
    ) -> Self:
        """Take over a run of the torch optimizer and its scheduler, in mid-training.

        Returns the optimizer that goes on where they stand: the same param groups with the same options, the same
        state (the very tensors, as the parameters are: from then on use only the new optimizer), the clock at the
        scheduler's position, and the same learning rate and momentum at every later step that torch defines, to 1e-10
        relative. The optimizer and the scheduler given are left as they are. Call it where an iteration ends, after
        ``scheduler.step()``.

        Every param group gets a policy and a peak of its own: lists of arguments and absolute rates (``eta_min``,
        ``min_lr``, ``eps``) are those of each group. Groups with equal schedules share one policy; if all do, groups
        that are added later have it, too.

        A ``ReduceLROnPlateau`` goes on with the reports it has had; ``report(metric)`` then does what
        ``scheduler.step(metric)`` did, and the rate that each group has reached becomes its peak. Without a scheduler
        there is no policy, and the rates stay where they are.

        Args:
            optimizer: an instance of the base class itself (``torch.optim.SGD`` for CyclicSGD), or of this one without
                a policy; no other subclass.
            scheduler: its scheduler: a CyclicLR, OneCycleLR, CosineAnnealingLR, CosineAnnealingWarmRestarts, StepLR,
                MultiStepLR, ExponentialLR, PolynomialLR, LinearLR, ConstantLR, LambdaLR, a SequentialLR of these, or
                a ReduceLROnPlateau.
            steps_per_epoch: optimizer steps for each step of the scheduler; 1 if it was stepped after every update. May
                be left out only where the optimizer's state shows the latter. Adam and most others count their
                updates. SGD's updates are counted by the writes to its momentum buffers, unless there is no momentum,
                ``fused=True``, or the run was resumed from a checkpoint.
            steps_into_epoch: updates since the scheduler's last step, less than ``steps_per_epoch``; 0 at the end of
                an epoch, after ``scheduler.step()``.

        Raises:
            TypeError: another optimizer, or a scheduler (ChainedScheduler, MultiplicativeLR, a subclass) that no policy
                equals.
            ValueError: what cannot be taken over exactly, with the reason: rates edited by hand, a scheduler that was,
                or may have been, stepped once per epoch without ``steps_per_epoch``, the scheduler of another
                optimizer, hooks, arguments that a policy refuses.

        Example:
            >>> import torch
            >>> from cyclic_optim import CyclicSGD
            >>> groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.2)]
            >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
            >>> scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.05)
            >>> optimizer = CyclicSGD.from_torch(optimizer, scheduler)
            >>> optimizer.policies
            [CosineWave(t_max=100, min_factor=0.5), CosineWave(t_max=100, min_factor=0.25)]
        """
        from .interop import from_torch  # which imports every policy there is

        return from_torch(cls, optimizer, scheduler, steps_per_epoch, steps_into_epoch)

    # -- the schedule -----------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy | None:
        """The policy of groups that name none: the constructor's, a checkpoint's, or what ``reschedule`` was given."""
        return self._policy

    @policy.setter
    def policy(self, policy: NoReturn) -> NoReturn:  # for a type checker, an error at the assignment
        raise AttributeError(f"need reschedule(policy=...) to change the policy, got policy={shown(policy)} assigned")

    @property
    def policies(self) -> list[Policy | None]:
        """The policy of each param group; None where it has no schedule."""
        return [group["policy"] for group in self._known.resolved(self.param_groups)]

    def __repr__(self) -> str:
        has_policy = self.policies.count(None) < len(self.param_groups)
        if not has_policy and all(isinstance(key, str) for group in self.param_groups for key in group):
            return super().__repr__()  # which sorts the keys: another kind than strings may not compare
        lines = [f"{type(self).__name__} (", *([f"policy: {self.policy!r}"] if has_policy else [])]
        for i, (group, policy) in enumerate(zip(self.param_groups, self.policies, strict=True)):
            shown = {key: value for key, value in group.items() if key not in ("params", "policy")}
            if policy is not self._policy:
                shown["policy"] = policy
            lines += [f"Parameter Group {i}", *(f"    {key}: {shown[key]!s}" for key in sorted(shown, key=str))]
        return "\n".join([*lines, ")"])

    def _repr_html_(self) -> str | None:
        """What a notebook shows: each schedule as an inline SVG picture, its groups' clocks and their current values.

        None, for the text, without a policy, and where a policy or a value set by hand is not valid. With
        ``capturable=True`` it synchronizes with the device, to read the clocks.
        """
        from .svg import optimizer_html, or_none

        slots = (LR, *self._slots.present)
        columns = {slot.where: slot.read for slot in slots if any(slot.key in group for group in self.param_groups)}

        def draw() -> str | None:
            groups = self._known.resolved(self._schedules.plain(self.param_groups))
            return optimizer_html(type(self).__name__, groups, columns)

        return or_none(draw)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; its ``lr`` is its peak.

        Args:
            param_group: a dict as for the base class; it is left as it is. Beside the base's keys it may have
                ``policy`` (default: the optimizer's; None for a group without a schedule) and
                ``schedule_step`` (default: where the first group with a policy stands; 0 starts at the beginning).

        Raises:
            ValueError, TypeError: a value in it breaks its rule, or a key looks like an argument of ours and is
                none; no group is added then.
        """
        peers, schedules = list(self.param_groups), self._schedules
        try:
            # A copy, because the schedule's keys go in: the caller's dict stays the caller's.
            super().add_param_group(dict(param_group) if isinstance(param_group, dict) else param_group)
            self._join(self.param_groups[-1], peers)
        except BaseException:
            self.param_groups[:] = peers
            self._schedules = schedules.for_groups(self, peers)
            raise

    def _join(self, group: Group, peers: list[Group]) -> None:
        check_keys(group, self.defaults)
        to_numbers(group, self._slots)
        names_policy = "policy" in group
        policy = self._policy_for(group)
        if policy is not None:
            check_capturable(group, self.defaults)
            self._kinds.check_scheduled(group)
            enrol(group, policy, self._known.each_resolved(self._schedules.each_plain(peers)), self._slots)
            group["policy"] = self._known.text(policy)
        else:
            check_unscheduled(group, is_told=names_policy)
            group["policy"] = None  # which it keeps beside a schedule
        self._schedules = self._schedules.for_groups(self, [*peers, group])
        self._schedules.join(self)
        self._to_device()

    def _policy_for(self, group: Group) -> Policy | None:
        """The policy that a new group names, or the optimizer's."""
        named: Any = group.pop("policy", self._policy)
        # A group of another optimizer, or a copy of one of these; other texts are a mistake.
        if isinstance(named, str) and (named in self._known or named.startswith("{")):
            if named in self._known:
                return self._known.policy(named)
            if self._policy is None:
                from .checkpoint import policy_of

                return policy_of(named)
            group.pop("schedule_step", None)
            group.pop("policy_state", None)
            return self._policy
        check_policy(named)
        policy: Policy | None = named
        return policy

    def report(self, metric: SupportsFloat) -> None:
        """Tell every policy that listens a metric, commonly the validation loss once per epoch.

        For :class:`Plateau`. Where it lowers the rate, the next step uses the new one. NaN counts as no improvement.

        Args:
            metric: a number, or a tensor that holds one.

        Raises:
            TypeError: no policy listens; ``metric`` is no number.

        Example:
            >>> import torch
            >>> from cyclic_optim import CyclicSGD, Plateau
            >>> weight = torch.nn.Parameter(torch.zeros(1))
            >>> optimizer = CyclicSGD([weight], lr=0.1, policy=Plateau(patience=0))
            >>> optimizer.report(1.0)
            >>> optimizer.report(1.5)  # worse
            >>> optimizer.param_groups[0]["lr"]
            0.010000000000000002
        """
        self._schedules.report(self, _as_float(metric))

    def reschedule(
        self,
        policy: Policy | None = None,
        lr: float | Tensor | Sequence[float | Tensor] | None = None,
        step: int | None = None,
        group: int | Sequence[int] | None = None,
    ) -> None:
        """Change policy, peak or clock; what is not given stays. The next step uses the new values.

        Momentum buffers are kept, and momentum itself where the new policy leaves it alone. Weight decay goes back to
        the group's own, ``max_weight_decay``, where a new policy leaves it alone. All of it is done, or nothing where
        an argument is wrong. A new policy starts with no reports. It is all in the checkpoint.

        Args:
            policy: the new policy. With ``group=None`` it is also that of groups that are added later.
            lr: the new peak: a number for every group addressed, or one number for each of them.
            step: where the clocks stand: the next step uses ``policy.at(step)``. A group without a clock starts at 0.
            group: the index of a param group, or several; None addresses all groups (with ``policy=None``, all that
                have a policy).

        Raises:
            ValueError, TypeError: nothing to change, an index that is not there, a list of another length, a step
                that is no int >= 0, a policy that has no valid values there, a group without a policy.

        Example:
            >>> import torch
            >>> from cyclic_optim import CosineDecay, CyclicSGD, OneCycle
            >>> weight = torch.nn.Parameter(torch.zeros(1))
            >>> optimizer = CyclicSGD([weight], lr=0.1, policy=OneCycle(total_steps=1000))
            >>> optimizer.reschedule(step=900)  # start at step 900
            >>> optimizer.reschedule(policy=OneCycle(total_steps=500), lr=0.05, step=0)  # a second stage
            >>> rate = optimizer.param_groups[0]["lr"]
            >>> optimizer.reschedule(policy=CosineDecay(200), lr=rate, step=0)  # cool down from here
            >>> optimizer.param_groups[0]["lr"] == rate
            True
        """
        check_groups(self.param_groups)
        changes = changes_of(self.param_groups, policy, lr, step, group)
        before = (self._schedules, self._policy)
        undo = [undoing(self.param_groups), self._schedules.remember()]
        try:
            self._schedules.reschedule(self, changes)
            self._to_device()
            if policy is not None and group is None:
                self._policy = policy
        except BaseException:
            self._schedules, self._policy = before
            for put_back in undo:
                put_back()
            raise

    def passive_scheduler(self) -> PassiveScheduler:
        """An ``LRScheduler`` for frameworks that insist on one: it reports rates, and moves nothing.

        Without a policy, too: one may yet come with a checkpoint.
        """
        from .passive import PassiveScheduler

        return PassiveScheduler(self)

    # -- the step ---------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...
    def step(self, closure: Closure | None = None) -> Any:
        """Make one update with the current values, then write the next step's.

        The first step past the end of a policy that holds a rate below 1e-4 of the peak gives a warning: once, and once
        more after :meth:`reschedule`. With ``capturable`` no step knows where it is: :meth:`state_dict` warns.

        Args:
            closure: reevaluates the model and returns the loss, as the base class takes it.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: a policy has no valid values for the next step. No update was made.
        """
        if compiler_is_near():
            return self._schedules.compiled_step(self, closure)
        return self._schedules.step(self, closure)

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """torch's wrapper of a class's ``step``, for hooks and profiling, left out where neither is in use.

        torch calls it, not you.
        """
        watched = Optimizer.profile_hook_step(func)
        is_ours = func is Scheduled.step

        @wraps(func)
        def step(self: Scheduled, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs or step_is_watched(self):  # a closure may do anything, also register a hook
                return self._watched_step(step, watched, func, args, kwargs)
            return self._schedules.step(self, None) if is_ours else func(self)

        return step

    def _watched_step(self, step: Any, watched: Any, func: Any, args: Any, kwargs: Any) -> Any:
        """One step in torch's wrapper, but for a subclass's ``super().step()``, whose hooks have been called."""
        running = self._running
        outer = running[0]
        if outer is not None and outer is not step:
            return func(self, *args, **kwargs)
        if torch.compiler.is_compiling() and self._schedules.is_traced and not hooks_of_step(self):
            return func(self, *args, **kwargs)  # torch's wrapper would break the graph
        running[0] = step
        try:
            return watched(self, *args, **kwargs)
        finally:
            running[0] = outer

    def _base_step(self, closure: Closure | None) -> Any:
        """The base class's own step, without its hooks, which have been called."""
        step = without_hooks(super().step.__func__)  # type: ignore[attr-defined]
        return step(self) if closure is None else step(self, closure)

    # What schedules call for one update: on the host, without any schedule, traced without one, on the device. The
    # base class does the same in all of them.

    def _apply(self, closure: Closure | None) -> Any:
        return self._base_step(closure)

    def _plain_step(self, closure: Closure | None) -> Any:
        return self._base_step(closure)

    def _compiled_plain_step(self, closure: Closure | None) -> Any:
        return self._base_step(closure)

    def _create_state(self) -> None:
        """What distributed checkpointing's dry run is for: state as a first step creates it, and nothing else."""
        self._base_step(None)

    # -- saving and loading -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All there is to save, as plain data. With ``capturable``, this synchronizes with the device.

        Another thread may call it while this optimizer steps, unless ``capturable``: the param groups are then those
        of one moment between two steps, and the dict loads. The state's tensors are the optimizer's own, as in torch,
        and change with later steps; for a checkpoint that resumes exactly, hold a lock around ``step()`` and around
        copying or saving weights and state.
        """
        before, after = state_dict_hooks(self)
        for hook in before:
            hook(self)
        saved = self._consistent_state_dict()
        for hook in after:
            changed = hook(self, saved)
            saved = saved if changed is None else changed
        return saved

    def _consistent_state_dict(self) -> dict[str, Any]:
        """torch's state dict, without its hooks, while another thread may be stepping."""
        for _ in range(100):
            # One call into C, in which no other thread writes: unless a GC run calls back into Python; hence check
            # and retry.
            groups = list(map(dict, self.param_groups))
            if len({_lag(*pair) for pair in zip(groups, self.param_groups, strict=True)}) <= 1:
                break
        now = {"param_groups": self._schedules.plain(groups), "state": dict(self.state)}
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, **now, **NO_STATE_DICT_HOOKS)
        return self._schedules.saved(super(Scheduled, twin).state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this class or of its base.

        The policy in the code wins over the one in the checkpoint, with a warning where they differ; a group without
        a policy in the code takes the checkpoint's. The checkpoint's peak wins over the one in the code, with a
        warning where they differ. Each group's clock is the checkpoint's; a checkpoint of the base class starts the
        schedules at step 0, with the code's peaks, and with a warning where its state shows that it has been training
        (``reschedule(step=...)`` sets the clock, :meth:`from_torch` takes over a run with its scheduler). Values that
        are not the schedule's at its step (another optimizer trained on with our keys, or the clock was edited) are
        named in a warning, and the schedule's are used; rates and momenta that were edited by hand when the checkpoint
        was made are kept for one step. Weight decay, and the group's own where a policy moves it, are the checkpoint's,
        as in the base class. The given dict is left as it is and shares no tensor with the optimizer afterwards.

        Args:
            state_dict: what ``state_dict()`` returned, of either class.

        Raises:
            ValueError, TypeError: the dict is not such a checkpoint; the optimizer is as it was.
        """
        from .checkpoint import check_state_dict, with_capturable

        if not load_is_hooked(self):
            check_state_dict(state_dict, self.param_groups, self._kinds)
            state_dict = with_capturable(state_dict, self.param_groups, self._capturable)
        before = (self.state, self.param_groups, self._schedules, self._policy)
        undo = self._schedules.remember()
        try:
            self.param_groups = self._schedules.for_loading(self.param_groups)
            super().load_state_dict(state_dict)
            self._schedules.loaded(self, before[0])
            self._to_device()
        except BaseException:
            self.state, self.param_groups, self._schedules, self._policy = before
            undo()
            raise

    def __getstate__(self) -> dict[str, Any]:
        from .pickling import Guard

        ours = {key: self.__dict__[key] for key in ("_policy", "_known", "_schedules", "_capturable", "_horizon")}
        policies = [self._policy, *self._known.forget_others(self.param_groups)]
        return {"_guard": Guard(policies), **super().__getstate__(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch calls this to unpickle and, with new state and groups alone, to load a state dict.
        previous: list[Group] = self.__dict__.get("param_groups", [])
        if previous:
            from .checkpoint import drop_empty

            self._schedules.fill(state["param_groups"], previous, self.defaults)
            drop_empty(state["state"])
        super().__setstate__(state)
        self.__dict__.pop("_guard", None)
        self.__dict__.setdefault("_running", [None])
        if previous:
            self._adopt(previous)
            return
        if self.defaults.get("fused"):
            setattr(self, SUPPORTS_AMP_SCALING, True)  # torch forgets it on unpickling
        self._schedules.unpickled(self)

    def _adopt(self, previous: list[Group]) -> None:
        """Take over state and groups that were just loaded in place of ``previous``."""
        from .checkpoint import adopt, cloned_state, fill, warn_of_starts, was_moved

        groups = self.param_groups
        fill(groups, previous, self.defaults)
        for group in groups:
            self._kinds.check(group)
        self.state.update(cloned_state(self.state, groups))
        moved = {i for i, group in enumerate(groups) if was_moved(group)}
        by_hand = adopt(groups, previous, self._known, self._slots, self._kinds)
        starting = [i for i, group in enumerate(groups) if i not in by_hand and group.get("policy") is not None]
        warn_of_starts(starting, moved, groups, self.state)
        self._schedules = self._schedules.for_groups(self, groups)
        self._schedules.adopted(groups, by_hand)
        if self._policy is None and len(texts := {group.get("policy") for group in groups}) == 1:
            self._policy = self._known.policy(texts.pop())


def _lag(copied: Group, live: Group) -> Any:
    """How far a group has moved on since it was copied; all clocks tick together."""
    then, now = copied.get("schedule_step"), live.get("schedule_step")
    return 0 if now is then or now is None or then is None else now - then


def _as_float(metric: Any) -> float:
    if not isinstance(metric, (str, bytes)):
        try:
            return float(metric)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # which a tensor without a value raises
            pass
    raise TypeError(f"need metric to be a number that a float can hold, got metric={shown(metric)}")
