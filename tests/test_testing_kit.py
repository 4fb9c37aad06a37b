"""``cyclic_optim.testing``: each check can fail, and fails for its own reason alone; what is ours passes all."""

import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from readme import PAGES, SNIPPETS, run_snippet
from strategies import flat, inverse_root
from torch.optim import SGD, Optimizer, RMSprop, lr_scheduler
from torch.optim.lr_scheduler import StepLR

from cyclic_optim import Constant, CyclicAdamW, CyclicSGD, LambdaPolicy, OneCycle, Plateau, Policy, Values, cyclic
from cyclic_optim.passive import PassiveScheduler
from cyclic_optim.testing import (
    check_optimizer,
    check_policy,
    check_schedule,
    optimizer_checks,
    param_groups,
    policies,
    policy_checks,
    schedule_checks,
    training_runs,
)


def failures(checks):
    """The messages of the checks that fail, by name."""
    messages = {check.__name__: message_of(check) for check in checks}
    return {name: message for name, message in messages.items() if message}


def message_of(check):
    try:
        check()
    except AssertionError as error:
        return str(error)
    return None


def names(checks):
    return [check.__name__ for check in checks]


# --- policies, each with one thing wrong


@dataclass(frozen=True)
class Falling(Policy):
    """The sound one, from which the broken ones differ."""

    length: int = 10

    def factor(self, step):
        return 1 / (1 + step / self.length)

    def at(self, step):
        return Values(self.factor(step))


class ReturnsANumber(Falling):
    def at(self, step):
        return self.factor(step)


class ReturnsATensor(Falling):
    def at(self, step):
        return Values(torch.tensor(float(self.factor(step))))


class Raises(Falling):
    def at(self, step):
        if step == 7:
            raise ZeroDivisionError("division by zero")
        return Values(self.factor(step))


class NotANumber(Falling):
    def at(self, step):
        return Values(float("nan") if step == 7 else self.factor(step))


class Negative(Falling):
    def at(self, step):
        return Values(self.factor(step), -0.5 if step == 7 else 0.9)


class ATable(Falling):
    def at(self, step):
        return Values(((0.5,) * 1000)[step])


class KeepsFewDigits(Falling):
    last: Callable = [None]  # noqa: RUF012

    def at(self, step):
        value = self.factor(step)
        if self.last[0] == step:
            value = round(value, 2)
        self.last[0] = step
        return Values(value)


class ExpectsTheNextStep(Falling):
    last: Callable = [0]  # noqa: RUF012

    def at(self, step):
        before, self.last[0] = self.last[0], step
        return Values(self.factor(before if step == before - 1 else step))


@dataclass(frozen=True)
class Remembers(Falling):
    asked: list = field(default_factory=list, compare=False)

    def at(self, step):
        self.asked.append(step)
        return Values(self.factor(step))


class Seeds(Falling):
    def at(self, step):
        random.seed(int(step))
        return Values(random.random())


class FollowsTheSeed(Falling):
    def at(self, step):
        return Values(self.factor(step + torch.initial_seed() % 7))


class WatchesTheTime(Falling):
    def at(self, step):
        return Values(self.factor(step + time.time() // (100 * 86400)))


@dataclass(frozen=True)
class HoldsAList(Falling):
    milestones: list = field(default_factory=lambda: [3, 7])


class Halves(Policy):
    """A policy in its smallest form: no dataclass."""

    def __init__(self, every):
        self.every = every

    def at(self, step):
        return Values(0.5 ** (step // self.every))


@dataclass(frozen=True)
class HoldsALambda(Falling):
    fn: Callable = lambda step: step


@dataclass(frozen=True)
class HoldsADecimal(Falling):
    share: Decimal = Decimal("0.5")


@dataclass(frozen=True)
class InEpochs(Falling):
    def __post_init__(self):
        object.__setattr__(self, "length", 2 * self.length)


class RepeatsLater(Falling):
    period = 7

    def at(self, step):
        return Values(step % 8 / 8)


class RepeatsHalfway(Falling):
    period = 7.5


class EndsLater(Falling):
    end = 10

    def at(self, step):
        return Values(max(0.1, 1 - step / 20))


class Overflows(Falling):
    def at(self, step):
        return Values(1 / (1 + step**10))


class Huge(Falling):
    def at(self, step):
        return Values(1e300 if step == 3 else 1.0)


class ChangesTheState(Plateau):
    def report(self, state, metric):
        state.update(super().report(state, metric))
        return state


BROKEN_POLICIES = [
    ("returns_values", ReturnsANumber(), r"got at\(0\) = 1\.0 from ReturnsANumber\(length=10\): return Values\("),
    ("returns_values", ReturnsATensor(), r"got at\(0\) = Values\(lr_factor=tensor\(1\.\)"),
    ("returns_values", Raises(), "got ZeroDivisionError: .* at step 7 from Raises"),
    ("returns_finite_numbers", NotANumber(), r"need finite numbers, got at\(7\) = \('nan', None, None\) from"),
    ("returns_no_negative_number", Negative(), r"at\(7\) = \(0\.58\d+, -0\.5, None\) .*: bound what falls"),
    ("has_values_at_any_step", ATable(), "got IndexError: tuple index out of range at step 1000000 from"),
    ("gives_the_same_again", KeepsFewDigits(), r"at\(1\) = \(0\.909090\d+, .*\), and \(0\.91, .*\) when asked again"),
    (
        "gives_the_same_in_any_order",
        ExpectsTheNextStep(),
        r"at\(298\) = \(0\.0324\d+, .*\), and \(0\.0323\d+, .* backwards",
    ),
    ("is_left_as_it_was", Remembers(), r"asked = \[\], and \[0, 1, 2, .*\] after at\(0\) \.\.\. at\(299\) from"),
    ("draws_no_random_numbers", Seeds(), r"another state of random after at\(0\) \.\.\. at\(299\)"),
    (
        "draws_no_random_numbers",
        FollowsTheSeed(),
        r"at\(0\) = .*, and .* after another seed of torch from .*: give .* a seed",
    ),
    ("reads_no_clock", WatchesTheTime(), r"at\(0\) = \(0\.\d+, .*\), and \(0\.\d+, .*\) a year later from"),
    ("is_hashable", HoldsAList(), "got TypeError: unhashable type: 'list' from .*: make it a frozen dataclass"),
    ("has_equal_copies", Halves(3), r"got copy\.copy\(policy\) = <.*Halves.*, equal: False, from .*: make it a frozen"),
    ("is_picklable", HoldsALambda(), "got PicklingError: .*lambda.* from .*: define the class and its functions at"),
    ("describes_itself", HoldsADecimal(), r"HoldsADecimal\.share = Decimal\('0\.5'\), described as its type alone"),
    ("rebuilds_itself", InEpochs(), r"got InEpochs\(length=40\) .*'length': 40.*'length': 20.*: let __init__"),
    ("repeats_after_its_period", RepeatsLater(), r"at\(0\) = \(0\.0, .*\), at\(7\) = \(0\.875, .*\), period = 7, from"),
    ("repeats_after_its_period", RepeatsHalfway(), r"an int >= 1 or None, got period = 7\.5 from"),
    ("holds_after_its_end", EndsLater(), r"at\(10\) = \(0\.5, .*\), at\(11\) = \(0\.4\d+, .*\), end = 10, from"),
    ("takes_numpy_steps", Overflows(), r"at\(\d+\) = .*, and .* for numpy\.int64 from .*operator\.index\(step\)"),
    ("is_the_same_on_the_device", Huge(), r"at\(3\) = Values\(lr_factor=1e\+300, .*\), rounded \[inf, nan, nan\]"),
    (
        "counts_reports_purely",
        ChangesTheState(),
        r"report\(\{'mode': 'min', 'best': inf.*changed the given state to .*1\.0",
    ),
]


@pytest.mark.parametrize(
    ("name", "policy", "message"),
    BROKEN_POLICIES,
    ids=lambda value: type(value).__name__ if isinstance(value, Policy) else "",
)
def test_a_policy_fails_the_check_of_what_is_wrong_with_it(name, policy, message):
    """Exactly that check fails, and its message names step, values, and what to do."""
    state = random.getstate()
    found = failures(policy_checks(policy))
    random.setstate(state)
    assert found.keys() == {name}, found
    assert re.match(rf"{name}: need .*, got .* from .*: \w", found[name])
    assert re.search(message, found[name]), found[name]


def test_every_check_of_policies_can_fail():
    """There is a broken policy for each."""
    assert {name for name, *_ in BROKEN_POLICIES} == {*names(policy_checks(Constant()))}


def test_a_sound_policy_passes_every_check():
    """The one that all the broken ones are made of, at steps of one's own, too."""
    check_policy(Falling())
    check_policy(Falling(), steps=[0, 10**9, 7])


@settings(max_examples=25)
@given(policies() | policies("Plateau"), st.integers(1, 60))
def test_every_policy_of_ours_passes_every_check(policy, steps):
    """Whatever its arguments are."""
    check_policy(policy, steps)


@pytest.mark.parametrize("policy", [OneCycle, 3, None, lambda step: 1.0], ids=["class", "3", "None", "function"])
def test_what_is_no_policy_is_refused(policy):
    """A class is told to be called."""
    with pytest.raises(TypeError, match="need policy to be a Policy, got policy="):
        check_policy(policy)


@pytest.mark.parametrize(("steps", "error", "message"), [
    (0, ValueError, "need at least one step, got steps=0"),
    ([], ValueError, "need at least one step"),
    (-1, ValueError, "need 0 <= step, got step=-1"),
    (1.5, TypeError, "need step to be an int"),
    ([2**63], ValueError, r"need step < 2\*\*63"),
])  # fmt: skip
def test_steps_that_are_none_are_refused(steps, error, message):
    """They are whole numbers, and at least one."""
    with pytest.raises(error, match=message):
        check_policy(Constant(), steps)


# --- expected failures


def test_expected_failures_are_no_failures():
    """A check that is expected to fail may; all others still have to pass."""
    check_policy(Halves(3), expected_failed_checks={"has_equal_copies": "no dataclass"})
    with pytest.raises(AssertionError, match=r"\Ais_picklable: need .*\Z"):
        check_policy(LambdaPolicy(lambda step: 1.0))
    with pytest.raises(AssertionError, match=r"\Areturns_values: .*\nhas_equal_copies: .*\Z"):  # a line each
        check_policy(ReturnsAndCopies(3))


class ReturnsAndCopies(Halves):
    def at(self, step):
        return 1.0


def test_an_expected_failure_that_passes_fails():
    """The reason is repeated, and what to do."""
    message = (
        "is_picklable: need it to fail as expected (a lambda), got a pass from Constant(): "
        "remove it from expected_failed_checks"
    )
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_policy(Constant(), expected_failed_checks={"is_picklable": "a lambda"})


@pytest.mark.parametrize("checks", [
    partial(policy_checks, Constant()), partial(check_policy, Constant()),
    partial(optimizer_checks, CyclicSGD), partial(schedule_checks, partial(StepLR, step_size=3)),
], ids=["policy_checks", "check_policy", "optimizer_checks", "schedule_checks"])  # fmt: skip
def test_an_expected_failure_names_a_check(checks):
    """A misspelt one is refused, and the names that there are are told."""
    with pytest.raises(ValueError, match="need expected_failed_checks to name checks, got 'is_pickleable': one of "):
        checks(expected_failed_checks={"is_pickleable": "no"})


# --- optimizers, each with one thing wrong


class Descent(Optimizer):
    """A user's optimizer that is sound: gradient descent."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.sub_(param.grad, alpha=group["lr"] * self.share(param))

    def share(self, param):
        return 1.0


class KeepsACount(Descent):
    """The count is no part of the state dict."""

    count = 0

    def share(self, param):
        self.count += 1
        return 1 / self.count

    def __getstate__(self):
        return {**super().__getstate__(), "count": self.count}


class KeepsAFraction(Descent):
    def share(self, param):
        self.state[param]["share"] = Fraction(1, 2)
        return 0.5


class EatsTheDict(cyclic(Descent)):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        del state_dict["state"]


class AppliesOverflows(CyclicSGD):
    def step(self, closure=None):
        if "found_inf" in vars(self):
            self.found_inf = torch.zeros(())
        return super().step(closure)


def one_policy_for_all(groups, policy):
    return CyclicSGD(
        [{key: value for key, value in group.items() if key != "policy"} for group in groups], policy=policy
    )


class StaysWhereItIs(CyclicSGD):
    def reschedule(self, policy=None, lr=None, step=None, group=None):
        super().reschedule(policy, lr, None, group)


class ClearsFirst(CyclicAdamW):
    def load_state_dict(self, state_dict):
        self.state.clear()
        super().load_state_dict(state_dict)


class TakesAnything(CyclicSGD):
    def reschedule(self, policy=None, lr=None, step=None, group=None):
        if step is None or step >= 0:
            super().reschedule(policy, lr, step, group)


class IsItsCopy(CyclicSGD):
    def __deepcopy__(self, memo):
        return self


BROKEN_OPTIMIZERS = [
    ("resumes_anywhere", cyclic(KeepsACount), r"weights\[0\] = tensor.* at step 2, saved and loaded at step 1, from"),
    ("saves_plain_data", cyclic(KeepsAFraction), "UnpicklingError: .*fractions"),
    ("loads_the_same_dict_again", EatsTheDict, r"got .* before and after loading once, and a step, from EatsTheDict"),
    (
        "counts_no_skipped_step",
        partial(AppliesOverflows, fused=True),
        r"weights.* before and after step 0, which is skipped",
    ),
    (
        "moves_each_group_by_its_policy",
        one_policy_for_all,
        r"\{'schedule_step': 0, .*\} instead of .* in group 1 at step 0",
    ),
    ("can_be_steered", StaysWhereItIs, r"\{'schedule_step': 2, .*\} instead of \{'schedule_step': 3, .* in group 0"),
    ("refuses_wrong_arguments", ClearsFirst, r"before and after load_state_dict\(\{\}\) at step 2 from ClearsFirst"),
    ("refuses_wrong_arguments", TakesAnything, r"got no error of reschedule\(step=-1\) at step 2 from TakesAnything"),
    ("goes_on_in_copies", IsItsCopy, r"schedule_step'\] = 2 and 4 in a deepcopy before and after steps|in a deepcopy"),
]


@pytest.mark.parametrize(("name", "make", "message"), BROKEN_OPTIMIZERS, ids=range(len(BROKEN_OPTIMIZERS)))
def test_an_optimizer_fails_the_check_of_what_is_wrong_with_it(name, make, message):
    """Exactly that check fails, and its message names step, values, and what to do."""
    found = failures(optimizer_checks(make))
    assert found.keys() == {name}, found
    assert re.match(rf"(?s){name}: need .*, got .* from .* with Triangular\(.*: \w", found[name])
    assert re.search(message, found[name]), found[name]


def test_every_check_of_optimizers_can_fail():
    """There is a broken optimizer for each."""
    assert {name for name, *_ in BROKEN_OPTIMIZERS} == {*names(optimizer_checks(CyclicSGD))}


@pytest.mark.parametrize(
    "make", [CyclicSGD, CyclicAdamW, cyclic(RMSprop), cyclic(Descent)], ids=lambda cls: cls.__name__
)
@settings(max_examples=8)
@given(run=training_runs(), policy=policies(without=["Combined"]))
def test_every_optimizer_of_ours_passes_every_check(make, run, policy):
    """On any run, whichever policy it has a place for."""
    moves_momentum = any(policy.at(step).momentum is not None for step in range(300))
    check_optimizer(make, run=run, policy=Constant() if moves_momentum and make is cyclic(Descent) else policy)


@settings(max_examples=10)
@given(run=training_runs(schedules=policies() | st.none()))
def test_groups_with_schedules_of_their_own_pass_every_check(run):
    """Runs whose groups name policies, peaks and clocks."""
    check_optimizer(partial(CyclicSGD, momentum=0.9), run=run)


@pytest.mark.parametrize(("make", "message"), [
    (SGD, r"need an optimizer that owns its schedule, got SGD: pass cyclic\(SGD\)"),
    (lambda groups, policy: SGD(groups), r"need make\(.*\) to build .*, got SGD: build a cyclic\(SGD\)"),
], ids=["class", "function"])  # fmt: skip
def test_an_optimizer_without_a_schedule_is_refused(make, message):
    """It is told how to get one."""
    with pytest.raises(TypeError, match=message):
        check_optimizer(make)


# --- schedulers, each with one thing wrong

OWN = partial(CyclicSGD, momentum=0.9, policy=OneCycle(25))


class ThatEnds(PassiveScheduler):
    def step(self):
        if self.last_epoch > 12:
            raise ValueError("it is over")


class ThatStartsAgain(PassiveScheduler):
    def load_state_dict(self, state_dict):
        self.optimizer.reschedule(step=0)


def one_step_late(optimizer, last_epoch=-1):
    if last_epoch >= 0:
        optimizer.reschedule(step=last_epoch)
    return PassiveScheduler(optimizer)


class ThatEats(PassiveScheduler):
    def load_state_dict(self, state_dict):
        del state_dict["last_epoch"]


class ThatWrites(PassiveScheduler):
    def get_lr(self):
        self.optimizer.param_groups[0]["momentum"] = 0.75
        return self.get_last_lr()


class ThatMissesByOne(PassiveScheduler):
    def step(self, epoch=None):
        if epoch is not None:
            self.optimizer.reschedule(step=epoch + 1)


class ThatCounts(PassiveScheduler):
    count = 0

    def step(self):
        self.count += 1
        self.optimizer.reschedule(step=self.count)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def of_one_rate(groups):
    return OWN([{**group, "lr": 0.1} for group in groups])


class StartsLate(CyclicSGD):
    def add_param_group(self, param_group):
        super().add_param_group({**param_group, "schedule_step": 0})


class ThatHoldsALambda(PassiveScheduler):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.fn = lambda step: step


BROKEN_SCHEDULES = [
    ("has_values_at_any_step", ThatEnds, OWN, "got ValueError at step 13: it is over, from ThatEnds: take no step"),
    (
        "resumes_anywhere",
        ThatStartsAgain,
        OWN,
        r"got \[\(.*\] instead of \[\(.*\] at step 1, saved and loaded at step 1",
    ),
    (
        "resumes_from_last_epoch",
        one_step_late,
        OWN,
        r"instead of \[\(.*\] at step 1, with last_epoch=0 at step 1, from",
    ),
    ("loads_the_same_dict_again", ThatEats, OWN, r"got a dict without \['last_epoch'\] after loading at step 1 from"),
    ("is_left_as_it_was", ThatWrites, OWN, r"\[\(0\.5, 0\.75\), .* instead of .* after get_lr\(\) at step 0 from"),
    ("reaches_a_step_at_once", ThatMissesByOne, OWN, r"got \[\(.*\] instead of \[\(.*\] at step 0 from"),
    ("counts_no_skipped_step", ThatCounts, OWN, r"got \[\(.*\] instead of \[\(.*\] after 1 of 2 steps from ThatCounts"),
    (
        "keeps_the_ratio_of_groups",
        PassiveScheduler,
        of_one_rate,
        r"lr = .* at step 0, of groups with lr = 0\.1 and 0\.02",
    ),
    (
        "takes_a_group_later",
        PassiveScheduler,
        partial(StartsLate, **OWN.keywords),
        r"got \(.*\) instead of \(.*\) at step 11",
    ),
    ("goes_on_in_copies", ThatHoldsALambda, OWN, "got .*lambda.* from .*: keep plain data in the scheduler"),
]


@pytest.mark.parametrize(
    ("name", "make", "optimizer", "message"), BROKEN_SCHEDULES, ids=[row[0] for row in BROKEN_SCHEDULES]
)
def test_a_scheduler_fails_the_check_of_what_is_wrong_with_it(name, make, optimizer, message):
    """Exactly that check fails, and its message names step, values, and what to do."""
    found = failures(schedule_checks(make, optimizer=optimizer))
    assert found.keys() == {name}, found
    assert re.match(rf"{name}: need .*, got .* from \w+: \w", found[name])
    assert re.search(message, found[name]), found[name]


def test_every_check_of_schedulers_can_fail():
    """There is a broken scheduler, or optimizer, for each."""
    assert [name for name, *_ in BROKEN_SCHEDULES] == names(schedule_checks(PassiveScheduler, optimizer=OWN))


@settings(max_examples=20)
@given(policies())
def test_what_owns_its_schedule_passes_every_check(policy):
    """Beside the scheduler that only reports, under any policy."""
    check_schedule(PassiveScheduler, optimizer=partial(CyclicSGD, momentum=0.9, policy=policy), steps=12)


@pytest.mark.parametrize(("steps", "error"), [(1, ValueError), (2.5, TypeError)])
def test_a_schedule_has_two_steps_or_more(steps, error):
    """With fewer there is nothing to go on with."""
    with pytest.raises(error, match="steps"):
        check_schedule(partial(StepLR, step_size=3), steps=steps)


# --- what is drawn


@given(param_groups(dtypes=(torch.float32,), max_groups=2))
def test_param_groups_are_in_the_ranges_that_are_told(groups):
    """1 or 2 groups of 1 to 3 parameters, with a rate, and maybe a policy and a clock; an optimizer takes them."""
    assert 1 <= len(groups) <= 2
    for group in groups:
        assert 1 <= len(group["params"]) <= 3
        assert all(param.dtype == torch.float32 and param.dim() <= 3 for param in group["params"])
        assert group.keys() <= {"params", "lr", "policy", "schedule_step"}
        assert 1e-3 <= group["lr"] <= 1
        assert 0 <= group.get("schedule_step", 0) <= 30
    optimizer = CyclicSGD(groups, momentum=0.9)
    assert optimizer.policies == [group.get("policy") for group in groups]


@given(training_runs(), st.integers(0, 9))
def test_a_run_is_the_same_again(run, step):
    """Weights and gradients follow from the fields."""
    one, other = run.params(), run.params()
    run.set_grads(one, step)
    run.set_grads(other, step)
    for ours, theirs in zip(flat(one), flat(other), strict=True):
        assert torch.equal(ours, theirs)
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


# --- the package


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_without_hypothesis_it_says_what_to_install():
    """The error names the extra."""
    error = python("import sys; sys.modules['hypothesis'] = None; import cyclic_optim.testing").stderr.splitlines()[-1]
    assert error.startswith(
        "ImportError: need hypothesis for property tests: pip install hypothesis, or in a checkout "
        "pip install '.[testing]' ("
    )


def test_importing_the_package_imports_no_hypothesis():
    """Nor this part of it."""
    these = {"hypothesis", "cyclic_optim.testing"}
    code = f"import sys, cyclic_optim; cyclic_optim.CyclicSGD; print({these} & {{*sys.modules}})"
    assert python(code).stdout.strip() == "set()"


def test_policies_are_checked_without_torch():
    """Where torch is missing, all checks of a policy run but the one of the device."""
    code = (
        "import sys; sys.modules['torch'] = None; from cyclic_optim import OneCycle; "
        "from cyclic_optim.testing import check_policy; check_policy(OneCycle(10)); print('passed')"
    )
    done = python(code)
    assert done.stdout.strip() == "passed", done.stderr


def test_a_name_that_is_not_there():
    """It is Python's error."""
    with pytest.raises(ImportError, match=r"cannot import name 'check_polciy' from 'cyclic_optim\.testing'"):
        exec("from cyclic_optim.testing import check_polciy")


# --- the page


PAGE = PAGES["docs/property_testing.md"]


def rows(head):
    """The cells of the table with this head, without the backquotes of code."""
    table = PAGE[PAGE.index(head) :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_the_example_fails_first():
    """The message is the one on the page, and no other check fails."""
    with pytest.raises(AssertionError) as raised:
        run_snippet(__file__, "test_the_example_fails_first")
    assert f"```text\nAssertionError: {raised.value}\n```" in PAGE


def test_the_example_passes_then():
    """With its imports, the mended class passes every check."""
    given = {"math": math, "dataclass": dataclass, "Policy": Policy, "Values": Values, "check_policy": check_policy}
    run_snippet(__file__, "test_the_example_passes_then", **given)


def outcomes(test, folder):
    """What pytest prints of a block that is a test file."""
    _, code = SNIPPETS[f"tests/test_testing_kit.py::{test}"]
    return printed_by_pytest(code, folder)


def printed_by_pytest(code, folder):
    (folder / "test_mine.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "test_mine.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def test_a_test_is_parametrized_by_checks(tmp_path):
    """Each check is a test that passes, with the check's name as its id."""
    policy = run_snippet(__file__, "test_a_test_is_parametrized_by_checks")["policy"]
    printed = outcomes("test_a_test_is_parametrized_by_checks", tmp_path)
    passed = re.findall(r"^PASSED test_mine\.py::test_my_policy\[(\w+)\]", printed, re.MULTILINE)
    assert passed == names(policy_checks(policy))


def test_expected_failures_are_xfails(tmp_path):
    """Each other check passes, and the reason is in the report."""
    policy = run_snippet(__file__, "test_expected_failures_are_xfails")["policy"]
    printed = outcomes("test_expected_failures_are_xfails", tmp_path)
    assert "XFAIL test_mine.py::test_a_lambda[is_picklable] - no lambda can be pickled" in printed
    assert f"{len(policy_checks(policy)) - 1} passed, 1 xfailed" in printed


def test_an_expected_failure_that_passes_is_a_failure_in_pytest(tmp_path):
    """It is a strict xfail."""
    code = """
import pytest
from cyclic_optim import Constant
from cyclic_optim.testing import policy_checks

@pytest.mark.parametrize("check", policy_checks(Constant(), expected_failed_checks={"is_hashable": "wrongly"}))
def test_mine(check):
    check()
"""
    assert "FAILED test_mine.py::test_mine[is_hashable] - [XPASS(strict)] wrongly" in printed_by_pytest(code, tmp_path)


def test_the_optimizer_of_the_page_fails():
    """The two checks that the page names, and no other; with the cure that the page names, none."""
    with pytest.raises(AssertionError) as raised:
        run_snippet(__file__, "test_the_optimizer_of_the_page_fails")
    failed = re.findall(r"^(\w+): need", str(raised.value), re.MULTILINE)
    assert failed == ["resumes_anywhere", "goes_on_in_copies"]
    _, code = SNIPPETS["tests/test_testing_kit.py::test_the_optimizer_of_the_page_fails"]
    mended = code.replace("self.buffers.setdefault(param, ", 'self.state[param].setdefault("buffer", ')
    assert mended != code
    exec(mended, vars(sys.modules["snippet"]))


def test_the_scheduler_of_the_page_fails():
    """What is said to pass passes; what is said to fail does."""
    with pytest.raises(AssertionError, match=r"has_values_at_any_step: .* from OneCycleLR"):
        run_snippet(__file__, "test_the_scheduler_of_the_page_fails")


def test_the_strategies_of_the_page():
    """Its tests pass."""
    after = run_snippet(__file__, "test_the_strategies_of_the_page")
    settings(max_examples=20)(after["test_never_zero_is_a_policy"])()
    settings(max_examples=5)(after["test_never_zero_trains"])()


@pytest.mark.parametrize(("head", "checks"), [
    ("| check of a policy |", policy_checks(Constant())),
    ("| check of an optimizer |", optimizer_checks(CyclicSGD)),
    ("| check of a scheduler |", schedule_checks(partial(StepLR, step_size=3))),
], ids=["policy", "optimizer", "scheduler"])  # fmt: skip
def test_the_page_names_every_check(head, checks):
    """Each with its rule, in their order."""
    assert rows(head) == [[f"`{check.__name__}`", check.rule] for check in checks]


DEFECTS = {row: re.findall(r"`(\w+)`", failed) for row, failed in rows("| scheduler | fails with torch")}
NEEDED = vars(lr_scheduler) | {"partial": partial, "inverse_root": inverse_root}
needs_torch_of_the_table = pytest.mark.skipif(
    f"| fails with torch {torch.__version__.partition('+')[0]} |" not in PAGE, reason="the table is of another torch"
)


@needs_torch_of_the_table
@pytest.mark.parametrize("row", DEFECTS)
def test_torchs_schedulers_fail_what_the_table_says(row):
    """Exactly that, and nothing else."""
    make = eval(row.strip("`"), dict(NEEDED))
    check_schedule(make, expected_failed_checks=dict.fromkeys(DEFECTS[row], "the table says so"))


def test_the_table_has_every_scheduler_of_torch():
    """All that torch exports."""
    exported = {
        name for name in lr_scheduler.__all__ if issubclass(getattr(lr_scheduler, name), lr_scheduler.LRScheduler)
    }
    assert exported - {"LRScheduler"} <= set(re.findall(r"\w+", " ".join(DEFECTS)))


@needs_torch_of_the_table
def test_some_schedulers_raise_when_a_group_is_added():
    """Those that the page names, and no others."""
    (named,) = re.findall(r"^- `takes_a_group_later`: (.*?) raise", PAGE, re.MULTILINE | re.DOTALL)
    made = {row: schedule_checks(eval(row.strip("`"), dict(NEEDED))) for row in DEFECTS}
    messages = {
        row: failures([check for check in made[row] if check.__name__ == "takes_a_group_later"]) for row in made
    }
    raising = {
        re.search(r"\w+(?:LR|Restarts)", row)[0] for row in made if "Error: " in messages[row]["takes_a_group_later"]
    }
    assert raising == set(re.findall(r"`(\w+)`", named))
