"""Policies made of others: what each does to its parts, and a plateau among them, with its reports and its memory."""

import io
import math
from dataclasses import dataclass

import pytest
import torch
from helpers import lr_factors
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import COMPOSITES, POLICY_STRATEGIES, lengths, policies, steps, units

from cyclic_optim import (
    Combined,
    Constant,
    CosineDecay,
    CosineRestarts,
    CyclicSGD,
    ExponentialDecay,
    ExponentialRamp,
    LinearDecay,
    LinearRamp,
    MultiStepDecay,
    Plateau,
    Policy,
    PolynomialDecay,
    Product,
    Scaled,
    Sequential,
    Staircase,
    StepDecay,
    Values,
    Warmup,
    WarmupStableDecay,
)
from cyclic_optim.policies import describe, rebuild
from cyclic_optim.policies.base import steady_from

WARM = Warmup(Plateau(factor=0.5, patience=0), 4)


# --- warm-up


@given(lengths() | st.just(0), units(), policies(), steps())
def test_a_warm_up_is_a_ramp_to_the_peak_and_then_the_policy(total_iters, start, policy, step):
    """The rate is that of Sequential of LinearRamp and the policy, wherever the policy starts."""
    sequence = Sequential([LinearRamp(total_iters, start), policy], [total_iters])
    assert Warmup(policy, total_iters, start).at(step).lr_factor == sequence.at(step).lr_factor


@given(policies(), steps())
def test_a_warm_up_of_no_steps_is_none(policy, step):
    """With total_iters=0 it is the policy, overlay or not, its period and its end included."""
    for overlay in (False, True):
        warmup = Warmup(policy, 0, 0.5, overlay)
        assert warmup.at(step) == policy.at(step)
        assert (warmup.period, warmup.end) == (policy.period, steady_from(policy))


def test_a_warm_up_to_less_than_the_peak():
    """Scaled round the warm-up lowers both the ramp and the policy."""
    policy = Scaled(Warmup(Constant(), 4), 0.25)
    assert lr_factors(policy, 6) == [0, 0.0625, 0.125, 0.1875, 0.25, 0.25]


@pytest.mark.parametrize("start", [0.0, 0.001, 0.1])
def test_an_overlaid_warm_up_is_the_detection_librarys_cosine(start):
    """lr * (s + (1-s) * min(k, w)/w) * (1 + cos(pi k/T))/2, at every step."""
    total, warm = 90, 30
    policy = Warmup(CosineDecay(total), warm, start, overlay=True)
    for k in range(total):
        ramp = start + (1 - start) * min(k, warm) / warm
        assert policy.at(k).lr_factor == pytest.approx(ramp * (1 + math.cos(math.pi * k / total)) / 2, rel=1e-12)


def test_the_ramp_carries_momentum_where_it_is_told():
    """Momentum rises from start_momentum to the policy's in the warm-up; without it, it is the policy's at once."""
    policy = Combined(Constant(), momentum=Scaled(Constant(), 0.9))
    told = Warmup(policy, 4, start_momentum=0.5)
    assert [told.at(step).momentum for step in range(6)] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    assert [Warmup(policy, 4).at(step).momentum for step in range(6)] == [0.9] * 6
    falling = Warmup(Combined(Constant(), momentum=LinearRamp(8, 0.8, 0.4)), 4, overlay=True, start_momentum=0.2)
    assert [falling.at(step).momentum for step in (0, 2, 4, 8)] == pytest.approx([0.2, 0.45, 0.6, 0.4])


# --- sequences


@given(st.lists(policies(), min_size=1, max_size=4), st.data())
def test_without_restart_every_part_counts_all_steps(parts, data):
    """With restart=False the rate is that of the part in force at the step of the whole."""
    cuts = data.draw(st.lists(st.integers(0, 60), min_size=len(parts) - 1, max_size=len(parts) - 1).map(sorted))
    step = data.draw(st.integers(0, 100))
    sequence = Sequential(parts, cuts, restart=False)
    index = sum(cut <= step for cut in cuts)
    assert sequence.at(step).lr_factor == parts[index].at(step).lr_factor


def test_without_restart_it_is_the_image_model_librarys_default():
    """A ramp of w epochs, then the cosine as if it had run all along."""
    policy = Sequential([LinearRamp(5, 0.01), CosineDecay(20)], [5], restart=False)
    for step in range(25):
        cosine = (1 + math.cos(math.pi * min(step, 20) / 20)) / 2
        expected = 0.01 + 0.99 * step / 5 if step < 5 else cosine
        assert policy.at(step).lr_factor == pytest.approx(expected, rel=1e-12, abs=1e-16)
    assert policy.end == 20
    assert Sequential([LinearRamp(5), CosineDecay(20)], [30], restart=False).end == 30


@given(policies(), policies(), policies(), st.integers(0, 20), st.booleans(), steps())
def test_a_part_of_no_steps_is_passed_over(first, skipped, last, cut, restart, step):
    """Equal milestones leave a part no steps, and a milestone of 0 the first: rate and momentum are as without it."""
    assert Sequential([first, skipped, last], [cut, cut], restart).at(step) == Sequential(
        [first, last], [cut], restart
    ).at(step)
    assert Sequential([skipped, first], [0], restart).at(step) == first.at(step)


def test_a_sequence_keeps_the_last_weight_decay_too():
    """A part that does not change weight decay goes on with the last one before it."""
    policy = Sequential([Combined(Constant(), weight_decay=LinearRamp(4, 0, 1)), Constant()], [4])
    assert [policy.at(step).weight_decay_factor for step in range(6)] == [0, 0.25, 0.5, 0.75, 0.75, 0.75]


# --- products


@given(st.lists(policies(without=COMPOSITES), min_size=1, max_size=3), steps())
def test_a_product_multiplies_the_factors(parts, step):
    """The factors multiplied in turn; momentum that of the first part that has one."""
    values = [part.at(step) for part in parts]
    momenta = [one.momentum for one in values if one.momentum is not None]
    product = Product(parts).at(step)
    assert product.lr_factor == math.prod(one.lr_factor for one in values)
    assert product.momentum == (momenta[0] if momenta else None)


def test_a_product_multiplies_the_factors_of_weight_decay_too():
    """Those that are set are multiplied; where none is, weight decay is left alone."""
    half, ramp = (
        Combined(Constant(), weight_decay=Scaled(Constant(), 0.5)),
        Combined(Constant(), None, LinearRamp(4, 0)),
    )
    assert [Product([half, Constant(), ramp]).at(step).weight_decay_factor for step in (0, 2, 4)] == [0, 0.25, 0.5]
    assert Product([Constant(), Constant()]).at(0).weight_decay_factor is None


def test_a_product_is_torchs_chained_scheduler():
    """ConstantLR and ExponentialLR chained have the product of their factors."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedules = torch.optim.lr_scheduler
    chained = schedules.ChainedScheduler(
        [schedules.ConstantLR(optimizer, 0.1, 5), schedules.ExponentialLR(optimizer, 0.9)]
    )
    policy = Product([Sequential([Scaled(Constant(), 0.1), Constant()], [5]), ExponentialDecay(0.9)])
    for step in range(12):
        assert policy.at(step).lr_factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        chained.step()


@given(st.lists(policies("Triangular", "CosineWave", "Constant"), min_size=1, max_size=3), st.integers(0, 300))
def test_what_acts_together_repeats_and_ends_together(parts, step):
    """The period of a product is one of all its parts, its end the last of theirs; where one has none, it has none."""
    product, combined = Product(parts), Combined(parts[0], weight_decay=Product(parts))
    assert (product.period, product.end) == (combined.period, combined.end)
    assert (product.period is None) == any(part.period is None for part in parts)
    if product.period is not None:
        assert product.at(step + product.period) == product.at(step)
    assert Product([CosineDecay(5), LinearRamp(9), MultiStepDecay([3])]).end == 9
    assert Product([CosineDecay(5), ExponentialDecay(0.5)]).end is None


# --- each hyperparameter by a policy of its own


@given(policies(), policies(without=("OneCycle",)), policies(), steps())
def test_each_hyperparameter_has_its_own_policy(lr, momentum, weight_decay, step):
    """The factors of three policies; where there is none for momentum or weight decay, what ``lr`` says of it."""
    values = lr.at(step)
    combined = Combined(lr, momentum, weight_decay).at(step)
    assert combined == Values(values.lr_factor, momentum.at(step).lr_factor, weight_decay.at(step).lr_factor)
    assert Combined(lr).at(step) == values
    assert Combined(lr, weight_decay=weight_decay).at(step).momentum == values.momentum


class Pair(Policy):
    """A user's policy that answers with two values in a plain tuple."""

    def at(self, step):
        return 0.5, 0.25


@pytest.mark.parametrize(
    "composite",
    [
        Sequential([Constant(), Pair()], [0]),
        Sequential([Pair(), Constant()], [9]),
        Warmup(Pair(), 0),
        Product([Pair(), Constant()]),
        Combined(Pair()),
        Staircase(Pair(), 2),
        Scaled(Pair(), 1),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_a_part_of_the_users_may_answer_with_two_values(composite):
    """A pair of values is a part's valid answer, whatever is made of it."""
    assert composite.at(3) == Values(0.5, 0.25, None)


# --- decays with a name


@given(POLICY_STRATEGIES["LinearDecay"], steps())
def test_a_linear_decay_is_a_trapezoid_without_a_top(policy, step):
    """LinearDecay is WarmupStableDecay without the stable part; without a warm-up it is a straight line from 1."""
    decay = policy.total_steps - policy.warmup
    assert policy.at(step) == WarmupStableDecay(
        policy.total_steps, policy.warmup, decay, "linear", policy.min_factor
    ).at(step)
    if policy.warmup == 0 and policy.min_factor == 0:
        expected = PolynomialDecay(policy.total_steps).at(step).lr_factor
        assert policy.at(step).lr_factor == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_1_sqrt_cool_down():
    """WarmupStableDecay with shape="sqrt" falls by 1 - sqrt of the done fraction of the cool-down."""
    policy = WarmupStableDecay(100, 10, 20, "sqrt")
    for step in range(80, 101):
        assert policy.at(step).lr_factor == pytest.approx(1 - math.sqrt((step - 80) / 20), rel=1e-12, abs=1e-16)


@given(st.integers(1, 30), st.sampled_from([1, 2]), st.floats(0.1, 1), units(), st.integers(0, 4))
def test_restarts_lose_height_by_gamma(t_0, t_mult, gamma, min_factor, number):
    """The peak of cycle k is gamma**k, and never below min_factor, where the cosine ends."""
    policy = CosineRestarts(t_0, t_mult, min_factor, gamma)
    start = sum(t_0 * t_mult**k for k in range(number))
    assert policy.at(start).lr_factor == pytest.approx(max(gamma**number, min_factor), rel=1e-12)
    assert all(policy.at(step).lr_factor >= min_factor for step in range(start, start + 20))


# --- lengths of 0


@pytest.mark.parametrize(
    ("policy", "value"),
    [
        (LinearRamp(0, 0.25, 0.5), 0.5),
        (ExponentialRamp(0, 0.25, 0.5), 0.5),
        (CosineDecay(0, 0.125), 0.125),
        (PolynomialDecay(0), 0.0),
        (LinearDecay(0, 0, 0.125), 0.125),
        (WarmupStableDecay(0, 0, 0, "sqrt", 0.125), 0.125),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_policy_of_no_steps_has_ended(policy, value):
    """A ramp or decay of 0 steps has the value after its end, from step 0 on."""
    assert lr_factors(policy, 3) == [value] * 3
    assert policy.end == 0


def test_a_step_decay_of_one_step_is_exponential():
    """A drop at every step is gamma**step."""
    assert lr_factors(StepDecay(1, 0.5), 4) == lr_factors(ExponentialDecay(0.5), 4) == [1, 0.5, 0.25, 0.125]


# --- a plateau as a part

#: A composite with a plateau at its step 4, the policy before any report, and the factor of a reduction in it.
PLATEAUS = {
    "Sequential": Sequential([LinearRamp(4), Plateau(factor=0.5, patience=0)], [4]),
    "the first of a Sequential": Sequential([Plateau(factor=0.5, patience=0), Constant()], [100]),
    "Warmup": WARM,
    "Warmup overlaid": Warmup(Plateau(factor=0.5, patience=0), 4, overlay=True),
    "Scaled": Scaled(Plateau(factor=0.5, patience=0), 0.5),
    "Product": Product([StepDecay(3), Plateau(factor=0.5, patience=0)]),
    "Staircase": Staircase(Plateau(factor=0.5, patience=0), 3),
    "Combined": Combined(Plateau(factor=0.5, patience=0), weight_decay=LinearRamp(9)),
    "weight decay of Combined": Combined(StepDecay(3), weight_decay=Plateau(factor=0.5, patience=0)),
    "deep": Sequential([Constant(), Scaled(Product([Staircase(WARM, 1), StepDecay(9)]), 0.5)], [2]),
}
every_plateau = pytest.mark.parametrize("policy", PLATEAUS.values(), ids=PLATEAUS)


def moved(values):
    """What the plateau of each composite moves, where it is not the rate."""
    return values.lr_factor * (1 if values.weight_decay_factor is None else values.weight_decay_factor or 1)


@every_plateau
def test_a_plateau_does_its_part_in_a_composite(policy):
    """Its state is the plateau's; a report without improvement halves what it is a part of, and only that."""
    state = policy.initial_state()
    assert state == Plateau().initial_state()
    assert policy.after(state, 7) == policy.at(7)
    state = policy.report_at(policy.report_at(state, 1.0, 7), 1.0, 7)
    policy.check_state(state)
    assert state["lr_factor"] == 0.5
    assert moved(policy.after(state, 7)) == pytest.approx(moved(policy.at(7)) / 2)
    with pytest.raises(ValueError, match="need the state of Plateau"):
        policy.check_state({})


@every_plateau
def test_asking_a_composite_after_a_report_changes_nothing(policy):
    """``at`` keeps the values before any report, after a report has been used, too."""
    before = [policy.at(step) for step in range(20)]
    state = {**policy.initial_state(), "lr_factor": 0.25}
    after = [policy.after(state, step) for step in range(20)]
    assert [policy.at(step) for step in range(20)] == before != after
    assert [policy.after(state, step) for step in range(20)] == after


def test_a_report_before_its_turn_counts_for_nothing():
    """The state stays as it is until the plateau's step comes next; the same in a sequence, after it as well."""
    for policy in (WARM, Sequential([LinearRamp(4, 0), Plateau(factor=0.5, patience=0), Constant()], [4, 9])):
        first = policy.initial_state()
        for step in range(4):
            assert policy.report_at(None, 1.0, step) == policy.report_at(first, 1.0, step) == first
        counted = policy.report_at(first, 1.0, 4)
        assert counted["best"] == 1.0
        assert first == policy.initial_state()
    assert policy.report_at(counted, 0.1, 8)["best"] == 0.1
    assert policy.report_at(counted, 0.1, 9) == counted


def test_a_report_to_an_overlaid_plateau_counts_from_the_start():
    """With overlay both begin at step 0."""
    assert PLATEAUS["Warmup overlaid"].report_at(None, 1.0, 0)["best"] == 1.0


@dataclass(frozen=True)
class Listens(Policy):
    """A user's policy with ``report`` of a state and a metric alone, as it is documented."""

    def at(self, step):
        return Values(1.0)

    def initial_state(self):
        return {"last": 1.0}

    def after(self, state, step):
        return Values(state["last"])

    def report(self, state, metric):
        return {"last": metric}

    def check_state(self, state):
        pass


@pytest.mark.parametrize("composite", [False, True])
def test_a_users_policy_that_listens_needs_no_step(composite):
    """A policy with ``report(state, metric)`` goes on working in an optimizer, and as a part from its turn on."""
    policy = Sequential([Scaled(Constant(), 0.5), Listens()], [2]) if composite else Listens()
    optimizer, _ = trained(policy, 0)
    seen = []
    for metric in (0.25, 0.125, 0.0625):
        optimizer.report(metric)
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    assert seen == ([0.5, 0.5, 0.0625] if composite else [0.25, 0.125, 0.0625])


# --- in an optimizer


def trained(policy, updates, capturable=False, reports=()):
    """An optimizer after so many updates, with a metric reported before the updates of these numbers."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.full((3,), 0.5)
    options = {"capturable": True, "horizon": 64} if capturable else {}
    optimizer = CyclicSGD([param], lr=1.0, momentum=0.5, policy=policy, **options)
    for step in range(updates):
        if step in reports:
            optimizer.report(1.0)
        optimizer.step()
    return optimizer, param


@pytest.mark.parametrize("capturable", [False, True])
@every_plateau
def test_an_optimizer_follows_reports_to_a_part(policy, capturable):
    """The rate of each step is the policy's after the reports so far, those before its turn left out."""
    optimizer, _ = trained(policy, 0, capturable)
    state = policy.initial_state()
    for step in range(12):
        if step % 2:
            optimizer.report(1.0)
            state = policy.report_at(state, 1.0, step)
        due = policy.after(state, step)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(due.lr_factor, rel=1e-6)
        optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["policy_state"] == state
    assert state["lr_factor"] < 1


@pytest.mark.parametrize(("in_code", "capturable"), [(False, False), (True, False), (True, True)])
@every_plateau
def test_a_parts_memory_is_in_the_checkpoint(policy, in_code, capturable):
    """Saved, read as plain data and loaded, the run goes on as it would have, the policy in the code or not."""
    optimizer, param = trained(policy, 7, capturable, reports=(3, 5, 6))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = torch.nn.Parameter(param.detach().clone())
    twin.grad = param.grad.clone()
    options = {"capturable": True, "horizon": 64} if capturable else {}
    resumed = CyclicSGD([twin], lr=1.0, momentum=0.5, policy=policy if in_code else None, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.policy == policy
    for _ in range(4):
        for one in (optimizer, resumed):
            one.report(1.0)
            one.step()
        assert float(resumed.param_groups[0]["lr"]) == float(optimizer.param_groups[0]["lr"])
        assert torch.equal(twin, param)


@every_plateau
def test_a_composite_with_a_plateau_is_plain_data(policy):
    """It comes back from its description."""
    assert rebuild(describe(policy)) == policy


def test_a_warm_up_before_a_plateau_is_tabulated_up_to_its_end():
    """Between reports nothing changes after the warm-up: a device's table of it is as short as that."""
    assert (WARM.end, PLATEAUS["Sequential"].end) == (4, 4)
    assert [Warmup(CosineDecay(9), 4, overlay=overlay).end for overlay in (False, True)] == [13, 9]


@pytest.mark.parametrize("name", COMPOSITES)
@settings(max_examples=10)
@given(data=st.data())
def test_a_composite_is_the_same_on_the_device(name, data):
    """Rates and momenta of a captured optimizer's tensors are the policy's."""
    policy = data.draw(POLICY_STRATEGIES[name])
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.zeros(3)
    optimizer = CyclicSGD(
        [param], lr=1.0, momentum=0.5, policy=policy, capturable=True, horizon=max(40, policy.period or 0)
    )
    for step in range(4):
        values = policy.at(step)
        group = optimizer.param_groups[0]
        assert group["lr"].item() == pytest.approx(values.lr_factor, rel=1e-6, abs=1e-30)
        if values.momentum is not None:
            assert group["momentum"].item() == pytest.approx(values.momentum, rel=1e-6, abs=1e-30)
        optimizer.step()
