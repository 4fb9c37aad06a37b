"""Taking over a run of a torch optimizer and its scheduler, at any step."""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torch_schedules

from .policies.base import Policy
from .policies.compose import LambdaPolicy, Scaled, Sequential, Staircase
from .policies.cyclic import CosineRestarts, CosineWave, ExpRange, Triangular, Triangular2, cycle_of
from .policies.decay import Constant, ExponentialDecay, LinearRamp, MultiStepDecay, PolynomialDecay, StepDecay
from .policies.onecycle import OneCycle
from .policies.plateau import Plateau
from .rules import whole
from .slots import OWN_DECAY, Group, Slot, slots_of
from .torch_private import HOOKS, last_rates, phases_of, scale_function_of, sequence_of, version_of, was_stepped

if TYPE_CHECKING:
    from .scheduled import Scheduled

Cycled = TypeVar("Cycled", bound="Scheduled")


class Taken(NamedTuple):
    """What a scheduler does to one param group: ``lr = peak * lr_factor``."""

    policy: Policy
    peak: float
    state: dict[str, Any] | None = None  # of a policy that listens


def from_torch(
    cls: type[Cycled], optimizer: Optimizer, scheduler: Any, steps_per_epoch: int | None, steps_into_epoch: int
) -> Cycled:
    """See :meth:`cyclic_optim.CyclicSGD.from_torch`."""
    _check_optimizer(cls, optimizer)
    _check_lengths(scheduler, steps_per_epoch, steps_into_epoch)
    make: Callable[..., Cycled] = cls
    arguments = _arguments(cls, optimizer)
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    if scheduler is not None:
        taken, position = _take(scheduler, optimizer, steps_per_epoch)
        taken = _shared([_stretched(one, steps_per_epoch or 1) for one in taken])
        step = position * (steps_per_epoch or 1) + steps_into_epoch
        for group, one in zip(groups, taken, strict=True):
            _hand_over(group, one, step, optimizer.defaults)
        arguments["policy"] = _policy_of_all(taken)
    return _with_state_of(optimizer, make(groups, **arguments))


def _take(scheduler: Any, optimizer: Optimizer, steps_per_epoch: int | None) -> tuple[list[Taken], int]:
    """What the scheduler does to each group, and how many steps it has made; refused unless both are certain."""
    _check_scheduler(scheduler, optimizer)
    try:
        position = _position(scheduler)
        taken = _SCHEDULERS[type(scheduler)](scheduler)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{type(scheduler).__name__} cannot be taken over exactly: {error}") from error
    if steps_per_epoch is None and taken[0].state is None:  # a plateau counts reports, not steps
        _check_stepped_with(optimizer, position)
    _check_current(optimizer, taken, position)
    return taken, position


def _arguments(cls: type[Scheduled], optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's defaults that its class takes as arguments, or passes on to the class below."""
    names: set[str] = set()
    for one in cls.__mro__:
        if "__init__" in vars(one):
            parameters = inspect.signature(one).parameters
            names.update(parameters)
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return {key: value for key, value in optimizer.defaults.items() if key in names}


#: A weight decay that a policy moved may have come with one of our checkpoints; the optimizer's is the present one.
_WRITTEN_BY_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", OWN_DECAY}


def _hand_over(group: Group, taken: Taken, step: int, options: dict[str, Any]) -> None:
    """Write the schedule into a copied group, in place of what schedulers left there."""
    for key in _WRITTEN_BY_SCHEDULERS & group.keys() - options.keys():
        del group[key]
    group.update(policy=taken.policy, max_lr=taken.peak, schedule_step=step)
    if taken.state is not None:
        group["policy_state"] = taken.state


def _shared(taken: list[Taken]) -> list[Taken]:
    """The same with one object for equal policies: it is then evaluated once per step for all of their groups."""
    found: list[Policy] = []
    for one in taken:
        if one.policy not in found:
            found.append(one.policy)
    return [one._replace(policy=found[found.index(one.policy)]) for one in taken]


def _policy_of_all(taken: list[Taken]) -> Policy | None:
    """The policy for groups that are added later: the one that all groups share, else None."""
    first = taken[0].policy
    return first if all(one.policy is first for one in taken) else None


def _with_state_of(optimizer: Optimizer, taking_over: Cycled) -> Cycled:
    """Give the new optimizer the same state: the same tensors, in copies of the dicts that hold them."""
    for key, value in optimizer.state.items():
        taking_over.state[key] = dict(value) if isinstance(value, dict) else value
    return taking_over


# --- checks for all schedulers


def _check_optimizer(cls: type[Scheduled], optimizer: Any) -> None:
    base = cls._base()
    # The classes above the base change nothing but the schedule.
    if type(optimizer) not in cls.__mro__[: cls.__mro__.index(base) + 1]:
        raise TypeError(
            f"need a {_public_name(base)} itself, as another class, a subclass included, may update in another way, "
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


def _public_name(cls: type[Optimizer]) -> str:
    """The name by which users import the class: ``torch.optim.SGD``, not ``torch.optim.sgd.SGD``."""
    is_torchs = getattr(torch.optim, cls.__name__, None) is cls
    return f"{'torch.optim' if is_torchs else cls.__module__}.{cls.__qualname__}"


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
    rates, groups = len(last_rates(scheduler)), len(optimizer.param_groups)
    if rates != groups:
        raise ValueError(f"need a scheduler that knows all param groups, got {groups} groups, {rates} rates of its own")


_REFUSED = {
    torch_schedules.ChainedScheduler: "its parts change each other's results, and no policy does",
    torch_schedules.MultiplicativeLR: "its rate is the product of all factors so far, and a policy's values depend "
    "on the step alone",
}


def _check_stepped_with(optimizer: Optimizer, position: int) -> None:
    """Refuse a scheduler unless the optimizer's state shows that it was stepped after every update."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    made = max((_updates_of(optimizer, param) for param in params), default=0)
    least = max(made, int(position == 0 and was_stepped(optimizer)), _least_updates(optimizer))
    if least > position:
        raise ValueError(
            f"need a scheduler that was stepped after every update, got at least {least} updates and {position} "
            "steps of the scheduler: call from_torch after scheduler.step(), and pass steps_per_epoch if that is "
            "called once per epoch (steps_per_epoch=1 if it is called after every update all the same)"
        )
    if made < position:
        raise ValueError(
            f"need steps_per_epoch where nothing shows how often the scheduler is stepped, got {position} of its "
            f"steps and {made} updates that the optimizer's state shows (SGD's shows none with momentum=0, with "
            "fused=True and from a loaded checkpoint): pass steps_per_epoch=1 if it is called after every update, else "
            "the number of updates in an epoch"
        )


def _updates_of(optimizer: Optimizer, param: torch.Tensor) -> int:
    """The updates that a parameter's state shows; 0 where it shows none.

    Most optimizers count them. SGD does not, but tensors count their in-place writes: the first update creates the
    momentum buffer, and each later one writes to it twice. torch's fused op does not count its writes, and a checkpoint
    does not keep the number.
    """
    state = optimizer.state.get(param, {})
    if _is_sgd(optimizer):
        buffer = state.get("momentum_buffer")
        return 0 if buffer is None else (_writes_to(buffer) + 2) // 2
    count = state.get("step", 0)
    return int(count) if isinstance(count, (int, float, torch.Tensor)) else 0


def _least_updates(optimizer: Optimizer) -> int:
    """A lower bound of the updates that SGD made without momentum: from the writes to the parameters.

    Initialization, and clipping or projecting parameters after an update, are writes, too.
    """
    if not _is_sgd(optimizer):
        return 0
    params = [param for group in optimizer.param_groups for param in group["params"]]
    bare = [param for param in params if optimizer.state.get(param, {}).get("momentum_buffer") is None]
    return max((max(0, _writes_to(param) - 8) // 2 for param in bare), default=0)


def _writes_to(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else version_of(tensor)


def _is_sgd(optimizer: Optimizer) -> bool:
    """Whether its update is that of torch's SGD, whose writes are known."""
    base = getattr(optimizer, "_base", lambda: type(optimizer))
    return base() is SGD


def _check_current(optimizer: Optimizer, taken: list[Taken], position: int) -> None:
    """Refuse current values that are not the scheduler's at its step."""
    slot = slots_of(optimizer.defaults).momentum
    for i, (group, one) in enumerate(zip(optimizer.param_groups, taken, strict=True)):
        lr_factor, momentum, _ = one.policy.at(position) if one.state is None else one.policy.after(one.state, position)
        if not _is_close(group["lr"], one.peak * lr_factor, one.peak):
            raise _edited_error("lr", one.peak * lr_factor, position, f"param_groups[{i}]['lr']", group["lr"])
        if momentum is not None and slot is not None and not _is_close(slot.read(group), momentum, 1.0):
            raise _edited_error(slot.where, momentum, position, f"param_groups[{i}]{_place(slot)}", slot.read(group))


def _is_close(held: Any, expected: float, scale: float) -> bool:
    # Schedulers that compute each rate from the last one accumulate rounding errors, larger ones in short dtypes.
    short = torch.finfo(held.dtype).eps if isinstance(held, torch.Tensor) else 0.0
    tolerance = max(1e-9, 1e3 * short)
    return math.isclose(float(held), expected, rel_tol=tolerance, abs_tol=1e-3 * tolerance * scale)


def _edited_error(name: str, expected: float, position: int, place: str, held: Any) -> ValueError:
    return ValueError(
        f"need {name} as the scheduler has it at its step {position}, {expected!r}, got {place}={float(held)!r}: "
        "edited by hand, or by another scheduler"
    )


def _place(slot: Slot) -> str:
    """``['momentum']`` or ``['betas'][0]``."""
    return f"[{slot.key!r}]{slot.where.removeprefix(slot.key)}"


# --- the position of a scheduler


def _position(scheduler: Any) -> int:
    """How many steps it has made; refused where its other state disagrees."""
    position = scheduler.last_epoch
    if type(position) is not int or position < 0:
        raise ValueError(f"need last_epoch to be an int >= 0, got last_epoch={position!r}")
    if type(scheduler) is torch_schedules.SequentialLR:
        parts, milestones = sequence_of(scheduler)
        index = bisect_right(milestones, position)
        expected = position - (0, *milestones)[index]
        part = parts[index]
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


def _stretched(taken: Taken, length: int) -> Taken:
    """The same with every step of its policy lasting for ``length`` steps."""
    if length == 1 or taken.state is not None:
        return taken
    return taken._replace(policy=_stretched_policy(taken.policy, length))


def _stretched_policy(policy: Policy, length: int) -> Policy:
    if isinstance(policy, Constant):
        return policy
    if isinstance(policy, StepDecay):
        return replace(policy, step_size=policy.step_size * length)
    if isinstance(policy, MultiStepDecay):
        return replace(policy, milestones=tuple(milestone * length for milestone in policy.milestones))
    return Staircase(policy, length)


# --- numbers of all groups


def _ratios(name: str, parts: Sequence[float], wholes: Sequence[float]) -> list[float]:
    """``part / whole`` of each group.

    Ratios that differ only by rounding are made equal, so that their groups share a policy. Where part and whole are
    both 0 any ratio is right; the first group's is taken, for the same reason.
    """
    quotients = [_quotient(part, of) for part, of in zip(parts, wholes, strict=True)]
    known = [quotient for quotient in quotients if quotient is not None]
    if not all(map(math.isfinite, known)):
        raise ValueError(f"need {name} to be finite in all param groups, got {known}")
    return [_first_close(quotient, known) for quotient in quotients]


def _quotient(part: float, of: float) -> float | None:
    if of == 0:
        return None if part == 0 else math.inf
    return part / of


def _first_close(quotient: float | None, known: list[float]) -> float:
    if quotient is None:
        return known[0] if known else 1.0
    return next(one for one in known if math.isclose(one, quotient, rel_tol=1e-12))


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


# --- the schedulers: each becomes a policy and a peak for every group

Converter = Callable[[Any], list[Taken]]


def _by_base_lrs(policy: Callable[[Any], Policy]) -> Converter:
    """For schedulers that multiply the first rate of every group by the same factor."""

    def convert(scheduler: Any) -> list[Taken]:
        one = policy(scheduler)
        return [Taken(one, peak) for peak in _floats(scheduler.base_lrs)]

    return convert


def _by_eta_min(policy: Callable[[Any, float], Policy]) -> Converter:
    """For schedulers that fall to the same absolute rate in every group."""

    def convert(scheduler: Any) -> list[Taken]:
        peaks = _floats(scheduler.base_lrs)
        min_factors = _ratios("eta_min / lr", [float(scheduler.eta_min)] * len(peaks), peaks)
        return [Taken(policy(scheduler, least), peak) for least, peak in zip(min_factors, peaks, strict=True)]

    return convert


def _constant_lr(scheduler: Any) -> Policy:
    if scheduler.total_iters == 0:  # torch never takes the factor back
        return Scaled(Constant(), scheduler.factor)
    if scheduler.factor == 0:
        raise ValueError("need 0 < factor, got factor=0, by which torch divides in the end")
    return Sequential((Scaled(Constant(), scheduler.factor), Constant()), (scheduler.total_iters,))


def _linear_lr(scheduler: Any) -> Policy:
    if scheduler.total_iters == 0:  # torch stays at the start of a ramp of no steps
        return Scaled(Constant(), scheduler.start_factor)
    return LinearRamp(scheduler.total_iters, scheduler.start_factor, scheduler.end_factor)


def _polynomial_lr(scheduler: Any) -> Policy:
    if scheduler.total_iters == 0:  # torch never starts a decay of no steps
        return Constant()
    return PolynomialDecay(scheduler.total_iters, scheduler.power)


def _lambda_lr(scheduler: Any) -> list[Taken]:
    peaks = _floats(scheduler.base_lrs)
    return [Taken(LambdaPolicy(fn), peak) for fn, peak in zip(scheduler.lr_lambdas, peaks, strict=True)]


def _cyclic_lr(scheduler: Any) -> list[Taken]:
    peaks = _floats(scheduler.max_lrs)
    div_factors = _ratios("max_lr / base_lr", peaks, _floats(scheduler.base_lrs))
    momenta: list[dict[str, float]] = [{}] * len(peaks)
    if scheduler.cycle_momentum:
        momenta = _momenta(scheduler.base_momentums, scheduler.max_momentums)
    make = _triangles(scheduler)
    return [
        Taken(make(div_factor=div_factor, **momentum), peak)
        for peak, div_factor, momentum in zip(peaks, div_factors, momenta, strict=True)
    ]


def _triangles(scheduler: Any) -> Callable[..., Policy]:
    """The policy of a CyclicLR; called with the arguments that differ between groups."""
    up = _whole_if_it_is(scheduler.step_ratio * scheduler.total_size)
    down = _whole_if_it_is(scheduler.total_size - up)
    shared = {"step_size_up": up, "step_size_down": down, "cycle_momentum": scheduler.cycle_momentum}
    function = scale_function_of(scheduler)
    if function is not None:
        return partial(Triangular, **shared, scale_fn=function, scale_mode=scheduler.scale_mode)
    if scheduler.mode == "exp_range":
        return partial(ExpRange, **shared, gamma=scheduler.gamma)
    return partial({"triangular": Triangular, "triangular2": Triangular2}[scheduler.mode], **shared)


def _momenta(base_momenta: Sequence[Any], max_momenta: Sequence[Any]) -> list[dict[str, float]]:
    pairs = zip(_floats(base_momenta), _floats(max_momenta), strict=True)
    return [{"base_momentum": base, "max_momentum": top} for base, top in pairs]


def _whole_if_it_is(length: float) -> Any:
    """CyclicLR keeps whole numbers of steps as a sum and a ratio of floats."""
    return round(length) if math.isclose(length, round(length), rel_tol=1e-12) else length


def _one_cycle_lr(scheduler: Any) -> list[Taken]:
    phases, annealing = phases_of(scheduler)
    peaks, first, last = (_in_groups(scheduler, key) for key in ("max_lr", "initial_lr", "min_lr"))
    momenta: list[dict[str, float]] = [{}] * len(peaks)
    if scheduler.cycle_momentum:
        momenta = _momenta(_in_groups(scheduler, "base_momentum"), _in_groups(scheduler, "max_momentum"))
    make: Callable[..., Policy] = partial(
        OneCycle,
        scheduler.total_steps,
        pct_start=(phases[0]["end_step"] + 1) / scheduler.total_steps,
        anneal_strategy=annealing,
        cycle_momentum=scheduler.cycle_momentum,
        three_phase=len(phases) == 3,
    )
    div_factors = _ratios("max_lr / initial_lr", peaks, first)
    final_div_factors = _ratios("initial_lr / min_lr", first, last)
    return [
        Taken(make(div_factor=div_factor, final_div_factor=final_div_factor, **momentum), peak)
        for peak, div_factor, final_div_factor, momentum in zip(
            peaks, div_factors, final_div_factors, momenta, strict=True
        )
    ]


def _in_groups(scheduler: Any, key: str) -> list[float]:
    """A value of each param group, where OneCycleLR stores its arguments."""
    return _floats([group[key] for group in scheduler.optimizer.param_groups])


def _sequential_lr(scheduler: Any) -> list[Taken]:
    schedulers, milestones = sequence_of(scheduler)
    for i, part in enumerate(schedulers):
        if type(part) not in _PARTS:
            raise TypeError(
                f"need parts out of {', '.join(sorted(cls.__name__ for cls in _PARTS))}, got "
                f"schedulers[{i}] of {type(part).__module__}.{type(part).__qualname__}"
            )
    parts = [_part(i, part) for i, part in enumerate(schedulers)]
    peaks = [max(one.peak for one in of_group) for of_group in zip(*parts, strict=True)]
    scaled = [_scaled(i, part, peaks) for i, part in enumerate(parts)]
    return [
        Taken(Sequential(policies, tuple(milestones)), peak)
        for policies, peak in zip(zip(*scaled, strict=True), peaks, strict=True)
    ]


def _part(i: int, scheduler: Any) -> list[Taken]:
    """Part ``i`` of a sequence. torch starts all but the first by their closed form, which differs for no steps."""
    if i == 0 or getattr(scheduler, "total_iters", 1) > 0:
        return _PARTS[type(scheduler)](scheduler)
    if type(scheduler) is not torch_schedules.ConstantLR:
        raise ValueError(
            f"need total_iters > 0 in schedulers[{i}], a later part of a sequence, as torch divides by it there, "
            "got total_iters=0"
        )
    return [Taken(Constant(), peak) for peak in _floats(scheduler.base_lrs)]


def _scaled(i: int, part: list[Taken], peaks: list[float]) -> list[Policy]:
    """Each group's policy for part ``i`` of a sequence, scaled to the highest peak of the group."""
    ratios = _ratios(f"the peak of schedulers[{i}] over the highest one", [one.peak for one in part], peaks)
    return [one.policy if ratio >= 1 else Scaled(one.policy, ratio) for one, ratio in zip(part, ratios, strict=True)]


def _reduce_lr_on_plateau(scheduler: Any) -> list[Taken]:
    # It stores no rate but the last, which becomes the peak.
    peaks, min_lrs = _floats(last_rates(scheduler)), scheduler.min_lrs
    if len(min_lrs) != len(peaks) and scheduler.default_min_lr is not None:
        min_lrs = [scheduler.default_min_lr] * len(peaks)
    # A rate that is already below its bound is never lowered, nor is a rate of 0.
    bounds = [min(float(min_lr), peak) for min_lr, peak in zip(min_lrs, peaks, strict=True)]
    least = [float(scheduler.eps) if peak != 0 else 0.0 for peak in peaks]
    min_factors, eps = _ratios("min_lr / lr", bounds, peaks), _ratios("eps / lr", least, peaks)
    return [
        Taken(_plateau(scheduler, min_factor, least), peak, _reports(scheduler))
        for min_factor, least, peak in zip(min_factors, eps, peaks, strict=True)
    ]


def _plateau(scheduler: Any, min_factor: float, eps: float) -> Plateau:
    policy = Plateau(
        scheduler.mode,
        scheduler.factor,
        scheduler.patience,
        scheduler.threshold,
        scheduler.threshold_mode,
        scheduler.cooldown,
        min_factor=min_factor,
        eps=eps,
    )
    policy.check_state(_reports(scheduler))
    return policy


def _reports(scheduler: Any) -> dict[str, Any]:
    """The state of a Plateau that has had the scheduler's metrics."""
    return {
        "mode": scheduler.mode,
        "best": float(scheduler.best),
        "num_bad_reports": scheduler.num_bad_epochs,
        "cooldown_counter": scheduler.cooldown_counter,
        "lr_factor": 1.0,
    }


#: What a SequentialLR may be made of.
_PARTS: dict[type, Converter] = {
    torch_schedules.ConstantLR: _by_base_lrs(_constant_lr),
    torch_schedules.LinearLR: _by_base_lrs(_linear_lr),
    torch_schedules.StepLR: _by_base_lrs(lambda s: StepDecay(s.step_size, s.gamma)),
    torch_schedules.MultiStepLR: _by_base_lrs(
        lambda s: MultiStepDecay(tuple(sorted(s.milestones.elements())), s.gamma)
    ),
    torch_schedules.ExponentialLR: _by_base_lrs(lambda s: ExponentialDecay(s.gamma)),
    torch_schedules.PolynomialLR: _by_base_lrs(_polynomial_lr),
    torch_schedules.LambdaLR: _lambda_lr,
    # It climbs again past T_max, where CosineDecay holds.
    torch_schedules.CosineAnnealingLR: _by_eta_min(lambda s, min_factor: CosineWave(s.T_max, min_factor)),
    torch_schedules.CosineAnnealingWarmRestarts: _by_eta_min(lambda s, least: CosineRestarts(s.T_0, s.T_mult, least)),
    torch_schedules.CyclicLR: _cyclic_lr,
    torch_schedules.OneCycleLR: _one_cycle_lr,
}
_SCHEDULERS: dict[type, Converter] = {
    **_PARTS,
    torch_schedules.SequentialLR: _sequential_lr,
    torch_schedules.ReduceLROnPlateau: _reduce_lr_on_plateau,
}
