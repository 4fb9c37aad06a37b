"""A run of a torch optimizer and its scheduler, taken over in mid-training, goes on as if nothing had happened.

The oracle is the run that was not switched: torch's own optimizer and scheduler on a copy of the model.
"""

import copy
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch_versions
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from readme import run_snippet
from strategies import LR_FUNCTIONS, flat, problems, sawtooth, slowly, warm_up_20, wave
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim import lr_scheduler as torch_schedules

from cyclic_optim import (
    Constant,
    CosineRestarts,
    CosineWave,
    CyclicSGD,
    LambdaPolicy,
    OneCycle,
    Plateau,
    Scaled,
    Sequential,
    Staircase,
    StepDecay,
    Triangular,
)
from cyclic_optim.wrap import CyclicAdamW
from cyclic_optim.wrap import cyclic as cyclic_class

# --- the schedulers, by name: functions that draw one as a function of the optimizer

lengths = st.integers(1, 12)
fractions = st.floats(0.05, 0.95) | st.sampled_from([0.1, 0.5])
gammas = st.floats(0.3, 1) | st.sampled_from([0.1, 0.5, 1])
ever = 10**9  # the steps that torch defines


def of(cls, **arguments):
    return st.fixed_dictionaries(arguments).map(
        lambda drawn: (lambda optimizer: getattr(torch_schedules, cls)(optimizer, **drawn), ever)
    )


def peaks_of(optimizer, highest):
    """The rates of the groups, so that the highest is ``highest``: they keep their ratios."""
    rates = [float(group["initial_lr"] if "initial_lr" in group else group["lr"]) for group in optimizer.param_groups]
    return [rate / max(rates) * highest for rate in rates]


@st.composite
def cosine_annealing(draw, cls, **lengths_of):
    lengths_of = {name: draw(strategy) for name, strategy in lengths_of.items()}
    share = draw(st.just(0.0) | fractions)

    def build(optimizer):
        # One eta_min for groups of different rates has a different share of each.
        rates = peaks_of(optimizer, 1.0)
        eta_min = share * float(optimizer.param_groups[0]["lr"]) if len(set(rates)) == 1 else 0.0
        return getattr(torch_schedules, cls)(optimizer, eta_min=eta_min, **lengths_of)

    return build, ever


@st.composite
def momenta(draw):
    base, top = sorted(draw(st.tuples(st.floats(0.1, 0.95), st.floats(0.1, 0.95))))
    return {"cycle_momentum": draw(st.booleans()), "base_momentum": base, "max_momentum": top}


@st.composite
def cyclic(draw):
    scale_fn = draw(st.none() | st.sampled_from([slowly, wave]))
    highest, share = draw(st.floats(0.01, 0.5)), draw(fractions)
    arguments = {
        "step_size_up": draw(lengths),
        "step_size_down": draw(st.none() | lengths),
        "mode": draw(st.sampled_from(["triangular", "triangular2", "exp_range"])),
        "gamma": draw(st.floats(0.9, 1)),
        "scale_fn": scale_fn,
        "scale_mode": draw(st.sampled_from(["cycle", "iterations"])),
        **draw(momenta()),
    }

    def build(optimizer):
        peaks = peaks_of(optimizer, highest)
        return torch_schedules.CyclicLR(optimizer, [share * peak for peak in peaks], peaks, **arguments)

    return build, ever


@st.composite
def one_cycle(draw):
    total_steps = draw(st.integers(1, 3) | st.integers(4, 40))
    highest = draw(st.floats(0.01, 0.5))
    # Where torch's climb has no length, it divides by zero.
    climbs = (
        st.sampled_from([0.0, 1.0, 0.3]) | st.floats(0, 0.99 / total_steps) | st.floats(min(1, 1.01 / total_steps), 1)
    )
    arguments = {
        "total_steps": total_steps,
        "pct_start": draw(climbs.filter(lambda share: abs(share * total_steps - 1) > 0.005)),
        "anneal_strategy": draw(st.sampled_from(["cos", "linear"])),
        "three_phase": draw(st.booleans()),
        "div_factor": draw(st.floats(1, 100) | st.floats(0.1, 1)),
        "final_div_factor": draw(st.floats(1, 1e4) | st.floats(0.1, 1)),
        **draw(momenta()),
    }

    def build(optimizer):
        return torch_schedules.OneCycleLR(optimizer, peaks_of(optimizer, highest), **arguments)

    return build, total_steps - 1


SCHEDULERS = {
    "StepLR": of("StepLR", step_size=lengths, gamma=gammas),
    "MultiStepLR": of("MultiStepLR", milestones=st.lists(st.integers(0, 20), max_size=4), gamma=gammas),
    "ExponentialLR": of("ExponentialLR", gamma=gammas),
    "PolynomialLR": of("PolynomialLR", total_iters=lengths | st.just(0), power=st.floats(0.5, 3)),
    "LinearLR": of("LinearLR", total_iters=lengths | st.just(0), start_factor=fractions, end_factor=st.floats(0.05, 1)),
    "ConstantLR": of("ConstantLR", total_iters=lengths | st.just(0), factor=fractions),
    "LambdaLR": of("LambdaLR", lr_lambda=st.sampled_from(LR_FUNCTIONS)),
    "CosineAnnealingLR": cosine_annealing("CosineAnnealingLR", T_max=lengths),
    "CosineAnnealingWarmRestarts": cosine_annealing(
        "CosineAnnealingWarmRestarts", T_0=lengths, T_mult=st.integers(1, 3)
    ),
    "CyclicLR": cyclic(),
    "OneCycleLR": one_cycle(),
}


@st.composite
def sequential(draw, *names):
    names = names or draw(st.lists(st.sampled_from(IN_SEQUENCE), min_size=1, max_size=3))
    parts = [draw((LATER if i > 0 else SCHEDULERS)[name]) for i, name in enumerate(names)]
    milestones = []
    for _, longest in parts[:-1]:
        milestones.append(sum(milestones[-1:]) + draw(st.integers(1, min(longest, 12))))

    def build(optimizer):
        return torch_schedules.SequentialLR(optimizer, [part(optimizer) for part, _ in parts], milestones)

    return build, min(ever, sum(milestones[-1:]) + parts[-1][1])


#: In a later part of a sequence torch divides by these lengths.
LATER = SCHEDULERS | {
    "PolynomialLR": of("PolynomialLR", total_iters=lengths, power=st.floats(0.5, 3)),
    "LinearLR": of("LinearLR", total_iters=lengths, start_factor=fractions, end_factor=st.floats(0.05, 1)),
}


# OneCycleLR overwrites the rates that others start from when it is made, so that torch's own sequence depends on the
# order in which its parts were made: it has a test of its own.
IN_SEQUENCE = [name for name in SCHEDULERS if name != "OneCycleLR"]


# --- two runs side by side


@st.composite
def runs(draw, *, one_rate=False):
    """A problem, and options for each of its groups."""
    problem = draw(problems(max_groups=3))
    nesterov = draw(st.booleans())
    options = {"nesterov": nesterov, "dampening": 0.0 if nesterov else draw(st.sampled_from([0.0, 0.3]))}
    options |= {"maximize": draw(st.booleans()), "foreach": draw(st.sampled_from([None, False, True]))}
    options |= {"momentum": 0.5}
    own = [
        {
            "lr": draw(st.floats(0.01, 0.3)),
            "momentum": draw(st.floats(0.1, 0.95) if nesterov else st.sampled_from([0.0, 0.9])),
            "weight_decay": draw(st.sampled_from([0.0, 0.01])),
        }
        for _ in problem.shapes
    ]
    for group in own if one_rate else []:
        group["lr"] = own[0]["lr"]
    return problem, own, options


class MySGD(SGD):
    def __init__(self, params, **options):
        super().__init__(params, **options)


class Run:
    """A model, a torch optimizer and a scheduler; each iteration as a user writes it."""

    def __init__(self, run, build, base=SGD, ours=CyclicSGD):
        self.ours = ours
        self.problem, own, options = run
        self.params = self.problem.params()
        named = [[(f"{i}.{j}", param) for j, param in enumerate(group)] for i, group in enumerate(self.params)]
        groups = [{"params": group, **its} for group, its in zip(named, own, strict=True)]
        self.optimizer = base(groups, lr=own[0]["lr"], **options)
        self.scheduler = build(self.optimizer)
        self.steps = 0

    def update(self):
        self.problem.set_grads(self.params, self.steps)
        self.optimizer.step()
        self.steps += 1

    def iterate(self, steps_per_epoch=1):
        self.update()
        if self.scheduler is not None and self.steps % steps_per_epoch == 0:
            self.scheduler.step()

    def switch(self, steps_per_epoch=1, **arguments):
        if not isinstance(self.scheduler, (torch_schedules.ReduceLROnPlateau, type(None))):
            arguments["steps_per_epoch"] = steps_per_epoch
        self.optimizer = self.ours.from_torch(self.optimizer, self.scheduler, **arguments)
        self.scheduler = None


def momentum_of(group):
    return group["betas"][0] if "betas" in group else group["momentum"]


def assert_same(ours, theirs, exactly=None):
    """The current values to 1e-10 relative (and the noise of torch's own sums), weights and state to rounding."""
    for mine, torchs in zip(ours.optimizer.param_groups, theirs.optimizer.param_groups, strict=True):
        noise = 1e-13 * mine.get("max_lr", 0.0)
        assert math.isclose(mine["lr"], torchs["lr"], rel_tol=1e-10, abs_tol=noise), (mine, torchs)
        assert math.isclose(momentum_of(mine), momentum_of(torchs), rel_tol=1e-10), (mine, torchs)
    for mine, torchs in zip(flat(ours.params), flat(theirs.params), strict=True):
        tolerance = {"rtol": 1e-9, "atol": 1e-9} if mine.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
        tolerance = exactly or tolerance
        torch.testing.assert_close(mine, torchs, **tolerance)
        states = [run.optimizer.state.get(param, {}) for run, param in ((ours, mine), (theirs, torchs))]
        kept = [{key: value for key, value in state.items() if value is not None} for state in states]
        torch.testing.assert_close(*kept, **tolerance)


def assert_goes_on(run, build, before, after, *classes, exactly=None, **stepping):
    """Iterate, switch one of two runs, and compare from there on."""
    switched, unswitched = Run(run, build, *classes), Run(run, build, *classes)
    for _ in range(before):
        switched.iterate(**stepping)
        unswitched.iterate(**stepping)
    steps_per_epoch = stepping.get("steps_per_epoch", 1)
    if stepping:
        stepping["steps_into_epoch"] = before % steps_per_epoch
    switched.switch(**stepping)
    assert {group["schedule_step"] for group in switched.optimizer.param_groups} == {before}
    assert_same(switched, unswitched, exactly)
    for _ in range(after):
        switched.iterate()
        unswitched.iterate(steps_per_epoch)
        assert_same(switched, unswitched, exactly)
    return switched


@pytest.mark.parametrize("name", SCHEDULERS)
@given(data=st.data())
def test_the_rest_of_the_run_is_the_unswitched_one(name, data):
    """Any schedule, groups and options, switched at any step: rates, momenta and weights go on as without."""
    build, defined = data.draw(SCHEDULERS[name])
    run = data.draw(runs(one_rate=data.draw(st.booleans())))
    before = data.draw(st.integers(0, min(30, defined)), label="before")
    assert_goes_on(run, build, before, min(data.draw(st.integers(0, 30), label="after"), defined - before))


@pytest.mark.parametrize(
    ("scheduler", "policy"),
    [
        (lambda o: torch_schedules.LinearLR(o, 0.25, total_iters=0), Scaled(Constant(), 0.25)),
        (lambda o: torch_schedules.ConstantLR(o, 0.25, total_iters=0), Scaled(Constant(), 0.25)),
        (lambda o: torch_schedules.PolynomialLR(o, 0), Constant()),
        (lambda o: torch_schedules.OneCycleLR(o, 0.1, 1, pct_start=0.25), OneCycle(1, 0.25)),
        (lambda o: torch_schedules.OneCycleLR(o, 0.1, 3), OneCycle(3)),
        (lambda o: torch_schedules.OneCycleLR(o, 0.1, 10, pct_start=0.0), OneCycle(10, 0.0)),
        (lambda o: torch_schedules.OneCycleLR(o, 0.1, 10, pct_start=1.0), OneCycle(10, 1.0)),
        (
            lambda o: torch_schedules.OneCycleLR(o, 0.1, 10, pct_start=0.75, three_phase=True, final_div_factor=0.5),
            OneCycle(10, 0.75, three_phase=True, final_div_factor=0.5),
        ),
        pytest.param(
            lambda o: torch_schedules.SequentialLR(
                o, [torch_schedules.StepLR(o, 1), torch_schedules.StepLR(o, 2), torch_schedules.StepLR(o, 3)], [0, 0]
            ),
            Sequential((StepDecay(1), StepDecay(2), StepDecay(3)), (0, 0)),
            marks=torch_versions.first_part_by_milestone,
        ),
        (
            lambda o: torch_schedules.SequentialLR(
                o, [torch_schedules.StepLR(o, 1), torch_schedules.ConstantLR(o, 0.5, 0)], [1]
            ),
            Sequential((StepDecay(1), Constant()), (1,)),
        ),
    ],
)
def test_lengths_and_shares_at_the_edge_are_taken_over_as_torch_has_them(scheduler, policy):
    """No steps at all, a run of one step, a climb of none or of all: what torch does is said by a policy."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    made = scheduler(optimizer)
    taken = CyclicSGD.from_torch(optimizer, made, steps_per_epoch=1)
    assert taken.policy == policy
    assert taken.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


@given(st.data())
def test_the_rest_of_a_sequence_is_the_unswitched_one(data):
    """The same for SequentialLR, in every part and across every milestone."""
    build, defined = data.draw(sequential())
    run = data.draw(runs(one_rate=True))
    before = data.draw(st.integers(0, min(40, defined)), label="before")
    assert_goes_on(run, build, before, min(data.draw(st.integers(0, 30), label="after"), defined - before))


@given(runs(), st.integers(0, 12), st.integers(0, 12))
def test_one_cycle_after_a_warm_up_of_its_own_rate(run, before, after):
    """OneCycleLR as a part of a SequentialLR, its peak far above the rate of the warm-up."""

    def build(optimizer):
        cycle = torch_schedules.OneCycleLR(optimizer, peaks_of(optimizer, 0.5), total_steps=25)
        warm_up = torch_schedules.ConstantLR(optimizer, 0.5, total_iters=3)
        return torch_schedules.SequentialLR(optimizer, [warm_up, cycle], [4])

    assert_goes_on(run, build, before, after)


@pytest.mark.parametrize("name", SCHEDULERS)
@given(data=st.data())
def test_a_scheduler_stepped_once_per_epoch_becomes_a_staircase(name, data):
    """With ``steps_per_epoch`` the rates change where epochs end, also for a run taken over inside of one."""
    build, defined = data.draw(SCHEDULERS[name])
    run = data.draw(runs(one_rate=True))
    length = data.draw(st.integers(1, 5), label="steps_per_epoch")
    before = data.draw(st.integers(0, min(30, defined * length)), label="before")
    after = min(data.draw(st.integers(0, 20), label="after"), (defined + 1) * length - 1 - before)
    assert_goes_on(run, build, before, after, steps_per_epoch=length)


def one_group(lr=0.1, *, momentum=0.9, dtype=None, **options):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    return SGD([param], lr if dtype is None else torch.tensor(lr, dtype=dtype), momentum, **options)


def two_groups(*rates, momentum=0.9):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    for group in groups:
        group["params"][0].grad = torch.ones(2)
    return SGD(groups, lr=0.1, momentum=momentum)


def after(steps, optimizer, build):
    """The scheduler after so many steps of both."""
    scheduler = build(optimizer)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    return scheduler


def test_steps_of_epochs_stay_plain_where_a_policy_can_say_so():
    """StepLR per epoch is StepDecay in steps; what no policy says so is a Staircase."""
    optimizer = one_group()
    scheduler = after(3, optimizer, lambda optimizer: torch_schedules.StepLR(optimizer, 30))
    assert CyclicSGD.from_torch(optimizer, scheduler, steps_per_epoch=100).policy == StepDecay(3000)
    optimizer = one_group()
    scheduler = after(3, optimizer, lambda optimizer: torch_schedules.CosineAnnealingLR(optimizer, 30))
    taken = CyclicSGD.from_torch(optimizer, scheduler, steps_per_epoch=100, steps_into_epoch=7)
    assert isinstance(taken.policy, Staircase)
    assert taken.param_groups[0]["schedule_step"] == 307


# --- ReduceLROnPlateau

metrics = st.floats(-10, 10) | st.integers(0, 3).map(float) | st.sampled_from([math.nan, math.inf, -math.inf])


@given(
    run=runs(one_rate=True),
    arguments=st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["min", "max"]),
            "factor": st.floats(0.05, 0.95),
            "patience": st.integers(0, 3),
            "threshold": st.floats(0, 0.5),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 3),
            "min_lr": st.sampled_from([0.0, 0.003, 0.02, 1.0]),
            # Irregular, so that a reduction is never exactly eps, where the last bit would decide.
            "eps": st.sampled_from([0.0, 1e-8, math.pi / 1000]),
        }
    ),
    reported=st.lists(metrics, max_size=15),
    rest=st.lists(metrics, max_size=15),
)
def test_reports_after_the_switch_act_as_the_scheduler_would_have(run, arguments, reported, rest):
    """The best metric, bad epochs and cooldown so far count on, whatever is reported next."""
    runs_ = [Run(run, lambda optimizer: torch_schedules.ReduceLROnPlateau(optimizer, **arguments)) for _ in range(2)]
    switched, unswitched = runs_
    for metric in reported:
        for one in runs_:
            one.update()
            one.scheduler.step(metric)
    switched.switch()
    assert_same(switched, unswitched)
    for metric in rest:
        switched.update()
        switched.optimizer.report(metric)
        unswitched.update()
        unswitched.scheduler.step(metric)
        assert_same(switched, unswitched)


@pytest.mark.parametrize("before", range(9))
@pytest.mark.parametrize("arguments", [{"cooldown": 3, "patience": 1}, {"eps": 0.012}, {"min_lr": 0.04}])
def test_a_metric_that_never_improves_lowers_the_rate_as_torch_does(before, arguments):
    """Wherever the switch falls among reductions and cooldowns, the following ones come when torch's do."""
    arguments = {"factor": 0.5, "patience": 0, "cooldown": 0, **arguments}
    optimizers = [one_group(0.1) for _ in range(2)]
    first, second = (torch_schedules.ReduceLROnPlateau(optimizer, **arguments) for optimizer in optimizers)
    for _ in range(before):
        first.step(1.0)
        second.step(1.0)
    taken = CyclicSGD.from_torch(optimizers[0], first)
    for _ in range(12):
        taken.report(1.0)
        second.step(1.0)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in (taken, optimizers[1])]
        assert math.isclose(*rates, rel_tol=1e-10)


@given(st.lists(metrics, max_size=12), st.lists(metrics, max_size=12))
def test_a_plateau_with_bounds_of_their_own_for_groups_of_different_rates(reported, rest):
    """Per-group ``min_lr`` in the ratio of the rates is one policy."""
    optimizers = [two_groups(0.1, 0.3) for _ in range(2)]
    first, second = (
        torch_schedules.ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.004, 0.012], eps=0)
        for optimizer in optimizers
    )
    for metric in reported:
        first.step(metric)
        second.step(metric)
    taken = CyclicSGD.from_torch(optimizers[0], first)
    for metric in [*rest, math.nan, math.nan, math.nan]:
        taken.report(metric)
        second.step(metric)
        for group, torchs in zip(taken.param_groups, optimizers[1].param_groups, strict=True):
            assert math.isclose(group["lr"], torchs["lr"], rel_tol=1e-10)


def test_a_plateau_below_its_bound_stays_where_it_is():
    """A rate that is under ``min_lr`` already is not lifted, as torch does not lift it."""
    optimizer = one_group(0.1)
    taken = CyclicSGD.from_torch(optimizer, torch_schedules.ReduceLROnPlateau(optimizer, patience=0, min_lr=0.5))
    for _ in range(5):
        taken.report(1.0)
    assert taken.param_groups[0]["lr"] == 0.1


# --- what each group has of its own

OPTIMIZERS = {"SGD": (SGD, CyclicSGD), "AdamW": (AdamW, CyclicAdamW), "RMSprop": (RMSprop, cyclic_class(RMSprop))}
# To rounding: a rate of torch's own sums is off by as much, near the foot of a cosine.
EXACTLY = {"rtol": 1e-10, "atol": 1e-12}

rates = st.floats(0.01, 0.3) | st.just(0.0)
unit = st.floats(0.1, 0.95)


@dataclass(frozen=True)
class Inverse:
    """A function with data: equal ones are one schedule."""

    k: float

    def __call__(self, step):
        return 1 / (1 + self.k * step)


class Falling:
    """A callable object that is equal to none but itself."""

    def __call__(self, step):
        return 0.9**step


functions = st.sampled_from([*LR_FUNCTIONS, Falling()]) | st.sampled_from([0.1, 0.2]).map(Inverse)


@st.composite
def runs_of(draw, base):
    """As ``runs``, in float64, for any base: some groups stand still, others share a rate."""
    problem = draw(problems(dtypes=(torch.float64,), max_groups=4))
    shared = draw(st.lists(rates, min_size=1, max_size=2))
    own = []
    for _ in problem.shapes:
        group = {"lr": draw(st.sampled_from(shared) | rates), "weight_decay": draw(st.sampled_from([0.0, 0.01]))}
        own.append(group | ({"betas": (draw(unit), 0.99)} if base is AdamW else {"momentum": draw(unit)}))
    return problem, own, {}


def of_each(draw, strategy, own):
    """One value for all groups, or a list of one for each, out of few, so that some are equal."""
    few = draw(st.lists(strategy, min_size=1, max_size=2))
    return draw(st.just(few[0]) | st.lists(st.sampled_from(few), min_size=len(own), max_size=len(own)))


def momenta_of_each(draw, own):
    if not draw(st.booleans()):
        return {"cycle_momentum": False}
    return {
        "base_momentum": of_each(draw, st.floats(0.1, 0.5), own),
        "max_momentum": of_each(draw, st.floats(0.5, 0.95), own),
    }


def lambdas_of_each(draw, own):
    arguments = {"lr_lambda": of_each(draw, functions, own)}
    return lambda optimizer: torch_schedules.LambdaLR(optimizer, **arguments), ever


def one_eta_min(cls, **lengths_of):
    def drawn(draw, own):
        arguments = {name: draw(strategy) for name, strategy in lengths_of.items()}
        share = draw(unit | st.sampled_from([0.0, 1.0]))

        def build(optimizer):
            # No rate is below eta_min; a CyclicLR that was made before has lowered them.
            lowest = min(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
            return getattr(torch_schedules, cls)(optimizer, eta_min=share * lowest, **arguments)

        return build, ever

    return drawn


def cycles_of_each(draw, own):
    max_lr = [draw(rates) for _ in own]
    arguments = {
        "base_lr": [draw(unit | st.just(1.0)) * highest for highest in max_lr],
        "max_lr": max_lr,
        "step_size_up": draw(lengths),
        "step_size_down": draw(st.none() | lengths),
        "mode": draw(st.sampled_from(["triangular", "triangular2", "exp_range"])),
        "gamma": draw(st.floats(0.9, 1)),
        "scale_fn": draw(st.none() | st.just(slowly)),
        **momenta_of_each(draw, own),
    }
    return lambda optimizer: torch_schedules.CyclicLR(optimizer, **arguments), ever


def one_cycles_of_each(draw, own):
    arguments = {
        "max_lr": of_each(draw, rates, own),
        "total_steps": draw(st.integers(5, 40)),
        "pct_start": 0.3,
        "anneal_strategy": draw(st.sampled_from(["cos", "linear"])),
        "three_phase": draw(st.booleans()),
        "div_factor": draw(st.floats(1, 100)),
        "final_div_factor": draw(st.floats(1, 1e4)),
        **momenta_of_each(draw, own),
    }
    return lambda optimizer: torch_schedules.OneCycleLR(optimizer, **arguments), arguments["total_steps"] - 1


def sequences_of_each(draw, own):
    names = [name for name in OF_EACH if name not in ("OneCycleLR", "SequentialLR")]
    parts = [OF_EACH[name](draw, own) for name in draw(st.lists(st.sampled_from(names), min_size=2, max_size=3))]
    milestones = sorted(draw(st.sets(st.integers(1, 20), min_size=len(parts) - 1, max_size=len(parts) - 1)))
    return lambda optimizer: torch_schedules.SequentialLR(
        optimizer, [part(optimizer) for part, _ in parts], list(milestones)
    ), ever


OF_EACH = {
    "LambdaLR": lambdas_of_each,
    "CosineAnnealingLR": one_eta_min("CosineAnnealingLR", T_max=lengths),
    "CosineAnnealingWarmRestarts": one_eta_min("CosineAnnealingWarmRestarts", T_0=lengths, T_mult=st.integers(1, 3)),
    "CyclicLR": cycles_of_each,
    "OneCycleLR": one_cycles_of_each,
    "SequentialLR": sequences_of_each,
}


@pytest.mark.parametrize("base", OPTIMIZERS)
@pytest.mark.parametrize("name", OF_EACH)
@settings(max_examples=max(10, settings.default.max_examples // 5))  # for each of 18 pairs
@given(data=st.data())
def test_the_rest_of_the_run_is_the_unswitched_one_in_every_group(base, name, data):
    """Arguments of each group, any of three optimizers, per update or per epoch: rates, momenta, weights, state."""
    classes = OPTIMIZERS[base]
    run = data.draw(runs_of(classes[0]))
    build, defined = OF_EACH[name](data.draw, run[1])
    length = data.draw(st.sampled_from([1, 1, 3]), label="steps_per_epoch")
    before = data.draw(st.integers(0, min(30, defined * length)), label="before")
    after = min(data.draw(st.integers(0, 20), label="after"), (defined + 1) * length - 1 - before)
    switched = assert_goes_on(run, build, before, after, *classes, exactly=EXACTLY, steps_per_epoch=length)
    policies = switched.optimizer.policies
    assert all((one is other) == (one == other) for one in policies for other in policies)


@pytest.mark.parametrize("base", OPTIMIZERS)
@given(data=st.data())
def test_reports_after_the_switch_act_on_every_group_as_the_scheduler_would_have(base, data):
    """With a list of ``min_lr`` and an absolute ``eps`` over groups of different rates."""
    run = data.draw(runs_of(OPTIMIZERS[base][0]))
    arguments = {
        "factor": data.draw(st.floats(0.05, 0.95)),
        "patience": data.draw(st.integers(0, 2)),
        "cooldown": data.draw(st.integers(0, 2)),
        "min_lr": of_each(data.draw, st.floats(0, 0.1), run[1]),
        # Irregular, so that a reduction is never exactly eps, where the last bit would decide.
        "eps": data.draw(st.sampled_from([0.0, 1e-8, math.pi / 1000])),
    }
    both = [Run(run, lambda o: torch_schedules.ReduceLROnPlateau(o, **arguments), *OPTIMIZERS[base]) for _ in range(2)]
    switched, unswitched = both
    for metric in data.draw(st.lists(metrics, max_size=12), label="before"):
        for one in both:
            one.update()
            one.scheduler.step(metric)
    switched.switch()
    for metric in data.draw(st.lists(metrics, max_size=12), label="after"):
        switched.update()
        switched.optimizer.report(metric)
        unswitched.update()
        unswitched.scheduler.step(metric)
        assert_same(switched, unswitched, EXACTLY)


OWN = {
    "one eta_min for different rates": (
        lambda o: torch_schedules.CosineAnnealingLR(o, 5, eta_min=0.01),
        [CosineWave(5, 0.01 / 0.1), CosineWave(5, 0.01 / 0.2)],
        [0.1, 0.2],
    ),
    "restarts at different rates": (
        lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 5, 2, eta_min=0.01),
        [CosineRestarts(5, 2, 0.01 / 0.1), CosineRestarts(5, 2, 0.01 / 0.2)],
        [0.1, 0.2],
    ),
    "different base_lr / max_lr": (
        lambda o: torch_schedules.CyclicLR(o, 0.01, [0.1, 0.2], 5),
        [Triangular(5, 5, 0.1 / 0.01), Triangular(5, 5, 0.2 / 0.01)],
        [0.1, 0.2],
    ),
    "different momenta of a cycle": (
        lambda o: torch_schedules.CyclicLR(o, [0.01, 0.02], [0.1, 0.2], 5, max_momentum=[0.9, 0.95]),
        [Triangular(5, 5), Triangular(5, 5, max_momentum=0.95)],
        [0.1, 0.2],
    ),
    "different momenta of one cycle": (
        lambda o: torch_schedules.OneCycleLR(o, [0.1, 0.3], 10, base_momentum=[0.8, 0.85]),
        [OneCycle(10, base_momentum=0.8), OneCycle(10)],
        [0.1, 0.3],
    ),
    "different lambdas": (
        lambda o: torch_schedules.LambdaLR(o, [sawtooth, warm_up_20]),
        [LambdaPolicy(sawtooth), LambdaPolicy(warm_up_20)],
        [0.1, 0.2],
    ),
    "parts of different peaks in every group": (
        lambda o: torch_schedules.SequentialLR(
            o, [torch_schedules.StepLR(o, 2), torch_schedules.CyclicLR(o, [0.025, 0.05], [0.2, 0.1], 5)], [4]
        ),
        [
            Sequential((Scaled(StepDecay(2), 0.5), Triangular(5, 5, 8.0)), (4,)),
            Sequential((StepDecay(2), Scaled(Triangular(5, 5, 2.0), 0.5)), (4,)),
        ],
        [0.2, 0.2],
    ),
    "a plateau's eps for different rates": (
        lambda o: torch_schedules.ReduceLROnPlateau(o, eps=0.01),
        [Plateau(eps=0.01 / 0.1), Plateau(eps=0.01 / 0.2)],
        [0.1, 0.2],
    ),
    "a plateau's min_lr for different rates": (
        lambda o: torch_schedules.ReduceLROnPlateau(o, min_lr=0.01, eps=0),
        [Plateau(min_factor=0.01 / 0.1, eps=0.0), Plateau(min_factor=0.01 / 0.2, eps=0.0)],
        [0.1, 0.2],
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_each_group_gets_the_policy_of_its_own_arguments(case):
    """The policies and peaks are those that the scheduler's arguments of each group say; none is for all groups."""
    build, policies, peaks = OWN[case]
    optimizer = two_groups(0.1, 0.2)
    taken = CyclicSGD.from_torch(optimizer, build(optimizer))
    assert taken.policies == policies
    assert [group["max_lr"] for group in taken.param_groups] == peaks
    assert taken.policy is None


def test_groups_of_equal_schedules_share_one_policy():
    """Ratios that differ by rounding alone are one schedule, and a group that stands still takes another's."""
    for rates in ((0.1, 0.13, 0.45), (0.0, 0.1, 0.13), (0.1, 0.0, 0.0)):
        for build in (
            lambda o: torch_schedules.OneCycleLR(o, [group["lr"] for group in o.param_groups], 20),
            lambda o: torch_schedules.CosineAnnealingLR(o, 7),
            lambda o: torch_schedules.ReduceLROnPlateau(o, min_lr=[g["lr"] * 0.3 for g in o.param_groups], eps=0),
        ):
            optimizer = two_groups(*rates)
            taken = CyclicSGD.from_torch(optimizer, build(optimizer))
            assert {id(policy) for policy in taken.policies} == {id(taken.policy)}
    assert 0.1 / (0.1 / 25) != 0.13 / (0.13 / 25)
    optimizer = two_groups(0.1, 0.0)
    taken = CyclicSGD.from_torch(optimizer, torch_schedules.ReduceLROnPlateau(optimizer, min_lr=0.01))
    assert taken.policy == Plateau(min_factor=0.01 / 0.1, eps=1e-8 / 0.1)
    optimizer = two_groups(0.1, 0.1, 0.2)
    scheduler = torch_schedules.LambdaLR(optimizer, [Inverse(0.1), sawtooth, Inverse(0.1)])
    policies = CyclicSGD.from_torch(optimizer, scheduler).policies
    assert policies[0] is policies[2]
    assert policies[0] != policies[1]


def test_a_group_added_after_the_switch_has_no_policy_where_the_others_differ():
    """Nothing says which of several schedules a later group is to have: its rate stays where it is."""
    optimizer = two_groups(0.1, 0.2)
    taken = CyclicSGD.from_torch(optimizer, torch_schedules.LambdaLR(optimizer, [sawtooth, warm_up_20]))
    taken.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.3})
    taken.step()
    assert taken.param_groups[2]["lr"] == 0.3
    assert taken.policies[2] is None


# --- any optimizer


def of_base(base, **options):
    param = torch.nn.Parameter(torch.ones(3, 2))
    param.grad = torch.ones(3, 2).to_sparse() if base is torch.optim.SparseAdam else torch.ones(3, 2)
    return base([param], lr=0.1, **options)


TORCHS = {
    cls.__name__: cls
    for cls in vars(torch.optim).values()
    if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer
}


@pytest.mark.parametrize("name", TORCHS)
def test_every_optimizer_of_torch_is_taken_over(name):
    """The class with a schedule has the run's defaults and its very state, and goes on to the bit."""
    base = TORCHS[name]
    optimizers = [of_base(base) for _ in range(2)]
    schedulers = [torch_schedules.StepLR(optimizer, 2) for optimizer in optimizers]
    weights = [optimizer.param_groups[0]["params"][0] for optimizer in optimizers]

    def closure(i):
        def loss():
            return (weights[i] * 1.0).sum()

        return loss

    for _ in range(3):
        for i in range(2):
            optimizers[i].step(closure(i))
            schedulers[i].step()
    taken = cyclic_class(base).from_torch(optimizers[0], schedulers[0], steps_per_epoch=1)
    assert taken.defaults == optimizers[0].defaults
    state, old = taken.state[weights[0]], optimizers[0].state[weights[0]]
    assert state.keys() == old.keys()
    assert all(state[key] is old[key] for key in old)
    for _ in range(3):
        taken.step(closure(0))
        optimizers[1].step(closure(1))
        schedulers[1].step()
        assert torch.equal(*weights)
        assert math.isclose(taken.param_groups[0]["lr"], optimizers[1].param_groups[0]["lr"], rel_tol=1e-12)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}, "loaded"], ids=str)
def test_a_counted_update_shows_how_often_the_scheduler_was_stepped(options):
    """AdamW counts its updates, also with ``fused=True`` and in a checkpoint: no steps_per_epoch is needed."""
    optimizer = of_base(AdamW, **({} if options == "loaded" else options))
    scheduler = after(3, optimizer, lambda o: torch_schedules.StepLR(o, 2))
    if options == "loaded":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert CyclicAdamW.from_torch(optimizer, scheduler).param_groups[0]["schedule_step"] == 3
    optimizer.step()
    with pytest.raises(ValueError, match="got at least 4 updates and 3 steps of the scheduler"):
        CyclicAdamW.from_torch(optimizer, scheduler)
    scheduler.step()
    scheduler.step()
    with pytest.raises(
        ValueError, match=r"need steps_per_epoch where nothing shows .* got 5 of its steps and 4 updates"
    ):
        CyclicAdamW.from_torch(optimizer, scheduler)


@torch_versions.muon
def test_where_an_optimizer_counts_no_updates_it_has_to_be_said():
    """Muon writes to its buffers in a way of its own: their writes are not taken for SGD's."""
    optimizer = of_base(torch.optim.Muon)
    scheduler = after(3, optimizer, lambda o: torch_schedules.StepLR(o, 2))
    ours = cyclic_class(torch.optim.Muon)
    with pytest.raises(
        ValueError, match=r"need steps_per_epoch where nothing shows .* got 3 of its steps and 0 updates"
    ):
        ours.from_torch(optimizer, scheduler)
    assert ours.from_torch(optimizer, scheduler, steps_per_epoch=1).policy == StepDecay(2)


@pytest.mark.parametrize(
    ("ours", "build", "message"),
    [
        (CyclicAdamW, SGD, r"need a torch\.optim\.AdamW itself.*got torch\.optim\.sgd\.SGD"),
        (CyclicAdamW, CyclicSGD, r"need a torch\.optim\.AdamW itself.*got cyclic_optim\.sgd\.CyclicSGD"),
        (cyclic_class(Adam), AdamW, r"need a torch\.optim\.Adam itself.*got torch\.optim\.adamw\.AdamW"),
        (cyclic_class(torch.optim.Adafactor), SGD, r"need a torch\.optim\.Adafactor itself"),
        (cyclic_class(MySGD), SGD, r"need a test_from_torch\.MySGD itself.*got torch\.optim\.sgd\.SGD"),
    ],
)
def test_another_optimizer_than_the_base_is_refused(ours, build, message):
    """Its update may be another one, be it a subclass or a superclass of the base, or have another base."""
    with pytest.raises(TypeError, match=message):
        ours.from_torch(of_base(build))


@pytest.mark.parametrize("ours", [MySGD, lambda *arguments, **options: cyclic_class(MySGD)(*arguments, **options)])
def test_a_base_that_passes_its_options_on_is_taken_over_with_them(ours):
    """Options that the constructor takes by ``**options`` are rebuilt from the classes below it."""
    optimizer = of_base(ours, momentum=0.7, weight_decay=0.02)
    taken = cyclic_class(MySGD).from_torch(optimizer, torch_schedules.StepLR(optimizer, 3))
    assert taken.defaults == optimizer.defaults
    assert isinstance(taken, MySGD)


def test_an_edited_beta_is_refused():
    """Where momentum is ``betas[0]`` it is looked at as well, and the message says where."""
    optimizer = of_base(AdamW)
    scheduler = after(3, optimizer, lambda o: torch_schedules.CyclicLR(o, 0.01, 0.1, 10))
    optimizer.param_groups[0]["betas"] = (0.5, 0.999)
    message = (
        r"need betas\[0\] as the scheduler has it at its step 3, 0\.87\d*, got param_groups\[0\]\['betas'\]\[0\]=0\.5"
    )
    with pytest.raises(ValueError, match=message):
        CyclicAdamW.from_torch(optimizer, scheduler)


def test_an_option_that_is_named_like_a_schedulers_key_is_kept():
    """What an optimizer calls ``min_lr`` is not what OneCycleLR left behind."""

    class Bounded(Optimizer):
        def __init__(self, params, lr=0.1, min_lr=0.0):
            super().__init__(params, {"lr": lr, "min_lr": min_lr})

    optimizer = of_base(Bounded)
    optimizer.param_groups[0]["min_lr"] = 0.001
    taken = cyclic_class(Bounded).from_torch(optimizer, torch_schedules.StepLR(optimizer, 3))
    assert taken.param_groups[0]["min_lr"] == 0.001


# --- what is taken over, and what stays


def snapshot(optimizer):
    """Everything about an optimizer, with the identity of every tensor and dict."""
    groups = [(id(group), {key: copy.deepcopy(group[key]) for key in group}) for group in optimizer.param_groups]
    params = [[id(param) for param in group["params"]] for group in optimizer.param_groups]
    state = {
        id(param): (id(kept), {key: (id(value), copy.deepcopy(value)) for key, value in kept.items()})
        for param, kept in optimizer.state.items()
    }
    return repr((groups, params, state, optimizer.defaults, sorted(vars(optimizer))))


@pytest.mark.parametrize("name", SCHEDULERS)
@given(data=st.data())
def test_the_call_leaves_optimizer_and_scheduler_as_they_were(name, data):
    """Groups, state, defaults and the scheduler are untouched, and the new groups are dicts of their own."""
    build, defined = data.draw(SCHEDULERS[name])
    run = Run(data.draw(runs(one_rate=True)), build)
    for _ in range(data.draw(st.integers(0, min(5, defined)))):
        run.iterate()
    optimizer, scheduler = run.optimizer, run.scheduler
    before = snapshot(optimizer), repr(scheduler.state_dict())
    taken = CyclicSGD.from_torch(optimizer, scheduler, steps_per_epoch=1)
    assert (snapshot(optimizer), repr(scheduler.state_dict())) == before
    for mine, torchs in zip(taken.param_groups, optimizer.param_groups, strict=True):
        assert mine is not torchs
        assert mine["params"] is not torchs["params"]
        assert all(one is other for one, other in zip(mine["params"], torchs["params"], strict=True))


@given(runs(), st.integers(0, 3))
def test_groups_options_names_and_buffers_are_taken_over(run, steps):
    """Options of each group, names, defaults and keys of the user's own are those of the run; buffers the very ones."""
    one = Run(run, lambda optimizer: torch_schedules.StepLR(optimizer, 2))
    one.optimizer.param_groups[0]["note"] = "the user's own"
    for _ in range(steps):
        one.iterate()
    torchs = one.optimizer
    taken = CyclicSGD.from_torch(torchs, one.scheduler, steps_per_epoch=1)
    assert taken.defaults == torchs.defaults
    for mine, its, given_options in zip(taken.param_groups, torchs.param_groups, run[1], strict=True):
        assert mine["max_lr"] == given_options["lr"]
        kept = its.keys() - {"params", "initial_lr", "lr"}
        assert {key: mine[key] for key in kept} == {key: its[key] for key in kept}
        assert mine.keys() - its.keys() == {"max_lr", "schedule_step", "policy"}
    assert taken.state.keys() == torchs.state.keys()
    for param, kept in torchs.state.items():
        assert taken.state[param] is not kept
        assert taken.state[param]["momentum_buffer"] is kept["momentum_buffer"]


@given(runs(), st.integers(0, 4), st.integers(0, 4))
def test_without_a_scheduler_it_goes_on_as_sgd(run, before, after):
    """No scheduler, no policy: the rates stay, and the run is SGD's to the bit."""
    switched, unswitched = Run(run, lambda optimizer: None), Run(run, lambda optimizer: None)
    for _ in range(before):
        switched.iterate()
        unswitched.iterate()
    switched.switch()
    assert switched.optimizer.policy is None
    for _ in range(after):
        switched.iterate()
        unswitched.iterate()
    assert all(map(torch.equal, flat(switched.params), flat(unswitched.params)))
    assert switched.optimizer.state_dict()["param_groups"] == unswitched.optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("flags", [{"fused": True}, {"foreach": True}, {"differentiable": True}, {"fused": False}])
def test_implementations_are_taken_over(flags):
    """The flags that choose an implementation hold for the new optimizer too."""
    optimizer = one_group(**flags)
    taken = CyclicSGD.from_torch(optimizer, torch_schedules.StepLR(optimizer, 2))
    assert {key: taken.param_groups[0][key] for key in flags} == flags == {key: taken.defaults[key] for key in flags}


def test_groups_added_after_the_switch_join_with_the_defaults_of_the_run():
    """A group added later has the run's default options and stands where the schedule stands."""
    optimizer = one_group(0.1, momentum=0.7, weight_decay=0.02)
    taken = CyclicSGD.from_torch(optimizer, after(3, optimizer, lambda o: torch_schedules.ExponentialLR(o, 0.5)))
    taken.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    group = taken.param_groups[1]
    assert (group["lr"], group["max_lr"], group["momentum"], group["weight_decay"]) == (0.0125, 0.1, 0.7, 0.02)
    assert group["schedule_step"] == 3


@pytest.mark.parametrize("name", [*SCHEDULERS, "SequentialLR"])
@given(data=st.data())
def test_a_checkpoint_after_the_switch_is_the_run(name, data):
    """A state dict, and a pickle, of the optimizer that took over resume it bit for bit."""
    build, defined = data.draw(sequential() if name == "SequentialLR" else SCHEDULERS[name])
    run = data.draw(runs(one_rate=True))
    one = assert_goes_on(run, build, min(4, defined), min(2, defined - min(4, defined)))
    taken = one.optimizer
    clones = [[torch.nn.Parameter(param.detach().clone()) for param in group] for group in one.params]
    code = [
        {"params": params, "lr": group["max_lr"], "policy": policy}
        for params, group, policy in zip(clones, taken.param_groups, taken.policies, strict=True)
    ]
    twin = CyclicSGD(code)
    twin.load_state_dict(pickle.loads(pickle.dumps(taken.state_dict())))
    twins = [group["params"] for group in twin.param_groups]
    for step in range(100, 103):
        one.problem.set_grads(one.params, step)
        one.problem.set_grads(twins, step)
        taken.step()
        twin.step()
    assert all(map(torch.equal, flat(twins), flat(one.params)))
    assert twin.state_dict()["param_groups"] == taken.state_dict()["param_groups"]


def test_checkpoints_of_an_optimizer_and_its_scheduler_are_taken_over():
    """The page's way: loaded into torch's two and then taken over, a run goes on as with them, to 1e-10 relative."""
    batches, epochs, before = 5, 4, 7

    def made():
        torch.manual_seed(0)
        return torch.nn.Linear(3, 1, dtype=torch.float64)

    def train(model, optimizer, scheduler=None):
        model(torch.ones(2, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()

    theirs = made()
    sgd = SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch_schedules.OneCycleLR(sgd, max_lr=0.1, total_steps=batches * epochs)
    for _ in range(before):
        train(theirs, sgd, scheduler)
    saved = {"model": theirs, "optimizer": sgd, "scheduler": scheduler}
    checkpoint = copy.deepcopy({name: value.state_dict() for name, value in saved.items()})
    ours = made()
    optimizer = run_snippet(
        __file__,
        "test_checkpoints_of_an_optimizer_and_its_scheduler_are_taken_over",
        torch=torch,
        model=ours,
        loader=range(batches),
        epochs=epochs,
        checkpoint=checkpoint,
    )["optimizer"]
    assert optimizer.param_groups[0]["schedule_step"] == before
    for _ in range(batches * epochs - before - 1):
        train(theirs, sgd, scheduler)
        train(ours, optimizer)
        assert math.isclose(optimizer.param_groups[0]["lr"], sgd.param_groups[0]["lr"], rel_tol=1e-10)
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-9, atol=1e-9)


def test_a_policy_of_data_comes_back_from_the_checkpoint_alone():
    """The schedule that was taken over is rebuilt from the checkpoint without a policy in the code."""
    optimizer = two_groups(0.1, 0.2)

    def build(optimizer):
        parts = [torch_schedules.ConstantLR(optimizer, 0.5, 2), torch_schedules.CosineAnnealingLR(optimizer, 5)]
        return torch_schedules.SequentialLR(optimizer, parts, [3])

    taken = CyclicSGD.from_torch(optimizer, after(4, optimizer, build), steps_per_epoch=10)
    twin = CyclicSGD([{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)])
    twin.load_state_dict(taken.state_dict())
    assert twin.policy == taken.policy
    assert twin.state_dict()["param_groups"] == taken.state_dict()["param_groups"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tensor_rate_is_taken_over_as_a_tensor_of_its_own(dtype):
    """A rate kept as a tensor goes on as one of the same dtype, and the old optimizer's is not written to."""
    optimizers = [one_group(0.1, dtype=dtype, foreach=False) for _ in range(2)]
    build = lambda optimizer: torch_schedules.CosineAnnealingLR(optimizer, 8)  # noqa: E731
    schedulers = [after(3, optimizer, build) for optimizer in optimizers]
    taken, old = CyclicSGD.from_torch(optimizers[0], schedulers[0]), optimizers[0].param_groups[0]["lr"]
    value = old.item()
    for _ in range(4):
        taken.step()
        optimizers[1].step()
        schedulers[1].step()
    lr, torchs = (optimizer.param_groups[0]["lr"] for optimizer in (taken, optimizers[1]))
    assert lr.dtype == dtype
    torch.testing.assert_close(lr, torchs, rtol=1e-10 if dtype == torch.float64 else 1e-5, atol=0)
    assert old.item() == value


def test_a_cyclic_sgd_without_a_policy_is_taken_over_like_sgd():
    """A CyclicSGD that an outside scheduler drives moves over to a policy of its own, its updates counted."""
    optimizer = of_base(CyclicSGD, momentum=0.9)
    taken = CyclicSGD.from_torch(optimizer, after(3, optimizer, lambda o: torch_schedules.StepLR(o, 5)))
    assert taken.policy == StepDecay(5)
    assert taken.param_groups[0]["schedule_step"] == 3
    assert optimizer.policy is None


def test_a_resumed_run_is_taken_over():
    """Torch's optimizer and scheduler, both restored from a checkpoint, are taken over where they stood."""
    optimizer = one_group()
    scheduler = after(7, optimizer, lambda o: torch_schedules.CyclicLR(o, 0.01, 0.1, 3, 5))
    resumed = one_group()
    its = torch_schedules.CyclicLR(resumed, 0.01, 0.1, 3, 5)
    its.load_state_dict(scheduler.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    taken = CyclicSGD.from_torch(resumed, its)
    group = taken.param_groups[0]
    assert group["schedule_step"] == 7
    assert (group["lr"], group["momentum"]) == pytest.approx(
        [optimizer.param_groups[0][key] for key in ("lr", "momentum")], rel=1e-12
    )


def test_nothing_warns_of_the_scheduler_that_stayed_behind():
    """The scheduler's marks in the groups and round ``step`` stay with the old optimizer."""
    optimizer = one_group()
    taken = CyclicSGD.from_torch(optimizer, after(2, optimizer, lambda o: torch_schedules.OneCycleLR(o, 0.1, 10)))
    assert not {"initial_lr", "min_lr", "base_momentum", "max_momentum"} & taken.param_groups[0].keys()
    for _ in range(3):
        taken.step()


# --- cosine past T_max, in torch's own words


@pytest.mark.parametrize("steps", [7, 8, 15, 22])
def test_cosine_annealing_climbs_again_past_its_end(steps):
    """CosineAnnealingLR is a wave in torch; taken over before, at or after its end, it goes on as one."""
    optimizers = [one_group(0.1) for _ in range(2)]
    schedulers = [after(steps, o, lambda o: torch_schedules.CosineAnnealingLR(o, 7, eta_min=0.01)) for o in optimizers]
    taken = CyclicSGD.from_torch(optimizers[0], schedulers[0])
    for _ in range(30):
        rates = [optimizer.param_groups[0]["lr"] for optimizer in (taken, optimizers[1])]
        assert math.isclose(*rates, rel_tol=1e-10)
        taken.step()
        optimizers[1].step()
        schedulers[1].step()


# --- what is refused


def edited(key, value, build=lambda optimizer: torch_schedules.ExponentialLR(optimizer, 0.9)):
    optimizer = two_groups(0.1, 0.2)
    scheduler = after(3, optimizer, build)
    optimizer.param_groups[1][key] = value
    return optimizer, scheduler


def built(optimizer, build, steps=0):
    return optimizer, after(steps, optimizer, build)


class MyStepLR(torch_schedules.StepLR):
    def get_lr(self):
        return [group["lr"] * 2 for group in self.optimizer.param_groups]


def stepped_alone(build, updates, **options):
    """An optimizer that has stepped more often than its scheduler."""
    optimizer = one_group(**options)
    scheduler = build(optimizer)
    for _ in range(updates):
        optimizer.step()
    scheduler.step()
    return optimizer, scheduler


def with_group_added():
    optimizer = one_group()
    scheduler = torch_schedules.StepLR(optimizer, 3)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    return optimizer, scheduler


def fractional_restarts():
    optimizer = one_group()
    scheduler = torch_schedules.CosineAnnealingWarmRestarts(optimizer, 5)
    optimizer.step()
    scheduler.step(1.25)
    return optimizer, scheduler


def part_stepped_on_its_own():
    optimizer = one_group()
    parts = [torch_schedules.LambdaLR(optimizer, warm_up_20), torch_schedules.StepLR(optimizer, 3)]
    scheduler = torch_schedules.SequentialLR(optimizer, parts, [5])
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    parts[0].step()
    return optimizer, scheduler


REFUSED = {
    "another optimizer class": (
        lambda: (torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]), None),
        TypeError,
        r"need a torch\.optim\.SGD itself.*got torch\.optim\.adamw\.AdamW",
    ),
    "a subclass of SGD": (
        lambda: (MySGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), None),
        TypeError,
        r"a subclass included.*MySGD",
    ),
    "a policy already": (
        lambda: (CyclicSGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, policy=Constant()), None),
        ValueError,
        r"without a policy of its own, got policy=Constant\(\)",
    ),
    "ChainedScheduler": (
        lambda: built(one_group(), lambda o: torch_schedules.ChainedScheduler([torch_schedules.StepLR(o, 3)])),
        TypeError,
        "got torch.optim.lr_scheduler.ChainedScheduler: its parts change each other's results",
    ),
    "MultiplicativeLR": (
        lambda: built(one_group(), lambda o: torch_schedules.MultiplicativeLR(o, lambda epoch: 0.9)),
        TypeError,
        "MultiplicativeLR: its rate is the product of all factors so far",
    ),
    "a subclass of a scheduler": (
        lambda: built(one_group(), lambda o: MyStepLR(o, 3)),
        TypeError,
        "MyStepLR: what it does is not known",
    ),
    "no scheduler at all": (lambda: (one_group(), "StepLR"), TypeError, r"got builtins\.str"),
    "a subclass inside a sequence": (
        lambda: built(one_group(), lambda o: torch_schedules.SequentialLR(o, [MyStepLR(o, 3)], [])),
        TypeError,
        r"SequentialLR cannot be taken over exactly: need parts out of .*got schedulers\[0\] of .*MyStepLR",
    ),
    "a later part of no steps": (
        lambda: built(
            one_group(),
            lambda o: torch_schedules.SequentialLR(
                o, [torch_schedules.StepLR(o, 3), torch_schedules.LinearLR(o, total_iters=0)], [2]
            ),
        ),
        ValueError,
        r"need total_iters > 0 in schedulers\[1\], a later part of a sequence",
    ),
    "another optimizer's scheduler": (
        lambda: (one_group(), torch_schedules.StepLR(one_group(), 3)),
        ValueError,
        "need the scheduler of this optimizer, got a StepLR that belongs to another one",
    ),
    "a group added later": (with_group_added, ValueError, "got 2 groups, 1 rates"),
    "an edited rate": (
        lambda: edited("lr", 0.15),
        ValueError,
        r"need lr as the scheduler has it at its step 3, 0\.1458\d*, got param_groups\[1\]\['lr'\]=0\.15: edited",
    ),
    "a rate edited a little": (lambda: edited("lr", 0.2 * 0.9**3 * (1 + 1e-8)), ValueError, "edited by hand"),
    "an edited momentum": (
        lambda: edited("momentum", 0.5, lambda o: torch_schedules.CyclicLR(o, [0.01, 0.02], [0.1, 0.2], 10)),
        ValueError,
        r"need momentum as the scheduler has it at its step 3, 0\.87\d*, got param_groups\[1\]\['momentum'\]=0\.5",
    ),
    "an edited rate beside a plateau": (
        lambda: (lambda o, s: (o.param_groups[0].update(lr=0.05), (o, s))[1])(
            *built(one_group(), torch_schedules.ReduceLROnPlateau)
        ),
        ValueError,
        r"0\.1, got param_groups\[0\]\['lr'\]=0\.05",
    ),
    "an edit that the scheduler went on from": (
        lambda: (lambda o, s: (o.param_groups[0].update(lr=0.05), o.step(), s.step(), (o, s))[3])(
            *built(one_group(), lambda o: torch_schedules.ExponentialLR(o, 0.9), 2)
        ),
        ValueError,
        "edited by hand, or by another scheduler",
    ),
    "a second scheduler": (
        lambda: (lambda o, s: (torch_schedules.ConstantLR(o, 0.5), (o, s))[1])(
            *built(one_group(), lambda o: torch_schedules.ExponentialLR(o, 0.9))
        ),
        ValueError,
        "edited by hand, or by another scheduler",
    ),
    "an eta_min above the rate of 0 of one group": (
        lambda: built(two_groups(0.1, 0.0), lambda o: torch_schedules.CosineAnnealingLR(o, 5, eta_min=0.01)),
        ValueError,
        r"need eta_min / lr to be finite in all param groups, got \[0\.0999\d*, inf\]",
    ),
    "an eta_min above the rate of one group": (
        lambda: built(two_groups(0.1, 0.01), lambda o: torch_schedules.CosineAnnealingLR(o, 5, eta_min=0.02)),
        ValueError,
        r"CosineAnnealingLR cannot be taken over exactly: need 0 <= min_factor <= 1, got min_factor=2\.0",
    ),
    "a base_lr of 0": (
        lambda: built(one_group(), lambda o: torch_schedules.CyclicLR(o, 0.0, 0.1, 5)),
        ValueError,
        r"need max_lr / base_lr to be finite.*got \[inf\]",
    ),
    "a base_lr above max_lr": (
        lambda: built(one_group(), lambda o: torch_schedules.CyclicLR(o, 0.2, 0.1, 5)),
        ValueError,
        r"CyclicLR cannot be taken over exactly: need 1 <= div_factor, got div_factor=0\.5",
    ),
    "half a step up": (
        lambda: built(one_group(), lambda o: torch_schedules.CyclicLR(o, 0.01, 0.1, 2.5)),
        TypeError,
        r"need step_size_up to be an int.*got step_size_up=2\.5",
    ),
    "growing": (
        lambda: built(one_group(), lambda o: torch_schedules.ExponentialLR(o, 1.1)),
        ValueError,
        r"ExponentialLR cannot be taken over exactly: need 0 < gamma <= 1, got gamma=1\.1",
    ),
    "a factor of 0": (
        lambda: built(one_group(), lambda o: torch_schedules.ConstantLR(o, 0.0)),
        ValueError,
        "need 0 < factor, got factor=0",
    ),
    "a cycle that is over": (
        lambda: built(one_group(), lambda o: torch_schedules.OneCycleLR(o, 0.1, 10), 10),
        ValueError,
        "need a cycle that is not over, got 10 steps of total_steps=10",
    ),
    "restarts stepped by fractions of an epoch": (
        fractional_restarts,
        ValueError,
        r"need T_cur=1, T_i=5 after 1 whole steps, got T_cur=1\.25, T_i=5",
    ),
    "a part stepped on its own": (
        part_stepped_on_its_own,
        ValueError,
        r"need schedulers\[0\] at its step 2, got last_epoch=3",
    ),
    "hooks": (
        lambda: (lambda o: (o.register_step_pre_hook(lambda *_: None), (o, None))[1])(one_group()),
        ValueError,
        "need an optimizer without hooks, which would stay behind, got 1 in _optimizer_step_pre_hooks",
    ),
    "an epoch's steps before the scheduler's first": (
        lambda: (lambda o, s: (o.step(), (o, s))[1])(*built(one_group(), lambda o: torch_schedules.StepLR(o, 3))),
        ValueError,
        r"got at least 1 updates and 0 steps of the scheduler: .*pass steps_per_epoch",
    ),
    "an epoch's steps": (
        lambda: stepped_alone(lambda o: torch_schedules.StepLR(o, 3), 5),
        ValueError,
        "got at least 5 updates and 1 steps of the scheduler",
    ),
    "an epoch's steps without momentum": (
        lambda: stepped_alone(lambda o: torch_schedules.CosineAnnealingLR(o, 3), 50, momentum=0),
        ValueError,
        "got at least 21 updates and 1 steps of the scheduler",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_over_is_refused_with_the_reason(case):
    """Each is a ValueError or TypeError that says why and shows the values, and changes nothing."""
    build, error, message = REFUSED[case]
    optimizer, scheduler = build()
    before = snapshot(optimizer)
    with pytest.raises(error, match=message) as raised:
        CyclicSGD.from_torch(optimizer, scheduler)
    assert type(raised.value) is error
    assert snapshot(optimizer) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps_per_epoch": 0}, ValueError, "1 <= steps_per_epoch, got steps_per_epoch=0"),
        ({"steps_per_epoch": 10.0}, TypeError, r"need steps_per_epoch to be an int.*got steps_per_epoch=10\.0"),
        ({"steps_per_epoch": True}, TypeError, "got steps_per_epoch=True"),
        ({"steps_per_epoch": 10, "steps_into_epoch": 10}, ValueError, "steps_into_epoch=10, steps_per_epoch=10"),
        ({"steps_per_epoch": 10, "steps_into_epoch": -1}, ValueError, "0 <= steps_into_epoch, got steps_into_epoch=-1"),
        ({"steps_into_epoch": 3}, ValueError, "need steps_per_epoch beside steps_into_epoch, got steps_into_epoch=3"),
    ],
)
def test_lengths_of_epochs_that_cannot_be_are_refused(arguments, error, message):
    """A length of an epoch that is none, or a place outside of it, is refused by name and value."""
    optimizer = one_group()
    with pytest.raises(error, match=message):
        CyclicSGD.from_torch(optimizer, torch_schedules.StepLR(optimizer, 3), **arguments)


def test_an_epoch_without_a_scheduler_is_refused():
    """There is nothing to be stepped once per epoch."""
    with pytest.raises(ValueError, match=r"need a scheduler .* beside steps_per_epoch, got scheduler=None"):
        CyclicSGD.from_torch(one_group(), steps_per_epoch=10)


@given(st.integers(2, 6), st.integers(1, 6), st.booleans())
@example(2, 2, False)
def test_a_scheduler_stepped_once_per_epoch_is_recognised(length, epochs, foreach):
    """Where momentum buffers count their writes, an epoch's steps are noticed, unless told of."""
    assume(length * epochs > epochs)
    optimizer = one_group(foreach=foreach)
    scheduler = torch_schedules.ExponentialLR(optimizer, 0.9)
    for _ in range(epochs):
        for _ in range(length):
            optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match=f"got at least {length * epochs} updates and {epochs} steps"):
        CyclicSGD.from_torch(optimizer, scheduler)
    CyclicSGD.from_torch(optimizer, scheduler, steps_per_epoch=length)


@pytest.mark.parametrize("foreach", [None, False, True])
def test_a_scheduler_stepped_after_every_update_is_recognised(foreach):
    """Where the buffers tell of as many updates as the scheduler of steps, nothing needs to be said."""
    for steps in range(4):
        optimizer = one_group(foreach=foreach)
        scheduler = after(steps, optimizer, lambda o: torch_schedules.ExponentialLR(o, 0.9))
        assert CyclicSGD.from_torch(optimizer, scheduler).param_groups[0]["schedule_step"] == steps


@pytest.mark.parametrize("options", [{"fused": True}, {"momentum": 0.0}, "loaded"], ids=str)
def test_where_nothing_tells_it_has_to_be_said(options):
    """The fused op, no momentum and a loaded checkpoint leave no trace of updates: no guess is made."""
    optimizer = one_group(**({} if options == "loaded" else options))
    scheduler = after(3, optimizer, lambda o: torch_schedules.StepLR(o, 2))
    if options == "loaded":
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(ValueError, match=r"need steps_per_epoch where nothing shows .* got 3 of its steps"):
        CyclicSGD.from_torch(optimizer, scheduler)
    assert CyclicSGD.from_torch(optimizer, scheduler, steps_per_epoch=1).policy == StepDecay(2)
    assert CyclicSGD.from_torch(optimizer, scheduler, steps_per_epoch=10).policy == StepDecay(20)


def test_writes_to_a_parameter_prove_nothing():
    """Without momentum, an epoch's steps may look like as many updates as the scheduler has made steps: no guess."""
    optimizer = one_group(momentum=0.0)
    scheduler = after(21, optimizer, lambda o: torch_schedules.StepLR(o, 2))
    with torch.no_grad():
        while optimizer.param_groups[0]["params"][0]._version < 8 + 2 * 21:
            optimizer.param_groups[0]["params"][0].add_(1.0)
    with pytest.raises(ValueError, match="need steps_per_epoch where nothing shows"):
        CyclicSGD.from_torch(optimizer, scheduler)


def test_a_second_schedule_of_a_run_is_taken_over_when_told():
    """Buffers that are older than the scheduler look like an epoch's steps; ``steps_per_epoch=1`` says they are not."""
    optimizer = one_group()
    for _ in range(20):
        optimizer.step()
    scheduler = after(3, optimizer, lambda o: torch_schedules.StepLR(o, 2))
    with pytest.raises(ValueError, match="got at least 23 updates and 3 steps"):
        CyclicSGD.from_torch(optimizer, scheduler)
    taken = CyclicSGD.from_torch(optimizer, scheduler, steps_per_epoch=1)
    assert (taken.policy, taken.param_groups[0]["schedule_step"]) == (StepDecay(2), 3)


def test_a_subclass_makes_one_of_itself():
    """``from_torch`` of a subclass of CyclicSGD returns that subclass."""

    class Mine(CyclicSGD):
        pass

    optimizer = one_group()
    assert type(Mine.from_torch(optimizer, torch_schedules.StepLR(optimizer, 3))) is Mine


def test_parts_of_different_peaks_are_scaled():
    """A sequence whose parts climb to different rates keeps the highest as the peak."""
    optimizer = one_group(0.1)

    def build(optimizer):
        cycle = torch_schedules.CyclicLR(optimizer, 0.05, 0.4, 3)
        return torch_schedules.SequentialLR(optimizer, [torch_schedules.StepLR(optimizer, 2), cycle], [4])

    taken = CyclicSGD.from_torch(optimizer, build(optimizer))
    assert taken.param_groups[0]["max_lr"] == 0.4
    assert isinstance(taken.policy, Sequential)
    assert isinstance(taken.policy.policies[0], Scaled)


def test_a_plateau_may_be_stepped_once_per_epoch_without_saying_so():
    """Reports are counted, not steps: nothing about epochs needs to be told."""
    optimizer = one_group()
    scheduler = torch_schedules.ReduceLROnPlateau(optimizer)
    for _ in range(30):
        optimizer.step()
    scheduler.step(1.0)
    for arguments in ({}, {"steps_per_epoch": 30}):
        assert type(CyclicSGD.from_torch(optimizer, scheduler, **arguments).policy) is Plateau
