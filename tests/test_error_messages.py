"""What an error says, to the letter: the rule, the values, and the cure where there is one."""

import ast
import inspect
import math
from fractions import Fraction
from functools import partial

import pytest
import torch

from cyclic_optim import (
    Constant,
    CosineDecay,
    CyclicAdamW,
    CyclicSGD,
    ExponentialDecay,
    ExponentialRamp,
    LambdaPolicy,
    LinearRamp,
    MultiStepDecay,
    OneCycle,
    Plateau,
    Policy,
    PolynomialDecay,
    Sequential,
    Staircase,
    Triangular,
    WarmupStableDecay,
    cyclic,
    lr_range_test,
    supervised_step,
)
from cyclic_optim.interop import _SCHEDULERS
from cyclic_optim.mistaken import POLICY_OF
from cyclic_optim.policies import POLICIES, describe, rebuild
from cyclic_optim.policies.base import written
from cyclic_optim.rules import shown


def far(step):
    return 1.0


def scale(count):
    return -1


def reports(**changed):
    return {**Plateau().initial_state(), **changed}


POLICY_MESSAGES = [
    (
        lambda: Triangular(0),
        ValueError,
        "need 1 <= step_size_up, got step_size_up=0",
    ),
    (
        lambda: Triangular("3"),
        TypeError,
        "need step_size_up to be an int (a number of optimizer steps), got step_size_up='3'",
    ),
    (
        lambda: Triangular(2.0),
        TypeError,
        "need step_size_up to be an int (a number of optimizer steps), got step_size_up=2.0: "
        "pass an int, for example int(step_size_up)",
    ),
    (
        lambda: Triangular(2**63),
        ValueError,
        "need step_size_up < 2**63 (a number of optimizer steps), got step_size_up=9223372036854775808",
    ),
    (
        lambda: Triangular(div_factor="10"),
        TypeError,
        "need div_factor to be a number, got div_factor='10'",
    ),
    (
        lambda: Triangular(div_factor=math.nan),
        ValueError,
        "need div_factor to be a finite number, got div_factor=nan",
    ),
    (
        lambda: Triangular(div_factor=0.5),
        ValueError,
        "need 1 <= div_factor, got div_factor=0.5",
    ),
    (
        lambda: Triangular(cycle_momentum=1),
        TypeError,
        "need cycle_momentum to be True or False, got cycle_momentum=1",
    ),
    (
        lambda: Triangular(scale_mode="cycles"),
        ValueError,
        "need scale_mode to be one of 'cycle', 'iterations', got scale_mode='cycles'",
    ),
    (
        lambda: Triangular(base_momentum=0.95),
        ValueError,
        "need base_momentum <= max_momentum, got base_momentum=0.95, max_momentum=0.9",
    ),
    (
        lambda: Triangular(2, scale_fn=scale).at(2),
        ValueError,
        "need a scale that keeps the rate and the momentum at or above 0, "
        "got lr_factor=-0.8, momentum=1.0 at step=2 from scale_fn(1)=-1",
    ),
    (
        lambda: CosineDecay(10, 1.5),
        ValueError,
        "need 0 <= min_factor <= 1, got min_factor=1.5",
    ),
    (
        lambda: ExponentialDecay(0),
        ValueError,
        "need 0 < gamma <= 1, got gamma=0",
    ),
    (
        lambda: PolynomialDecay(10, 0),
        ValueError,
        "need 0 < power, got power=0",
    ),
    (
        lambda: Plateau(factor=1),
        ValueError,
        "need 0 < factor < 1, got factor=1",
    ),
    (
        lambda: Plateau(eps=-1),
        ValueError,
        "need 0 <= eps, got eps=-1",
    ),
    (
        lambda: Plateau(mode=3),
        TypeError,
        "need mode to be a string, got mode=3",
    ),
    (
        lambda: Plateau(mode="least"),
        ValueError,
        "need mode to be one of 'min', 'max', got mode='least'",
    ),
    (
        lambda: Plateau(threshold_mode="relative"),
        ValueError,
        "need threshold_mode to be one of 'rel', 'abs', got threshold_mode='relative'",
    ),
    (
        lambda: WarmupStableDecay(10, 1, 1, "sine"),
        ValueError,
        "need shape to be one of 'linear', 'cosine', 'sqrt', got shape='sine'",
    ),
    (
        lambda: WarmupStableDecay(10, 6, 5),
        ValueError,
        "need warmup + decay <= total_steps, got warmup=6, decay=5, total_steps=10",
    ),
    (
        lambda: MultiStepDecay([3, 2]),
        ValueError,
        "need 0 <= milestones[0] <= milestones[1] <= ..., got milestones=(3, 2)",
    ),
    (
        lambda: MultiStepDecay(3),
        TypeError,
        "need milestones to be a sequence of ints, got milestones=3",
    ),
    (
        lambda: MultiStepDecay([1, "2"]),
        TypeError,
        "need milestones[1] to be an int (a number of optimizer steps), got milestones[1]='2'",
    ),
    (
        lambda: ExponentialRamp(4, 5e-324, 1.0),
        ValueError,
        "need 2.2250738585072014e-308 <= end_factor / start_factor <= 1.7976931348623157e+308, "
        "got start_factor=5e-324, end_factor=1.0",
    ),
    (
        lambda: OneCycle(100, -0.1),
        ValueError,
        "need 0 <= pct_start <= 1, got pct_start=-0.1",
    ),
    (
        lambda: OneCycle(100, 1.5),
        ValueError,
        "need 0 <= pct_start <= 1, got pct_start=1.5",
    ),
    (
        lambda: OneCycle(100, anneal_strategy="cosine"),
        ValueError,
        "need anneal_strategy to be one of 'cos', 'linear', got anneal_strategy='cosine'",
    ),
    (
        lambda: OneCycle(10, div_factor=1e-200, final_div_factor=1e-200),
        ValueError,
        "need 1 / (div_factor * final_div_factor) to be a finite number, "
        "got div_factor=1e-200, final_div_factor=1e-200",
    ),
    (
        lambda: Sequential(None, []),
        TypeError,
        "need policies to be a sequence of policies, got policies=None",
    ),
    (
        lambda: Sequential([Constant()], [3]),
        ValueError,
        "need one policy more than milestones, got 1 policies, 1 milestones",
    ),
    (
        lambda: Sequential([Constant(), Constant()], [-1]),
        ValueError,
        "need 0 <= milestones[0] <= milestones[1] <= ..., got milestones=(-1,)",
    ),
    (
        lambda: Sequential([Constant(), None], [3]),
        TypeError,
        "need policies[1] to be a Policy, got policies[1]=None",
    ),
    (
        lambda: Sequential([Plateau(), Plateau()], [3]),
        ValueError,
        "need at most one policy that listens to a metric, as a param group has one memory of reports, "
        f"got {Plateau()!r} and {Plateau()!r}",
    ),
    (
        lambda: Staircase(Plateau(), 3).report(None, 0.5),
        TypeError,
        f"need report_at(state, metric, step) where the step matters, got a report to {Staircase(Plateau(), 3)!r}",
    ),
    (
        lambda: LambdaPolicy(3),
        TypeError,
        "need fn to be callable, got fn=3",
    ),
    (
        lambda: LambdaPolicy(scale).at(3),
        ValueError,
        "need fn(3) to be a finite number >= 0, got fn(3)=-1",
    ),
    (
        lambda: Constant().at(-1),
        ValueError,
        "need 0 <= step, got step=-1",
    ),
    (
        lambda: Constant().at(1.0),
        TypeError,
        "need step to be an int (optimizer steps, not epochs), got step=1.0",
    ),
    (
        lambda: Constant().report(None, 0.5),
        TypeError,
        "need a policy that listens to a metric (Plateau), got Constant(), which depends on the step alone",
    ),
    (
        lambda: Constant().check_state({}),
        ValueError,
        "need no state of reports for Constant(), got {}",
    ),
    (
        lambda: Plateau().check_state({}),
        ValueError,
        "need the state of Plateau to have the keys "
        "['best', 'cooldown_counter', 'lr_factor', 'mode', 'num_bad_reports'], got {}",
    ),
    (
        lambda: Plateau().check_state(reports(mode="max")),
        ValueError,
        "need reports to be compared by mode='min', got mode='max'",
    ),
    (
        lambda: Plateau().check_state(reports(num_bad_reports=-1)),
        ValueError,
        "need num_bad_reports to be an int >= 0 and < 2**63, got num_bad_reports=-1",
    ),
    (
        lambda: Plateau().check_state(reports(best="low")),
        ValueError,
        "need best to be a float, and not NaN, got best='low'",
    ),
    (
        lambda: Plateau().check_state(reports(lr_factor=1.5)),
        ValueError,
        "need 0 <= lr_factor <= 1, got lr_factor=1.5",
    ),
    (
        lambda: rebuild(3),
        ValueError,
        "need a policy as {'name': ..., 'fields': {...}}, got 3",
    ),
    (
        lambda: rebuild({"name": "Nobody", "fields": {}}),
        ValueError,
        "need a policy of this library to rebuild it from data, got 'Nobody'",
    ),
    (
        lambda: rebuild({"name": "LinearRamp", "fields": {"total_iters": -1}}),
        ValueError,
        "need the arguments of LinearRamp, got {'total_iters': -1}: need 0 <= total_iters, got total_iters=-1",
    ),
    (
        lambda: rebuild(describe(LambdaPolicy(far))),
        ValueError,
        f"need the code of LambdaPolicy.fn ('{__name__}.far'), which data cannot hold",
    ),
]


def check(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    assert str(raised.value) == message


def cases(table):
    return pytest.mark.parametrize(("call", "error", "message"), table, ids=[message[:60] for _, _, message in table])


@cases(POLICY_MESSAGES)
def test_what_a_policy_says(call, error, message):
    """A policy's error reads exactly so."""
    check(call, error, message)


def test_the_first_step_beyond_the_last_is_refused():
    """Steps are below 2**63: the last one has its values, the next one is said to be none."""
    for policy in (Constant(), Triangular()):
        assert policy.at(2**63 - 1) is not None
        check(lambda policy=policy: policy.at(2**63), ValueError, f"need step < 2**63, got step={2**63}")


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, lambda numbers: dict.fromkeys(numbers, 11)])
def test_twelve_items_of_a_value_are_shown(kind):
    """Of what is refused an error shows 12 items; of a longer one it says that there are more."""
    twelve = repr(kind(range(12)))
    assert shown(kind(range(12))) == twelve
    assert shown(kind(range(13))) == "11, ...".join(twelve.rsplit("11", 1))


class Named:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


@pytest.mark.parametrize(
    ("short", "long", "length"),
    [
        (498 * "a", 499 * "a", 500),
        (10**499, 10**500, 500),
        (Named(2000 * "a"), Named(2001 * "a"), 2000),
    ],
    ids=["string", "int", "other"],
)
def test_the_middle_of_a_long_value_is_left_out(short, long, length):
    """What is refused is shown in full up to 500 characters (2,000 of an object's own), else its two ends."""
    assert len(repr(short)) == length
    assert shown(short) == repr(short)
    middle = (length - 3) // 2
    assert shown(long) == repr(long)[:middle] + "..." + repr(long)[-(length - 3 - middle) :]


def test_levels_of_a_value_are_shown():
    """What is refused is shown 4 levels deep."""
    assert shown([[[[1]]]]) == "[[[[1]]]]"
    assert shown([[[[[1]]]]]) == "[[[[[...]]]]]"


def test_an_int_too_long_for_python_to_write_is_shown_by_its_size():
    """Python refuses to write ints of very many digits: from 10,000 bits an error says how many there are."""
    assert shown(2**9998).startswith(str(2**9998)[:200])
    assert shown(2**9999) == "<int of 10000 bits>"


# --- the optimizer


def param(*shape):
    return torch.nn.Parameter(torch.ones(shape))


def built(policy=None, **options):
    return CyclicSGD([param(2)], policy=policy, **options)


def saved(policy=None, /, **changed):
    """A checkpoint, with other values in its param group."""
    checkpoint = built(policy).state_dict()
    checkpoint["param_groups"][0].update(changed)
    return checkpoint


def without(checkpoint, key):
    del checkpoint["param_groups"][0][key]
    return checkpoint


class Says(Policy):
    """A policy that returns one thing, whatever the step."""

    def __init__(self, answer):
        self.answer = answer

    def __repr__(self):
        return "Says(...)"

    def at(self, step):
        return self.answer


class Forever(Policy):
    """A policy that repeats after many steps."""

    period = 2**20 + 1

    def __repr__(self):
        return "Forever()"

    def at(self, step):
        return 1.0, None


def two_groups(**second):
    checkpoint = CyclicSGD([{"params": [param(2)]}, {"params": [param(3)]}], policy=Constant()).state_dict()
    checkpoint["param_groups"][1].update(second)
    return checkpoint


def load_two(checkpoint):
    CyclicSGD([{"params": [param(2)]}, {"params": [param(3)]}], policy=Constant()).load_state_dict(checkpoint)


def with_state(entry):
    checkpoint = saved(Constant())
    checkpoint["state"] = {0: entry}
    return checkpoint


def step_of(policy, **options):
    optimizer = built(policy, **options)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    return optimizer


def step_after(policy, **edits):
    optimizer = step_of(policy)
    optimizer.param_groups[0].update(edits)
    optimizer.step()


def stepped_without_groups():
    optimizer = built(Constant())
    optimizer.param_groups.clear()
    optimizer.step()


SCHEDULERS = torch.optim.lr_scheduler
UNDER_WAY = "from_torch(optimizer, scheduler) takes over a run that is under way"

OPTIMIZER_MESSAGES = [
    (
        lambda: CyclicSGD([param(1)], 0.1, 0.9, Constant()),
        TypeError,
        "need policy as a keyword, policy=Constant(...), got Constant() as another argument",
    ),
    (
        lambda: CyclicSGD([param(1)], Constant(), policy=Constant()),
        TypeError,
        "need policy as a keyword, policy=Constant(...), got Constant() as another argument",
    ),
    (
        lambda: CyclicAdamW([param(1)], 0.1, (0.9, 0.999), Constant()),
        TypeError,
        "need policy as a keyword, policy=Constant(...), got Constant() as another argument",
    ),
    (
        lambda: cyclic(torch.optim.RMSprop)([param(1)], 0.1, 0.9, Constant()),
        TypeError,
        "need policy as a keyword, policy=Constant(...), got Constant() as another argument",
    ),
    (
        lambda: cyclic(torch.optim.RMSprop)([param(1)], 0.1, alpha=Constant()),
        TypeError,
        "need policy as a keyword, policy=Constant(...), got Constant() as another argument",
    ),
    (
        lambda: built(SCHEDULERS.OneCycleLR),
        TypeError,
        "need policy to be a Policy or None, got policy=<class 'torch.optim.lr_scheduler.OneCycleLR'>: "
        f"write policy=OneCycle(total_steps=len(loader) * epochs), with the peak as lr; {UNDER_WAY}",
    ),
    (
        lambda: built(SCHEDULERS.MultiplicativeLR),
        TypeError,
        "need policy to be a Policy or None, got policy=<class 'torch.optim.lr_scheduler.MultiplicativeLR'>: "
        "write a policy",
    ),
    (
        lambda: built(OneCycle),
        TypeError,
        "need policy to be a Policy or None, got policy=<class 'cyclic_optim.policies.onecycle.OneCycle'>: "
        "pass an instance, policy=OneCycle(total_steps=len(loader) * epochs)",
    ),
    (
        lambda: built(math.sin),
        TypeError,
        "need policy to be a Policy or None, got policy=<built-in function sin>: "
        "wrap a function of the step in LambdaPolicy, policy=LambdaPolicy(sin)",
    ),
    (
        lambda: built("OneCycle"),
        TypeError,
        "need policy to be a Policy or None, got policy='OneCycle': "
        "pass the policy itself, policy=OneCycle(total_steps=len(loader) * epochs)",
    ),
    (
        lambda: built(Constant(), capturable=1),
        TypeError,
        "need capturable to be True or False, got capturable=1",
    ),
    (
        lambda: built(capturable=True),
        ValueError,
        "need a policy with capturable=True, got policy=None: pass policy=Constant() for a fixed rate",
    ),
    (
        lambda: built(Constant(), horizon=10),
        ValueError,
        "need horizon only with capturable=True, got horizon=10",
    ),
    (
        lambda: built(Constant(), capturable=True, horizon=0),
        ValueError,
        "need 1 <= horizon, got horizon=0",
    ),
    (
        lambda: built(Constant(), lr="0.1"),
        TypeError,
        "need lr to be a number, got lr='0.1'",
    ),
    (
        lambda: built(Constant(), momentum=True),
        TypeError,
        "need momentum to be a number, got momentum=True",
    ),
    (
        lambda: built(Constant(), weight_decay=math.inf),
        ValueError,
        "need weight_decay to be a finite number >= 0, got weight_decay=inf",
    ),
    (
        lambda: built(Constant(), dampening=math.nan),
        ValueError,
        "need dampening to be a finite number, got dampening=nan",
    ),
    (
        lambda: built(Constant(), weight_decay=-1.0),
        ValueError,
        "need weight_decay to be a finite number >= 0, got weight_decay=-1.0",
    ),
    (
        lambda: built(Constant(), momentum=-1.0),
        ValueError,
        "need momentum to be a finite number >= 0, got momentum=-1.0",
    ),
    (
        lambda: built(Constant(), dampening="0.1"),
        TypeError,
        "need dampening to be a number, got dampening='0.1'",
    ),
    (
        lambda: built(OneCycle(9), nesterov=True, dampening=-math.inf),
        ValueError,
        "need dampening to be a finite number, got dampening=-inf",
    ),
    (
        lambda: built(Constant(), lr=torch.ones(2)),
        ValueError,
        "need lr as a number or a Tensor of 1 element, got shape (2,)",
    ),
    (
        lambda: built(Constant(), lr=torch.tensor(0.1, requires_grad=True)),
        ValueError,
        "need lr without requires_grad beside a policy, which overwrites it",
    ),
    (
        lambda: built(Constant(), lr=torch.tensor(1)),
        ValueError,
        "need lr as a floating-point tensor beside a policy, got lr=tensor(1)",
    ),
    (
        lambda: built(Constant()).add_param_group({"params": [param(1)], "maximize": 1}),
        TypeError,
        "need maximize to be a bool, got maximize=1",
    ),
    (
        lambda: built(Constant()).add_param_group({"params": [param(1)], "fused": 1}),
        TypeError,
        "need fused to be a bool, got fused=1",
    ),
    (
        lambda: built(Constant()).add_param_group({"params": [param(1)], "nesterov": None}),
        TypeError,
        "need nesterov to be a bool, got nesterov=None",
    ),
    (
        lambda: built(Constant()).add_param_group([param(1)]),
        TypeError,
        "param_group must be a dict, but got <class 'list'>",
    ),
    (
        lambda: built(Constant()).add_param_group({"params": [param(1)], "fused": True, "foreach": True}),
        ValueError,
        "need at most one of fused and foreach, got both",
    ),
    (
        lambda: built(Constant()).add_param_group({"params": [param(1)], "max_lr": -1}),
        ValueError,
        "need max_lr to be a finite number >= 0, got max_lr=-1",
    ),
    (
        lambda: built(Constant()).add_param_group({"params": [param(1)], "momentum": Fraction(1, 2)}),
        TypeError,
        "need momentum to be a float, or an int of 64 bits, got momentum=Fraction(1, 2)",
    ),
    (
        lambda: built(Constant()).add_param_group({"params": [param(1)], "weight_decay": torch.tensor([0.5])}),
        ValueError,
        "need weight_decay to be a number, or a tensor that holds one, got weight_decay=tensor([0.5000])",
    ),
    (
        lambda: built(Constant()).add_param_group({"params": [param(1)], "lr": 1e39}),
        ValueError,
        "need lr to be a number that the parameters can hold (up to 3.4028234663852886e+38), got 1e+39",
    ),
    (
        lambda: built(LinearRamp(5, 0.01)).add_param_group({"params": [param(1)], "max_lr": 1e39}),
        ValueError,
        "need max_lr to be a number that the parameters can hold (up to 3.4028234663852886e+38), got 1e+39",
    ),
    (
        lambda: built().load_state_dict(saved(momentum="0.9")),
        TypeError,
        "need momentum to be a number, got momentum='0.9'",
    ),
    (
        lambda: built().load_state_dict(saved(maximize="no")),
        TypeError,
        "need maximize to be a bool, got maximize='no'",
    ),
    (
        lambda: CyclicSGD([param(2)], policy=Plateau()).report("low"),
        TypeError,
        "need metric to be a number that a float can hold, got metric='low'",
    ),
    (
        stepped_without_groups,
        ValueError,
        "need at least one param group beside a policy, whose counter they keep, got none",
    ),
    (
        lambda: built().report(1.0),
        TypeError,
        "need a policy that listens to a metric (Plateau), got policy=None",
    ),
    (
        lambda: built(Says(1.0)),
        TypeError,
        "need at() to return (lr_factor, momentum), got 1.0 from Says(...)",
    ),
    (
        lambda: built(Says((-1.0, None))),
        ValueError,
        "need lr_factor to be a finite number >= 0, got lr_factor=-1.0 at step 0 from Says(...)",
    ),
    (
        lambda: built(Says((1.0, -1.0))),
        ValueError,
        "need momentum to be a finite number >= 0, got momentum=-1.0 at step 0 from Says(...)",
    ),
    (
        lambda: step_after(Constant(), max_lr=-1.0),
        ValueError,
        "need max_lr to be a finite number >= 0, got max_lr=-1.0",
    ),
    (
        lambda: step_after(Constant(), lr=torch.tensor([0.5, 0.25])),
        ValueError,
        "need lr as a number, or a dense tensor with one element, got lr=tensor([0.5000, 0.2500])",
    ),
    (
        lambda: step_after(Constant(), lr=torch.tensor([0.5]).to_sparse()),
        ValueError,
        f"need lr as a number, or a dense tensor with one element, got lr={torch.tensor([0.5]).to_sparse()}",
    ),
    (
        lambda: step_after(Says((2.0, None)), max_lr=1e308),
        ValueError,
        "need max_lr * lr_factor to be a number that lr can hold, and the parameters (up to 3.4028234663852886e+38), "
        "got max_lr=1e+308, lr_factor=2.0 at step=0",
    ),
    (
        lambda: built().load_state_dict([]),
        TypeError,
        "need a state dict as state_dict() returns it, got []",
    ),
    (
        lambda: built().load_state_dict({"state": {}, "param_groups": {}}),
        ValueError,
        "need a state dict with a dict 'state' and a list 'param_groups', got dict and dict",
    ),
    (
        lambda: built().load_state_dict({"state": {}, "param_groups": [{"params": 3}]}),
        ValueError,
        "need param groups that are dicts with a list 'params', got {'params': 3}",
    ),
    (
        lambda: built(Constant()).load_state_dict(with_state(3)),
        ValueError,
        "need the state of a parameter to be a dict, got 3 for 0",
    ),
    (
        lambda: built(Constant()).load_state_dict(with_state({"momentum_buffer": torch.ones(3)})),
        ValueError,
        "need a momentum_buffer of shape (2,), got (3,)",
    ),
    (
        lambda: built(Constant()).load_state_dict(with_state({"momentum_buffer": 3.0})),
        ValueError,
        "need a momentum_buffer of shape (2,), got float",
    ),
    (
        lambda: built(Constant()).load_state_dict(saved(Constant(), schedule_step=-1)),
        ValueError,
        "need schedule_step to be an int >= 0 and < 2**62, got schedule_step=-1",
    ),
    (
        lambda: load_two(two_groups(schedule_step=2**62)),
        ValueError,
        "need schedule_step to be an int >= 0 and < 2**62, got schedule_step=4611686018427387904",
    ),
    (
        lambda: load_two(without(two_groups(), "schedule_step")),
        ValueError,
        "need schedule_step in every param group of the checkpoint that has a policy, or in none; a group without "
        "a policy says policy=None",
    ),
    (
        lambda: load_two(two_groups(policy_state=3)),
        ValueError,
        "need no state of reports for Constant(), got 3",
    ),
    (
        lambda: load_two(two_groups(policy="other")),
        ValueError,
        "need the policy in a param group to be JSON, got 'other' (Expecting value: line 1 column 1 (char 0))",
    ),
    (
        lambda: built().load_state_dict(without(saved(Constant()), "max_lr")),
        ValueError,
        "need max_lr beside schedule_step in a param group of the checkpoint",
    ),
    (
        lambda: built().load_state_dict(without(saved(Constant()), "policy")),
        ValueError,
        "need policy beside schedule_step in a param group of the checkpoint",
    ),
    (
        lambda: built(Constant()).load_state_dict(saved(Constant(), max_lr=-1.0)),
        ValueError,
        "need max_lr to be a finite number >= 0, got max_lr=-1.0",
    ),
    (
        lambda: built().load_state_dict(saved(Constant(), policy='{"name": "Nobody", "fields": {}}')),
        ValueError,
        "need a policy of this library to rebuild it from data, got 'Nobody'; "
        "pass the policy to the optimizer to load this checkpoint",
    ),
    (
        lambda: built().load_state_dict(saved(Constant(), policy=3)),
        ValueError,
        "need the policy in a param group to be JSON, got 3; pass the policy to the optimizer to load this checkpoint",
    ),
    (
        lambda: built().load_state_dict(saved(Constant(), policy="Constant()")),
        ValueError,
        "need the policy in a param group to be JSON, got 'Constant()' (Expecting value: line 1 column 1 (char 0)); "
        "pass the policy to the optimizer to load this checkpoint",
    ),
    (
        lambda: built(LinearRamp(2000000), capturable=True),
        ValueError,
        "need a policy of at most 1048576 steps with capturable=True, got 2000001 steps of "
        f"{LinearRamp(2000000)!r}: give horizon=, the number of steps to tabulate",
    ),
    (
        lambda: built(Forever(), capturable=True),
        ValueError,
        "need a policy of at most 1048576 steps with capturable=True, got 1048577 steps of Forever(): "
        "give horizon=, the number of steps to tabulate",
    ),
    (
        lambda: built(Triangular(10), capturable=True, horizon=19),
        ValueError,
        f"need horizon >= the policy's period, got horizon=19, period=20 of {Triangular(10)!r}",
    ),
]


@pytest.mark.parametrize("name", POLICY_OF)
def test_every_scheduler_of_torchs_is_told_its_policy(name):
    """An instance as policy is refused with a policy of this library, and with what takes it over if that can."""
    scheduler = object.__new__(getattr(SCHEDULERS, name))
    assert POLICY_OF[name] in POLICIES
    with pytest.raises(TypeError) as raised:
        built(scheduler)
    made = written(POLICIES[POLICY_OF[name]])
    is_taken_over = getattr(SCHEDULERS, name) in _SCHEDULERS
    assert str(raised.value).endswith(f": write policy={made}, with the peak as lr" + is_taken_over * f"; {UNDER_WAY}")


def test_whatever_from_torch_takes_has_a_policy_in_the_hints():
    """No scheduler that can be taken over is left without the name of its policy."""
    assert {scheduler.__name__ for scheduler in _SCHEDULERS} <= POLICY_OF.keys()


class Mine(Policy):
    def at(self, step):
        return 1.0, None


ONE_CYCLE = "policy=OneCycle(total_steps=len(loader) * epochs)"
MISTAKEN = {
    "a class": (OneCycle, f": pass an instance, {ONE_CYCLE}"),
    "a class without arguments": (Triangular, ": pass an instance, policy=Triangular()"),
    "a class with several": (
        WarmupStableDecay,
        ": pass an instance, policy=WarmupStableDecay(total_steps=len(loader) * epochs, warmup=..., decay=...)",
    ),
    "a class of the user's": (Mine, ": pass an instance, policy=Mine(...)"),
    "the abstract class": (Policy, f": pass an instance of a subclass, for example {ONE_CYCLE}"),
    "a partial": (partial(OneCycle, pct_start=0.2), f": call it, {ONE_CYCLE[:-1]}, pct_start=0.2)"),
    "a full partial": (partial(OneCycle, 90, three_phase=True), ": call it, policy=OneCycle(90, three_phase=True)"),
    "a name": ("onecycle", f": pass the policy itself, {ONE_CYCLE}"),
    "a name in another style": ("one-cycle", f": pass the policy itself, {ONE_CYCLE}"),
    "a misspelt name": ("OneCyle", f": pass the policy itself, {ONE_CYCLE}"),
    "a scheduler's name": ("OneCycleLR", f": pass the policy itself, {ONE_CYCLE}"),
    "a name of others": ("cosine", ": pass the policy itself, policy=CosineDecay(t_max=len(loader) * epochs)"),
    "another name": ("fast", f": pass the policy itself, for example {ONE_CYCLE}"),
    "no name": ("", f": pass the policy itself, for example {ONE_CYCLE}"),
    "code": ("OneCycle(total_steps=90)", ": write it without quotes, policy=OneCycle(total_steps=90)"),
    "a scheduler": (object.__new__(SCHEDULERS.OneCycleLR), f": write {ONE_CYCLE}, with the peak as lr; {UNDER_WAY}"),
    "a scheduler's class": (SCHEDULERS.OneCycleLR, f": write {ONE_CYCLE}, with the peak as lr; {UNDER_WAY}"),
    "a partial scheduler": (
        partial(SCHEDULERS.OneCycleLR, max_lr=0.1),
        f": write {ONE_CYCLE}, with the peak as lr; {UNDER_WAY}",
    ),
    "a function": (far, ": wrap a function of the step in LambdaPolicy, policy=LambdaPolicy(far)"),
    "a lambda": (lambda step: 1.0, ": wrap a function of the step in LambdaPolicy, policy=LambdaPolicy(fn)"),
    "a function that makes one": (lambda: OneCycle(90), ": call a function that makes a policy, policy=fn()"),
}

ROUTES = {
    "CyclicSGD": built,
    "CyclicAdamW": lambda policy: CyclicAdamW([param(1)], policy=policy),
    "cyclic": lambda policy: cyclic(torch.optim.RMSprop)([param(1)], policy=policy),
    "a param group": lambda policy: CyclicSGD([{"params": [param(1)], "policy": policy}], lr=0.1),
    "a param group beside a policy": lambda policy: built(Constant()).add_param_group(
        {"params": [param(1)], "policy": policy}
    ),
    "reschedule": lambda policy: built(Constant()).reschedule(policy=policy),
    "reschedule of a group": lambda policy: built().reschedule(policy=policy, group=0),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", MISTAKEN)
def test_what_is_no_policy_is_refused_with_what_to_write(name, route):
    """Wherever a policy is given, a class, a scheduler, a name or a function is refused, and the error has the cure."""
    given, cure = MISTAKEN[name]
    with pytest.raises(TypeError) as raised:
        ROUTES[route](given)
    assert str(raised.value).startswith("need policy to be a Policy or None, got policy=")
    assert str(raised.value).endswith(cure)


@pytest.mark.parametrize("name", POLICIES)
def test_what_to_write_can_be_written(name):
    """For every policy it names all arguments that it cannot do without, and no other."""
    (call,) = ast.parse(written(POLICIES[name])).body
    parameters = inspect.signature(POLICIES[name]).parameters.values()
    required = [one.name for one in parameters if one.default is inspect.Parameter.empty]
    assert [argument.arg for argument in call.value.keywords] == required


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        (object.__new__(SCHEDULERS.OneCycleLR), ": pass its optimizer"),
        (CyclicSGD, ": pass an instance, CyclicSGD(model.parameters(), lr=0.1)"),
        (
            OneCycle,
            ": a range test needs none, result.one_cycle(total_steps=len(loader) * epochs) has its policy",
        ),
        (
            OneCycle(90),
            ": a range test needs none, result.one_cycle(total_steps=len(loader) * epochs) has its policy",
        ),
        ("sgd", "got 'sgd'"),
    ],
    ids=["a scheduler", "an optimizer's class", "a policy's class", "a policy", "a name"],
)
def test_a_range_test_of_no_optimizer_says_what_to_pass(given, cure):
    """The error has the cure where there is one."""
    with pytest.raises(TypeError) as raised:
        lr_range_test(torch.nn.Linear(1, 1), given, lambda: 1.0)
    assert str(raised.value).startswith("need optimizer to be a torch.optim.Optimizer, got ")
    assert str(raised.value).endswith(cure)


@cases(OPTIMIZER_MESSAGES)
def test_what_the_optimizer_says(call, error, message):
    """An error of the optimizer, of its schedule or of its device path reads exactly so."""
    check(call, error, message)


# --- the range test


LINEAR, LOADER = torch.nn.Linear(1, 1), torch.utils.data.DataLoader([1.0, 2.0])


def range_test(**options):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.1))
    lr_range_test(model, optimizer, lambda: model(torch.ones(1, 1)).sum(), progress=False, **options)


RANGE_TEST_MESSAGES = [
    (
        lambda: lr_range_test(LINEAR, torch.optim.SGD(LINEAR.parameters()), LOADER),
        TypeError,
        f"need train_step to be a function, got {LOADER!r}: supervised_step makes one from a loader",
    ),
    (
        lambda: range_test(start_lr=1.0, end_lr=1.0),
        ValueError,
        "need 0 < start_lr < end_lr < inf, got start_lr=1.0, end_lr=1.0",
    ),
    (
        lambda: range_test(num_steps=10.0),
        TypeError,
        "need num_steps to be an int, got num_steps=10.0",
    ),
    (
        lambda: range_test(num_steps=1),
        ValueError,
        "need 2 <= num_steps, got num_steps=1",
    ),
    (
        lambda: range_test(mode="cosine"),
        ValueError,
        "need mode to be one of 'exponential', 'linear', got mode='cosine'",
    ),
    (
        lambda: range_test(smoothing=1),
        ValueError,
        "need 0 <= smoothing < 1, got smoothing=1",
    ),
    (
        lambda: range_test(divergence_factor=0),
        ValueError,
        "need 0 < divergence_factor, got divergence_factor=0",
    ),
    (
        lambda: range_test(lr=0.0),
        ValueError,
        "need a first param group with 0 < lr, to which the others' rates relate, got lr=0.0: give it any rate above 0",
    ),
    (
        lambda: supervised_step(None, None, None, accumulation_steps=0),
        ValueError,
        "need accumulation_steps to be an int >= 1, got accumulation_steps=0",
    ),
    (
        lambda: supervised_step(torch.nn.Linear(1, 1), torch.sub, [])(),
        ValueError,
        "need a loader with at least one batch, got an empty one",
    ),
]


@cases(RANGE_TEST_MESSAGES)
def test_what_the_range_test_says(call, error, message):
    """An error of the range test reads exactly so."""
    check(call, error, message)
