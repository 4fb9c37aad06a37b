"""Taking over a run of ``torch.optim.SGD`` and its scheduler, at whatever step it stands."""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedules

from .policies.base import Policy
from .policies.compose import LambdaPolicy, Scaled, Sequential, Staircase
from .policies.cyclic import CosineRestarts, CosineWave, ExpRange, Triangular, Triangular2, cycle_of
from .policies.decay import Constant, ExponentialDecay, LinearRamp, MultiStepDecay, PolynomialDecay, StepDecay
from .policies.onecycle import OneCycle
from .policies.plateau import Plateau
from .rules import whole
from .slots import Group
from .torch_private import HOOKS

if TYPE_CHECKING:
    from .scheduled import Scheduled

    Cycled = TypeVar("Cycled", bound=Scheduled)


class Taken(NamedTuple):
    """What a scheduler does, in our words: ``lr = peak * lr_factor``, one peak per group."""

    policy: Policy
    peaks: list[float]
    state: dict[str, Any] | None = None  # of a policy that listens


def from_torch(
    cls: type[Cycled], optimizer: Optimizer, scheduler: Any, steps_per_epoch: int | None, steps_into_epoch: int
) -> Cycled:
    """See :meth:`cyclic_optim.CyclicSGD.from_torch`."""
    _check_optimizer(cls, optimizer)
    _check_lengths(scheduler, steps_per_epoch, steps_into_epoch)
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    if scheduler is None:
        return _with_state_of(optimizer, cls(groups, **_arguments(cls, optimizer)))
    _check_scheduler(scheduler, optimizer)
    try:
        position = _position(scheduler)
        taken = _SCHEDULERS[type(scheduler)](scheduler)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{type(scheduler).__name__} cannot be taken over exactly: {error}") from error
    if steps_per_epoch is None and taken.state is None:
        _check_stepped_with(optimizer, position)
    _check_in_force(groups, taken, position)
    policy = taken.policy if taken.state is not None else _stretched(taken.policy, steps_per_epoch or 1)
    step = position * (steps_per_epoch or 1) + steps_into_epoch
    for group, peak in zip(groups, taken.peaks, strict=True):
        for key in _WRITTEN_BY_SCHEDULERS & group.keys():
            del group[key]
        group.update(max_lr=peak, schedule_step=step)
        if taken.state is not None:
            group["policy_state"] = taken.state
    return _with_state_of(optimizer, cls(groups, **_arguments(cls, optimizer), policy=policy))


def _arguments(cls: type[Scheduled], optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's defaults that its class takes as arguments."""
    parameters = inspect.signature(cls).parameters
    return {key: value for key, value in optimizer.defaults.items() if key in parameters}


_WRITTEN_BY_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}


def _with_state_of(optimizer: Optimizer, taking_over: Cycled) -> Cycled:
    """The buffers are the very tensors, as the parameters are; the dicts that hold them are not."""
    for param, kept in optimizer.state.items():
        taking_over.state[param] = dict(kept)
    return taking_over


# --- what is refused, whatever the scheduler


def _check_optimizer(cls: type[Scheduled], optimizer: Any) -> None:
    base = cls._base()
    # Of the classes between them, those that only add the schedule.
    known = [base, *(one for one in cls.__mro__ if "_made_for_schedules" in vars(one)), cls]
    if type(optimizer) not in known:
        raise TypeError(
            f"need a {base.__module__.removesuffix('.' + base.__name__.lower())}.{base.__qualname__} itself, as another class, a subclass included, may update in another way, "
            f"got {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    policies = [policy for policy in getattr(optimizer, "policies", []) if policy is not None]
    if policies:
        raise ValueError(f"need an optimizer without a policy of its own, got policy={policies[0]!r}")
    for name in HOOKS:
        if getattr(optimizer, name, None):
            raise ValueError(
                f"need an optimizer without hooks, which would stay behind, got {len(getattr(optimizer, name))} "
                f"in {name}: remove them, and register them on the optimizer that from_torch returns"
            )


def _check_lengths(scheduler: object, steps_per_epoch: Any, steps_into_epoch: Any) -> None:
    if steps_per_epoch is None:
        if steps_into_epoch != 0:
            raise ValueError(f"need steps_per_epoch beside steps_into_epoch, got {steps_into_epoch=}")
        return
    if scheduler is None:
        raise ValueError(f"need a scheduler that is stepped once per epoch beside steps_per_epoch, got {scheduler=}")
    length = whole(1)["rule"]("steps_per_epoch", steps_per_epoch)
    if not 0 <= whole(0)["rule"]("steps_into_epoch", steps_into_epoch) < length:
        raise ValueError(f"need 0 <= steps_into_epoch < steps_per_epoch, got {steps_into_epoch=}, {steps_per_epoch=}")


def _check_scheduler(scheduler: Any, optimizer: Optimizer) -> None:
    cls = type(scheduler)
    if cls not in _SCHEDULERS:
        known = ", ".join(sorted(scheduler.__name__ for scheduler in _SCHEDULERS))
        reason = _REFUSED.get(cls, "what it does is not known (a subclass may do anything)")
        raise TypeError(f"need a scheduler that is one of {known}, got {cls.__module__}.{cls.__qualname__}: {reason}")
    if scheduler.optimizer is not optimizer:
        raise ValueError(f"need the scheduler of this optimizer, got a {cls.__name__} that belongs to another one")
    rates, groups = len(scheduler._last_lr), len(optimizer.param_groups)
    if rates != groups:
        raise ValueError(f"need a scheduler that knows all param groups, got {groups} groups, {rates} rates of its own")


_REFUSED = {
    torch_schedules.ChainedScheduler: "its parts work on each other's results, and no policy does",
    torch_schedules.MultiplicativeLR: "its rate is the product of all factors so far, and a policy is asked for "
    "any step alone",
}


def _check_stepped_with(optimizer: Optimizer, position: int) -> None:
    """Refuse a scheduler of which nothing shows that it was stepped after every update, and not once per epoch.

    torch counts no updates, but tensors count what is written to them. Torch's op for ``fused=True`` forgets to,
    and a checkpoint does not keep it: then there is nothing to see.
    """
    updates, told = int(position == 0 and getattr(optimizer, "_opt_called", False)), 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            buffer = optimizer.state.get(param, {}).get("momentum_buffer")
            if buffer is None:
                # Whoever makes a parameter writes to it, too, and some project or clip it after an update.
                updates = max(updates, (_writes(param) - 8) // 2)
            else:
                # The first update makes the buffer, each one after it scales it and adds to it.
                told = max(told, (_writes(buffer) + 2) // 2)
    updates = max(updates, told)
    if updates > position:
        raise ValueError(
            f"need a scheduler that was stepped after every update, got at least {updates} updates and {position} "
            "steps of the scheduler: call from_torch after scheduler.step(), and pass steps_per_epoch if that is "
            "called once per epoch (steps_per_epoch=1 if it is called after every update all the same)"
        )
    if told < position:
        raise ValueError(
            f"need steps_per_epoch where nothing shows how often the scheduler is stepped, got {position} of its "
            f"steps and momentum buffers that tell of {told} updates (fused=True, a loaded checkpoint and "
            "momentum=0 leave no trace): pass steps_per_epoch=1 if it is called after every update, else the number of "
            "updates in an epoch"
        )


def _writes(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _check_in_force(groups: list[Group], taken: Taken, position: int) -> None:
    policy, state = taken.policy, taken.state
    lr_factor, momentum = policy.at(position) if state is None else policy.after(state, position)
    for i, (group, peak) in enumerate(zip(groups, taken.peaks, strict=True)):
        in_force = [("lr", peak * lr_factor, peak)]
        if momentum is not None:
            in_force.append(("momentum", momentum, 1.0))
        for key, expected, scale in in_force:
            # Rounding adds up in the schedulers that go from one rate to the next, the more in short numbers.
            short = torch.finfo(group[key].dtype).eps if isinstance(group[key], torch.Tensor) else 0.0
            tolerance = max(1e-9, 1e3 * short)
            if not math.isclose(float(group[key]), expected, rel_tol=tolerance, abs_tol=1e-3 * tolerance * scale):
                raise ValueError(
                    f"need {key} as the scheduler has it at its step {position}, {expected!r}, got "
                    f"param_groups[{i}][{key!r}]={float(group[key])!r}: edited by hand, or by another scheduler"
                )


# --- where a scheduler stands


def _position(scheduler: Any) -> int:
    """How many steps it has made, where its own state agrees."""
    position = scheduler.last_epoch
    if type(position) is not int or position < 0:
        raise ValueError(f"need last_epoch to be an int >= 0, got last_epoch={position!r}")
    if type(scheduler) is torch_schedules.SequentialLR:
        index = bisect_right(scheduler._milestones, position)
        expected = position - (0, *scheduler._milestones)[index]
        part = scheduler._schedulers[index]
        if _position(part) != expected:
            raise ValueError(f"need schedulers[{index}] at its step {expected}, got last_epoch={part.last_epoch}")
    if type(scheduler) is torch_schedules.CosineAnnealingWarmRestarts:
        _, start, _, end = cycle_of(position, scheduler.T_0, 0, scheduler.T_mult)
        if (scheduler.T_cur, scheduler.T_i) != (position - start, end - start):
            raise ValueError(
                f"need T_cur={position - start}, T_i={end - start} after {position} whole steps, "
                f"got T_cur={scheduler.T_cur}, T_i={scheduler.T_i}"
            )
    if type(scheduler) is torch_schedules.OneCycleLR and position >= scheduler.total_steps:
        raise ValueError(f"need a cycle that is not over, got {position} steps of total_steps={scheduler.total_steps}")
    return position


def _stretched(policy: Policy, length: int) -> Policy:
    """The policy, every step of it lasting for ``length`` steps."""
    if length == 1 or isinstance(policy, Constant):
        return policy
    if isinstance(policy, StepDecay):
        return replace(policy, step_size=policy.step_size * length)
    if isinstance(policy, MultiStepDecay):
        return replace(policy, milestones=tuple(milestone * length for milestone in policy.milestones))
    return Staircase(policy, length)


# --- one policy for all groups


def _ratio(name: str, parts: Sequence[float], wholes: Sequence[float]) -> float:
    """The one r for which ``part = r * whole`` in every group; where both are 0, any is right."""
    pairs = [(float(part), float(of)) for part, of in zip(parts, wholes, strict=True)]
    ratios = [part / of if of != 0 else math.inf for part, of in pairs if part != 0 or of != 0]
    if not ratios:
        return 1.0
    if not all(math.isfinite(ratio) and math.isclose(ratio, ratios[0], rel_tol=1e-12) for ratio in ratios):
        raise ValueError(
            f"need {name} to be finite and the same in all param groups, as one policy drives them all, got {ratios}"
        )
    return ratios[0]


def _one(name: str, values: Sequence[Any]) -> Any:
    if any(value != values[0] for value in values):
        raise ValueError(
            f"need {name} to be the same in all param groups, as one policy drives them all, got {list(values)}"
        )
    return values[0]


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


# --- the schedulers


def _on_base_lrs(policy: Callable[[Any], Policy]) -> Callable[[Any], Taken]:
    """Most of them take a fraction of the rate that they found."""
    return lambda scheduler: Taken(policy(scheduler), _floats(scheduler.base_lrs))


def _min_factor(scheduler: Any) -> float:
    base_lrs = _floats(scheduler.base_lrs)
    return _ratio("eta_min / lr", [scheduler.eta_min] * len(base_lrs), base_lrs)


def _constant_lr(scheduler: Any) -> Policy:
    if scheduler.factor == 0:
        raise ValueError("need 0 < factor, got factor=0, by which torch divides in the end")
    return Sequential((Scaled(Constant(), scheduler.factor), Constant()), (scheduler.total_iters,))


def _cyclic_lr(scheduler: Any) -> Taken:
    peaks, base_lrs = _floats(scheduler.max_lrs), _floats(scheduler.base_lrs)
    up = _whole_if_it_is(scheduler.step_ratio * scheduler.total_size)
    arguments = {
        "step_size_up": up,
        "step_size_down": _whole_if_it_is(scheduler.total_size - up),
        "div_factor": _ratio("max_lr / base_lr", peaks, base_lrs),
        "cycle_momentum": scheduler.cycle_momentum,
    }
    if scheduler.cycle_momentum:
        arguments["base_momentum"] = _one("base_momentum", scheduler.base_momentums)
        arguments["max_momentum"] = _one("max_momentum", scheduler.max_momentums)
    if scheduler._scale_fn_custom is not None:
        scaled = {"scale_fn": scheduler._scale_fn_custom, "scale_mode": scheduler.scale_mode}
        return Taken(Triangular(**arguments, **scaled), peaks)
    if scheduler.mode == "exp_range":
        return Taken(ExpRange(**arguments, gamma=scheduler.gamma), peaks)
    return Taken({"triangular": Triangular, "triangular2": Triangular2}[scheduler.mode](**arguments), peaks)


def _whole_if_it_is(length: float) -> Any:
    """CyclicLR keeps whole numbers of steps as a sum and a ratio of floats."""
    return round(length) if math.isclose(length, round(length), rel_tol=1e-12) else length


def _one_cycle_lr(scheduler: Any) -> Taken:
    groups, phases = scheduler.optimizer.param_groups, scheduler._schedule_phases

    def held(key: str) -> list[float]:
        return _floats([group[key] for group in groups])

    momenta = {}
    if scheduler.cycle_momentum:
        momenta = {key: _one(key, held(key)) for key in ("base_momentum", "max_momentum")}
    policy = OneCycle(
        scheduler.total_steps,
        pct_start=(phases[0]["end_step"] + 1) / scheduler.total_steps,
        anneal_strategy=scheduler._anneal_func_type,
        cycle_momentum=scheduler.cycle_momentum,
        div_factor=_ratio("max_lr / initial_lr", held("max_lr"), held("initial_lr")),
        final_div_factor=_ratio("initial_lr / min_lr", held("initial_lr"), held("min_lr")),
        three_phase=len(phases) == 3,
        **momenta,
    )
    return Taken(policy, held("max_lr"))


def _sequential_lr(scheduler: Any) -> Taken:
    for i, part in enumerate(scheduler._schedulers):
        if type(part) not in _PARTS:
            raise TypeError(
                f"need parts out of {', '.join(sorted(cls.__name__ for cls in _PARTS))}, got "
                f"schedulers[{i}] of {type(part).__module__}.{type(part).__qualname__}"
            )
    parts = [_PARTS[type(part)](part) for part in scheduler._schedulers]
    peaks = max((part.peaks for part in parts), key=max)
    policies = []
    for i, part in enumerate(parts):
        ratio = _ratio(f"the peak of schedulers[{i}] over the highest one", part.peaks, peaks)
        policies.append(part.policy if ratio >= 1 else Scaled(part.policy, ratio))
    return Taken(Sequential(tuple(policies), tuple(scheduler._milestones)), peaks)


def _reduce_lr_on_plateau(scheduler: Any) -> Taken:
    # It knows no rate but the last; what it will do from there on is all that matters.
    peaks, min_lrs = _floats(scheduler._last_lr), scheduler.min_lrs
    if len(min_lrs) != len(peaks) and scheduler.default_min_lr is not None:
        min_lrs = [scheduler.default_min_lr] * len(peaks)
    # A rate that is below its bound already is never lowered, nor is 0.
    moving = [(min(min_lr, peak), peak) for min_lr, peak in zip(min_lrs, peaks, strict=True) if peak != 0]
    bounds, rates = [bound for bound, _ in moving], [rate for _, rate in moving]
    try:
        eps = _ratio("eps / lr", [scheduler.eps] * len(rates), rates) if scheduler.eps else 0.0
    except ValueError as error:
        raise ValueError(f"{error}: set scheduler.eps = 0 first, if you can do without it") from error
    policy = Plateau(
        scheduler.mode,
        scheduler.factor,
        scheduler.patience,
        scheduler.threshold,
        scheduler.threshold_mode,
        scheduler.cooldown,
        min_factor=_ratio("min_lr / lr", bounds, rates) if any(bounds) else 0.0,
        eps=eps,
    )
    state = {
        "mode": scheduler.mode,
        "best": float(scheduler.best),
        "num_bad_reports": scheduler.num_bad_epochs,
        "cooldown_counter": scheduler.cooldown_counter,
        "lr_factor": 1.0,
    }
    policy.check_state(state)
    return Taken(policy, peaks, state)


#: What a SequentialLR may be made of.
_PARTS: dict[type, Callable[[Any], Taken]] = {
    torch_schedules.ConstantLR: _on_base_lrs(_constant_lr),
    torch_schedules.LinearLR: _on_base_lrs(lambda s: LinearRamp(s.total_iters, s.start_factor, s.end_factor)),
    torch_schedules.StepLR: _on_base_lrs(lambda s: StepDecay(s.step_size, s.gamma)),
    torch_schedules.MultiStepLR: _on_base_lrs(
        lambda s: MultiStepDecay(tuple(sorted(s.milestones.elements())), s.gamma)
    ),
    torch_schedules.ExponentialLR: _on_base_lrs(lambda s: ExponentialDecay(s.gamma)),
    torch_schedules.PolynomialLR: _on_base_lrs(lambda s: PolynomialDecay(s.total_iters, s.power)),
    torch_schedules.LambdaLR: _on_base_lrs(lambda s: LambdaPolicy(_one("lr_lambda", s.lr_lambdas))),
    # It climbs again past T_max, where CosineDecay holds.
    torch_schedules.CosineAnnealingLR: _on_base_lrs(lambda s: CosineWave(s.T_max, _min_factor(s))),
    torch_schedules.CosineAnnealingWarmRestarts: _on_base_lrs(
        lambda s: CosineRestarts(s.T_0, s.T_mult, _min_factor(s))
    ),
    torch_schedules.CyclicLR: _cyclic_lr,
    torch_schedules.OneCycleLR: _one_cycle_lr,
}
_SCHEDULERS: dict[type, Callable[[Any], Taken]] = {
    **_PARTS,
    torch_schedules.SequentialLR: _sequential_lr,
    torch_schedules.ReduceLROnPlateau: _reduce_lr_on_plateau,
}
