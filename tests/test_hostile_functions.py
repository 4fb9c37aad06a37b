"""Functions and gradients that fail or are nonsense: a clear error and nothing moved, or what SGD makes of them."""

import copy
import math
import operator
import re
from decimal import Decimal
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import POLICY_STRATEGIES, policies
from test_hostile_checkpoints import JUNK, error_of, everything, is_clear, set_grads, some, weights
from torch.optim import SGD

from cyclic_optim import (
    Constant,
    CyclicSGD,
    LambdaPolicy,
    Plateau,
    Policy,
    Scaled,
    Sequential,
    Staircase,
    Triangular,
    Values,
)

OPTIONS = [{}, {"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": True, "horizon": 6}]


class Switch:
    """A function that is well-behaved until somebody turns it."""

    def __init__(self, after=lambda: 0.5):
        self.after, self.turned = after, False

    def __call__(self, count):
        return self.after() if self.turned else 0.5


class Answers(Policy):
    """A policy of the user's own that gives whatever its function gives, in place of the pair."""

    def __init__(self, fn):
        self.fn = fn

    def at(self, step):
        answer = self.fn(step)
        return Values(0.5, 0.25) if type(answer) is float and answer == 0.5 else answer


POLICIES_OF = {
    "LambdaPolicy": LambdaPolicy,
    "scale_fn of the cycle": lambda fn: Triangular(4, scale_fn=fn),
    "scale_fn of the step": lambda fn: Triangular(4, scale_fn=fn, scale_mode="iterations"),
    "in a Sequential": lambda fn: Sequential([LambdaPolicy(fn), Constant()], [1000]),
    "in a Staircase": lambda fn: Staircase(LambdaPolicy(fn), 1),
    "in a Scaled": lambda fn: Scaled(LambdaPolicy(fn), 0.5),
    "own": Answers,
}


class Own(BaseException):
    """An error that nothing but ``BaseException`` catches."""


def raising(error):
    def fn():
        raise error

    return fn


def endless_recursion():
    return endless_recursion()


ERRORS = [
    ZeroDivisionError("mine"),
    ValueError("mine"),
    TypeError("mine"),
    KeyError("mine"),
    AttributeError("mine"),
    IndexError("mine"),
    OverflowError("mine"),
    RuntimeError("mine"),
    StopIteration("mine"),
    GeneratorExit("mine"),
    MemoryError("mine"),
    NotImplementedError("mine"),
    KeyboardInterrupt("mine"),
    SystemExit("mine"),
    Own("mine"),
]

#: What no rate can be. Other junk may be a rate (True is 1) or not; none of it may do half of something.
NONSENSE = [
    *("none", "-1", "10**400", "10**5000", "-10**5000", "-0.5", "nan", "inf", "-inf", "complex", "text", "no text"),
    *("number as text", "bytes", "list", "numbers", "dict", "set", "endless", "bomb", "deep list", "object", "silent"),
    *("type", "function", "tensor", "tensor of 3", "meta number", "huge fraction", "policy", "numpy array"),
]
NONSENSE_OF = {name: JUNK[name] for name in NONSENSE} | {"decimal": lambda: Decimal("0.5")}


def make(policy, **options):
    params = weights()
    set_grads(params)
    optimizer = CyclicSGD([{"params": group} for group in params], lr=0.1, momentum=0.9, policy=policy, **options)
    return optimizer, params


def uses(optimizer):
    """Everything that may ask a policy, by name; a step asks only where the device has not asked in advance."""
    late = {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.3}
    saved = copy.deepcopy(optimizer.state_dict())
    fresh = {
        **saved,
        "param_groups": [{**group, "schedule_step": 9, "edited_by_hand": True} for group in saved["param_groups"]],
    }
    sgd = SGD([{"params": group["params"]} for group in optimizer.param_groups], lr=0.7).state_dict()
    calls = {
        "step": optimizer.step,
        "add_param_group": lambda: optimizer.add_param_group(late),
        "load_state_dict": lambda: optimizer.load_state_dict(fresh),
        "load_state_dict of SGD's": lambda: optimizer.load_state_dict(sgd),
    }
    if optimizer._schedules.is_traced:
        del calls["step"]
    return calls


def with_weights(optimizer):
    grads = [param.grad for group in optimizer.param_groups for param in group["params"]]
    return everything(optimizer), repr(grads)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("made", POLICIES_OF)
def test_an_error_of_a_function_comes_through_and_nothing_moved(made, options):
    """Whatever a function raises, in whatever asks it, is what the user gets, and all is as before to the bit."""
    fn = Switch()
    optimizer, _ = make(POLICIES_OF[made](fn), **options)
    optimizer.step()
    before = with_weights(optimizer)
    for error in ERRORS:
        fn.after = raising(error)
        for name, call in uses(optimizer).items():
            fn.turned = True
            with pytest.raises(type(error)) as raised:
                call()
            assert raised.value is error, name
            fn.turned = False
            assert with_weights(optimizer) == before, (name, error)
        fn.turned = True
        with pytest.raises(type(error)):
            make(POLICIES_OF[made](fn), **options)
        fn.turned = False
    optimizer.step()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("made", POLICIES_OF)
def test_a_function_without_end_comes_through(made, options):
    """A function that calls itself for ever is a RecursionError, of its own making, and nothing moved."""
    fn = Switch(endless_recursion)
    optimizer, _ = make(POLICIES_OF[made](fn), **options)
    for name, call in uses(optimizer).items():
        before = with_weights(optimizer)
        fn.turned = True
        with pytest.raises(RecursionError):
            call()
        fn.turned = False
        assert with_weights(optimizer) == before, name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("made", POLICIES_OF)
def test_a_function_that_returns_nonsense_is_refused_and_nothing_moved(made, options):
    """Nothing that is no number >= 0 becomes a rate: the error says what was needed, wherever it was asked for."""
    fn = Switch()
    optimizer, _ = make(POLICIES_OF[made](fn), **options)
    optimizer.step()
    before = with_weights(optimizer)
    for nonsense, value in some([*NONSENSE_OF.items()], 16):
        if made.startswith("scale_fn") and nonsense in ("-1", "-0.5"):
            continue  # a rate just below the base, which is none of the matter here
        fn.after = value
        for name, call in uses(optimizer).items():
            fn.turned = True
            with pytest.raises((ValueError, TypeError), match="need") as raised:
                call()
            fn.turned = False
            assert type(raised.value) in (ValueError, TypeError), (nonsense, name)
            assert with_weights(optimizer) == before, (nonsense, name)
        fn.turned = True
        with pytest.raises((ValueError, TypeError), match="need"):
            make(POLICIES_OF[made](fn), **options)
        fn.turned = False
    optimizer.step()


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], OPTIONS[-1]], ids=str)
@pytest.mark.parametrize("made", POLICIES_OF)
def test_whatever_a_function_returns_it_is_used_or_refused(made, options):
    """Every junk there is, returned: the optimizer takes it as a number and trains, or refuses it and is unchanged."""
    taken = set()
    names = ["add_param_group", "load_state_dict"] if options.get("capturable") else ["step", "load_state_dict"]
    for junk, name in product(JUNK.keys() - {*NONSENSE}, names):
        fn = Switch(JUNK[junk])
        optimizer, _ = make(POLICIES_OF[made](fn), **options)
        call = uses(optimizer)[name]
        before = with_weights(optimizer)
        fn.turned = True
        refused = error_of(call)
        if refused is None:
            taken.add(junk)
            optimizer.step()
        else:
            assert is_clear(refused), (junk, name, refused)
            assert with_weights(optimizer) == before, (junk, name)
    assert made == "own" or {"true", "0", "1", "0.5", "fraction", "numpy float", "5e-324"} <= taken


PAIRS = {
    "none": None,
    "one number": 0.75,
    "nothing": (),
    "one of two": (0.5,),
    "four": (0.5, 0.5, 0.5, 0.5),
    "weight decay of text": (0.5, 0.5, "0.5"),
    "weight decay nan": (0.5, None, math.nan),
    "weight decay below 0": (0.5, 0.5, -0.1),
    "text": "ab",
    "a dict of two": {"lr_factor": 1, "momentum": 2},
    "no rate": (None, 0.5),
    "momentum of text": (0.5, "0.5"),
    "momentum nan": (0.5, math.nan),
    "momentum below 0": (0.5, -0.1),
    "momentum beyond floats": (0.5, 10**400),
    "momentum a tensor": (0.5, torch.tensor(0.5)),
    "momentum complex": (0.5, 0.5j),
    "both swapped for infinity": (math.inf, math.inf),
    "a tensor of two": torch.ones(2),
    "rate beyond the parameters": (1e300, None),
    "rate beyond floats": (1e308, None),
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("answer", PAIRS)
def test_an_answer_that_is_no_pair_of_numbers_is_refused(answer, options):
    """An answer other than (rate, momentum, weight decay), a number or None each but the first, changes nothing."""
    policy = Answers(Switch(lambda: PAIRS[answer]))
    optimizer, _ = make(policy, **options)
    optimizer.step()
    for name, call in uses(optimizer).items():
        before = with_weights(optimizer)
        policy.fn.turned = True
        with pytest.raises((ValueError, TypeError), match="need"):
            call()
        policy.fn.turned = False
        assert with_weights(optimizer) == before, name


class Listens(Policy):
    """A policy of the user's own that listens, and may fail at it."""

    def __init__(self, report):
        self.heard = report

    def initial_state(self):
        return {"factor": 1.0}

    def check_state(self, state):
        if not isinstance(state, dict):
            raise ValueError("need a dict")

    def at(self, step):
        return Values(1.0)

    def after(self, state, step):
        return Values(state["factor"])

    def report(self, state, metric):
        return self.heard()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("report", "error"),
    [
        (lambda: {"factor": math.nan}, ValueError),
        (lambda: {"factor": "low"}, ValueError),
        (lambda: {"factor": 10**400}, ValueError),
        (lambda: {}, KeyError),  # after() of the user's own
        (raising(ZeroDivisionError("mine")), ZeroDivisionError),
        (raising(KeyboardInterrupt("mine")), KeyboardInterrupt),
    ],
)
def test_a_report_that_fails_changes_nothing(report, error, options):
    """Where a policy fails at what it is told, or remembers what gives no rate, nothing of it stays."""
    optimizer, _ = make(Listens(report), **options)
    optimizer.step()
    before = with_weights(optimizer)
    with pytest.raises(error):
        optimizer.report(0.5)
    assert with_weights(optimizer) == before
    optimizer.step()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("after", [None, 0.5, [("factor", 1.0)]], ids=str)
def test_a_report_that_returns_no_state_is_refused(after, options):
    """What a policy is to remember is a dict; the error says what it gave instead."""
    optimizer, _ = make(Listens(lambda: after), **options)
    before = with_weights(optimizer)
    message = f"need report() to return the new state, a dict, got {after!r} from "
    with pytest.raises(TypeError, match=re.escape(message)):
        optimizer.report(0.5)
    assert with_weights(optimizer) == before


def test_a_report_refused_by_the_device_puts_its_table_back():
    """A rate that float32 cannot hold is noticed after the table was written anew: that, too, is as before."""
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = CyclicSGD([param], lr=0.1, policy=Listens(lambda: {"factor": 1e40}), capturable=True, horizon=5)
    before = with_weights(optimizer)
    with pytest.raises(ValueError, match="need rates, momenta and weight decays that float32 can hold"):
        optimizer.report(0.5)
    assert with_weights(optimizer) == before


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_metric_that_is_no_number_is_refused(options):
    """A metric beyond floats, none, or of another kind is an error, and the count of bad reports is as it was."""
    optimizer, _ = make(Plateau(patience=0), **options)
    optimizer.report(1.0)
    before = with_weights(optimizer)
    for metric in (10**400, Fraction(10**400), None, "low", [1.0], 1j, torch.ones(2), torch.ones(2, device="meta")):
        with pytest.raises((ValueError, TypeError), match="need metric to be a number"):
            optimizer.report(metric)
        assert with_weights(optimizer) == before
    optimizer.report(math.inf)
    assert optimizer.param_groups[0]["lr"] < 0.1


# --- far steps

FAR = [2**31, 2**53 - 1, 2**53, 2**53 + 1, 2**62, 2**63 - 2, 2**63 - 1]


@given(policies() | POLICY_STRATEGIES["Plateau"], st.sampled_from(FAR))
def test_the_last_steps_have_ordinary_values(policy, step):
    """Up to step 2**63 - 1 every policy answers, with finite plain floats in [0, 1]."""
    lr_factor, momentum, _ = policy.at(step)
    assert type(lr_factor) is float
    assert 0 <= lr_factor <= 1
    assert momentum is None or 0 <= momentum <= 1


@given(policies() | POLICY_STRATEGIES["Plateau"], st.sampled_from([2**63 + 5000, 2**64, 10**30, 10**400, 10**5000]))
def test_steps_beyond_an_int64_are_refused(policy, step):
    """No policy is asked for a step that nothing can count to: the rule is in the error, whatever its formula."""
    with pytest.raises(ValueError, match=r"need step < 2\*\*63, got step="):
        policy.at(step)


@pytest.mark.parametrize("value", [2**63, 10**400, 10**5000, np.uint64(2**63)], ids=lambda value: str(type(value)))
def test_lengths_beyond_an_int64_are_refused(value):
    """A number of steps that no counter reaches is refused where a policy is made."""
    for make_policy in (
        Triangular,
        lambda length: Staircase(Constant(), length),
        lambda length: Plateau("min", 0.1, length),
    ):
        with pytest.raises(ValueError, match=r"< 2\*\*63"):
            make_policy(value)


def test_a_pile_of_policies_is_asked_once():
    """What a policy is made of is asked once for its end and period, however deep: not twice on every level."""
    pile = Constant()
    for _ in range(200):
        pile = Staircase(pile, 1)
    assert (operator.attrgetter("end", "period")(pile)) == (0, 1)
    optimizer, _ = make(pile, capturable=True)
    optimizer.step()


def test_rates_beyond_float32_are_refused_on_the_device():
    """The device keeps rates and momenta as float32, whatever the parameters: more is refused, not rounded to inf."""
    for options in ({"lr": 1e39}, {"lr": 0.1, "momentum": 1e39}):
        with pytest.raises(ValueError, match="need rates, momenta and weight decays that float32 can hold"):
            CyclicSGD([torch.nn.Parameter(torch.ones(1).double())], policy=Constant(), capturable=True, **options)


# --- gradients


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38, -3.4e38])
def test_gradients_that_are_no_numbers_do_as_in_sgd(value, options, momentum):
    """NaN and infinity go where they go with SGD, step after step: the same bits without a policy, and with one
    the same elements are NaN or infinite, and the others equal."""
    flags = {key: flag for key, flag in options.items() if key in ("foreach", "fused")}
    settings = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.01, **flags}

    def train(make_optimizer):
        params = weights()
        optimizer = make_optimizer([param for group in params for param in group])
        for step in range(4):
            set_grads(params)
            if step in (1, 2):
                params[0][0].grad[step] = value
                params[0][1].grad[0, step - 1] = value
            optimizer.step()
        return optimizer, [param.detach().clone() for group in params for param in group]

    _, theirs = train(lambda params: SGD(params, **settings))
    _, plain = train(lambda params: CyclicSGD(params, **settings))
    assert [tensor.numpy().tobytes() for tensor in plain] == [tensor.numpy().tobytes() for tensor in theirs]
    optimizer, ours = train(lambda params: CyclicSGD(params, policy=Constant(), **{**settings, **options}))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert int(optimizer.param_groups[0]["schedule_step"]) == 4
    optimizer.load_state_dict(optimizer.state_dict())
