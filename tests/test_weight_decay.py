"""Weight decay moved by a policy: ``group["weight_decay"] = max_weight_decay * weight_decay_factor``, on every path."""

import copy
import pickle
import warnings
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from questions import NoQuestions
from strategies import IMPLEMENTATIONS, flat, problems, sgd_options
from test_interruption import interrupted_everywhere
from test_triton_update import BLOCK, TritonUpdate
from torch.optim import SGD, Adam, AdamW

from cyclic_optim import Constant, CyclicAdamW, CyclicSGD, Policy, Sequential, Triangular, cyclic, lr_range_test
from cyclic_optim.device.portable import PortableUpdate
from cyclic_optim.policies import Values

pytestmark = pytest.mark.usefixtures("triton_language_put_back")

OWN = "max_weight_decay"


@dataclass(frozen=True)
class Listed(Policy):
    """Rows of lr factor, momentum and factor of weight decay, over and over."""

    rows: tuple[tuple[float | None, ...], ...]

    @property
    def period(self):
        return len(self.rows)

    def at(self, step):
        return Values(*self.rows[step % len(self.rows)])


@dataclass(frozen=True)
class Lowered(Policy):
    """A policy that halves weight decay with every report."""

    def at(self, step):
        return Values(1.0, None, 1.0)

    def initial_state(self):
        return {"reports": 0}

    def after(self, state, step):
        return Values(1.0, None, 0.5 ** state["reports"])

    def report(self, state, metric):
        return {"reports": state["reports"] + 1}

    def check_state(self, state):
        assert isinstance(state["reports"], int)


FALLING = Listed(((1.0, 0.9, 1.0), (0.5, 0.8, 0.75), (0.25, 0.7, 0.5), (0.75, 0.6, 0.0)))
DECAY_ALONE = Listed(((1.0, None, 1.0), (1.0, None, 0.5), (1.0, None, 2.0)))
LATE = Listed(((1.0, None, None), (0.5, None, None), (0.25, None, 0.5), (0.5, None, 0.25)))


def rows(momentum=True):
    """Drawn rows; momentum in all of them or in none, and 0 in float32 where it is in float64."""
    factors = st.floats(0, 2)
    row = st.tuples(factors, st.just(0.0) | st.floats(0.01, 0.95) if momentum else st.none(), factors)
    return st.lists(row, min_size=1, max_size=5).map(tuple)


def one_param(policy=FALLING, cls=CyclicSGD, **options):
    param = torch.nn.Parameter(torch.arange(1.0, 4.0, dtype=torch.float64))
    param.grad = torch.full_like(param, 0.5)
    options = {"lr": 0.5, "weight_decay": 0.1} | options
    return param, cls([param], policy=policy, **options)


def decays(optimizer):
    """What the groups have: the weight decay of the next step, and their own."""
    return [
        tuple(float(group[key]) if key in group else None for key in ("weight_decay", OWN))
        for group in optimizer.param_groups
    ]


def drive(theirs, own, policy, step):
    """What a careful user of torch writes into the groups before each step."""
    lr_factor, momentum, decay_factor = policy.at(step)
    for group, (lr, decay) in zip(theirs.param_groups, own, strict=True):
        group["lr"] = lr * lr_factor
        group["weight_decay"] = decay * decay_factor
        if momentum is not None and "momentum" in group:
            group["momentum"] = momentum
        elif momentum is not None:
            group["betas"] = (momentum, *group["betas"][1:])


def run_both(problem, ours, theirs, policy, steps, check):
    """Make the same steps with both, from the same groups with different rates and weight decays."""
    made = []
    for make in (ours, theirs):
        params = problem.params()
        groups = [{"params": group, "lr": 0.1 * (i + 1), "weight_decay": 0.2 * i} for i, group in enumerate(params)]
        made.append((params, make(groups)))
    (our_params, ours), (their_params, theirs) = made
    own = [(group["lr"], group["weight_decay"]) for group in theirs.param_groups]
    for step in range(steps):
        drive(theirs, own, policy, step)
        for params, optimizer in made:
            problem.set_grads(params, step)
            optimizer.step()
        check(flat(our_params), flat(their_params))
    drive(theirs, own, policy, steps)
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert float(group["weight_decay"]) == pytest.approx(other["weight_decay"], rel=1e-6)
    assert [float(group[OWN]) for group in ours.param_groups] == [decay for _, decay in own]
    return ours


def close(ours, theirs):
    for param, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-12 if param.dtype == torch.float64 else 1e-5, atol=1e-6)


def same(ours, theirs):
    for param, other in zip(ours, theirs, strict=True):
        assert torch.equal(param, other)


# --- the same as by hand


@pytest.mark.usefixtures("part")
class TestHost:
    """With the compiled part of a step, and without."""

    @pytest.mark.parametrize("flags", IMPLEMENTATIONS, ids=str)
    @given(problem=problems(), rows=rows(), options=sgd_options())
    def test_sgd_equals_sgd_driven_by_hand(self, flags, problem, rows, options):
        """Weight decay moves beside lr and momentum in every implementation of SGD."""
        options = {**options, "momentum": 0.5, "nesterov": False}
        policy = Listed(rows)
        run_both(
            problem,
            lambda groups: CyclicSGD(groups, **options, **flags, policy=policy),
            lambda groups: SGD(groups, **options, foreach=False),
            policy,
            7,
            close,
        )

    @pytest.mark.parametrize("tensor_lr", [False, True])
    def test_tensors_are_filled(self, tensor_lr):
        """A tensor weight decay stays the same object and is filled; groups that shared one no longer do."""
        params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        given = torch.tensor(0.5)
        rate = torch.tensor(1.0) if tensor_lr else 1.0
        optimizer = CyclicSGD([{"params": [p]} for p in params], lr=rate, weight_decay=given, policy=FALLING)
        held = [group["weight_decay"] for group in optimizer.param_groups]
        assert len({id(tensor) for tensor in (given, *held)}) == 3
        for step in range(6):
            for param in params:
                param.grad = torch.zeros(2)
            before = params[0].detach().clone()
            lr_factor, _, factor = FALLING.at(step)
            optimizer.step()
            if step == 0:  # before there is momentum
                torch.testing.assert_close(params[0].detach(), before - lr_factor * 0.5 * factor * before)
            assert [group["weight_decay"] for group in optimizer.param_groups] == held
            assert all(tensor.item() == 0.5 * FALLING.at(step + 1).weight_decay_factor for tensor in held)
        assert given.item() == 0.5
        assert decays(optimizer) == 2 * [(0.5 * 0.5, 0.5)]

    def test_a_tensor_that_comes_with_its_own_is_not_written_to(self):
        """As in a copy of another group: the caller's tensor stays the caller's."""
        given = torch.tensor(0.3)
        group = {"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": given, OWN: 0.5}
        optimizer = CyclicSGD([group], lr=0.1, policy=FALLING)
        assert (given.item(), decays(optimizer)) == (pytest.approx(0.3), [(0.5, 0.5)])

    def test_each_group_has_its_policy_and_only_moved_ones_have_the_key(self):
        """Groups whose policy leaves weight decay alone, or that have none, keep theirs and get no key."""
        params = [torch.nn.Parameter(torch.ones(2)) for _ in range(4)]
        groups = [
            {"params": params[:1]},
            {"params": params[1:2], "policy": Triangular(2), "weight_decay": 0.3},
            {"params": params[2:3], "policy": DECAY_ALONE, "weight_decay": 0.7, "schedule_step": 1},
            {"params": params[3:], "policy": None},
        ]
        optimizer = CyclicSGD(groups, lr=0.1, weight_decay=0.1, policy=FALLING)
        expected = [(0.1, 0.1), (0.3, None), (0.35, 0.7), (0.1, None)]
        assert decays(optimizer) == expected
        for step in range(1, 9):
            for param in params:
                param.grad = torch.ones(2)
            optimizer.step()
            moved = [0.1 * FALLING.at(step)[2], 0.7 * DECAY_ALONE.at(step + 1)[2]]
            assert decays(optimizer) == [(moved[0], 0.1), (0.3, None), (moved[1], 0.7), (0.1, None)]
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": 0.2})
        assert decays(optimizer)[-1] == (0.2 * FALLING.at(8)[2], 0.2)

    @pytest.mark.parametrize("tensors", [False, True])
    @pytest.mark.parametrize("n_groups", [1, 3])
    def test_a_policy_may_begin_to_move_it_later(self, n_groups, tensors):
        """Until then there is no key; from then on the group's own is kept, an edit before it included."""
        params = [torch.nn.Parameter(torch.ones(2)) for _ in range(n_groups)]
        decay = torch.tensor(0.5) if tensors else 1
        policies = [LATE, Triangular(3), LATE][:n_groups]
        groups = [{"params": [p], "policy": policy} for p, policy in zip(params, policies, strict=True)]
        optimizer = CyclicSGD(groups, lr=0.1, weight_decay=decay)
        seen = []
        for _ in range(5):
            seen.append(decays(optimizer)[0])
            for param in params:
                param.grad = torch.ones(2)
            optimizer.step()
        own = float(decay)
        assert seen == [(own, None), (own, None), (own / 2, own), (own / 4, own), (own / 4, own)]
        assert decays(optimizer)[1:2] == [(own, None)][: n_groups - 1]

    def test_groups_that_begin_at_different_times_have_their_own(self):
        """One that a policy has moved before stays where it is for the step in which another one begins."""
        policy = Listed(((0.0, None, 0.5), (1.0, None, None), (1.0, None, 0.25)))
        params = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
        for param in params:
            param.grad = torch.zeros(1)
        optimizer = CyclicSGD(params[:1], lr=0.1, weight_decay=torch.tensor(0.5), policy=policy)
        optimizer.step()
        optimizer.add_param_group({"params": params[1:], "weight_decay": 0.8})
        assert decays(optimizer) == [(0.25, 0.5), (pytest.approx(0.8), None)]
        optimizer.step()
        assert [param.item() for param in params] == pytest.approx([1 - 0.1 * 0.25, 1 - 0.1 * 0.8])
        assert decays(optimizer) == [(0.125, 0.5), (pytest.approx(0.2), 0.8)]

    def test_an_edit_of_momentum_is_still_one_where_it_begins(self):
        """A checkpoint that is made in that very step marks it."""
        _, optimizer = one_param(Listed(((1.0, 0.9, None), (1.0, 0.8, 0.5))))
        optimizer.param_groups[0]["momentum"] = 0.1
        saved = []
        optimizer.step(lambda: saved.append(copy.deepcopy(optimizer.state_dict())))
        assert saved[0]["param_groups"][0]["momentum_edited_by_hand"] is True
        assert optimizer.param_groups[0]["momentum"] == 0.8

    def test_what_cannot_be_moved_is_refused_before_the_update(self):
        """Where a policy begins to move it, too."""
        param, optimizer = one_param(LATE)
        optimizer.step()
        optimizer.param_groups[0]["weight_decay"] = torch.tensor([0.1, 0.2])
        before = param.detach().clone()
        with pytest.raises(ValueError, match="need weight_decay as a number, or a dense tensor with one element"):
            optimizer.step()
        assert torch.equal(param, before)

    def test_a_skipped_step_moves_nothing(self):
        """Weight decay moves if, and only if, the clock does."""
        _, optimizer = one_param()
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        assert decays(optimizer) == [(0.1, 0.1)]
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        assert decays(optimizer) == [(pytest.approx(0.075), 0.1)]

    def test_an_edit_of_weight_decay_lasts_for_one_step(self):
        """The next update uses it, and the one after that the policy's."""
        param, optimizer = one_param(DECAY_ALONE)
        optimizer.param_groups[0]["weight_decay"] = 0.4
        before = param.detach().clone()
        optimizer.step()
        torch.testing.assert_close(param.detach(), before - 0.5 * (0.5 + 0.4 * before))
        assert decays(optimizer) == [(0.05, 0.1)]

    def test_an_edit_of_the_own_counts_at_the_next_step_and_lasts(self):
        """As for the peak; beside it an edited weight decay stays for its step, and lr and momentum are untouched."""
        param, optimizer = one_param(DECAY_ALONE)
        (group,) = optimizer.param_groups
        group[OWN] = 1
        before = param.detach().clone()
        optimizer.step()
        torch.testing.assert_close(param.detach(), before - 0.5 * (0.5 + 1.0 * before))
        assert decays(optimizer) == [(0.5, 1.0)]
        assert type(group[OWN]) is float
        group[OWN], group["weight_decay"], group["lr"] = 0.6, 0.25, 0.125
        before = param.detach().clone()
        optimizer.step()
        torch.testing.assert_close(param.detach(), before - 0.125 * (0.5 + 0.25 * before))
        assert decays(optimizer) == [(1.2, 0.6)]

    @pytest.mark.parametrize("key", ["max_lr", OWN, "lr"])
    @pytest.mark.parametrize("is_tensor", [False, True])
    def test_another_edit_leaves_an_edited_weight_decay(self, key, is_tensor):
        """It is the user's for one step, whatever else was edited; so it is inside a tensor."""
        param, optimizer = one_param(DECAY_ALONE, weight_decay=torch.tensor(0.1) if is_tensor else 0.1)
        (group,) = optimizer.param_groups
        if is_tensor:
            group["weight_decay"].fill_(0.4)
        else:
            group["weight_decay"] = 0.4
        group[key] = 2.0
        before = param.detach().clone()
        optimizer.step()
        lr = 0.5 if key == OWN else 2.0
        torch.testing.assert_close(param.detach(), before - lr * (0.5 + 0.4 * before))

    def test_an_edit_of_momentum_stays_beside_one_of_the_own(self):
        """An edit of max_weight_decay is none of momentum."""
        param, optimizer = one_param(FALLING)
        (group,) = optimizer.param_groups
        group["momentum"], group[OWN] = 0.0, 0.2
        optimizer.step()
        assert optimizer.state[param] == {}

    def test_a_closure_may_change_it(self):
        """What a closure reschedules is in force at the step after."""
        _, optimizer = one_param(Constant())

        def closure():
            optimizer.reschedule(policy=DECAY_ALONE, step=0)
            return 1.0

        optimizer.step(closure)
        assert decays(optimizer) == [(0.05, 0.1)]
        _, optimizer = one_param(Constant())
        optimizer.step(lambda: optimizer.reschedule(policy=LATE, step=1))  # which moves it at the next step
        assert decays(optimizer) == [(0.05, 0.1)]
        _, optimizer = one_param(Constant(), weight_decay=torch.tensor(0.5))
        optimizer.step(lambda: optimizer.reschedule(policy=LATE, step=1))
        assert decays(optimizer) == [(0.25, 0.5)]
        assert isinstance(optimizer.param_groups[0]["weight_decay"], torch.Tensor)

    def test_a_report_moves_it(self):
        """A policy that listens may move weight decay; the next step uses the new one."""
        _, optimizer = one_param(Lowered())
        optimizer.report(1.0)
        assert decays(optimizer) == [(0.05, 0.1)]
        optimizer.step()
        optimizer.report(1.0)
        assert decays(optimizer) == [(0.025, 0.1)]

    def test_removing_the_own_is_refused(self):
        """The moved value would become the group's own without a word."""
        _, optimizer = one_param()
        optimizer.step()
        del optimizer.param_groups[0][OWN]
        with pytest.raises(ValueError, match="need max_weight_decay in a param group"):
            optimizer.step()

    def test_interrupted_anywhere_in_a_step(self):
        """All groups have the values of before the step or of after it, and training goes on."""

        def make():
            params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
            for param in params:
                param.grad = torch.ones(2)
            return CyclicSGD(
                [{"params": params[:1]}, {"params": params[1:], "weight_decay": torch.tensor(0.2)}],
                lr=0.1,
                weight_decay=0.1,
                policy=FALLING,
            )

        def shown(optimizer):
            return [
                {key: float(value) for key, value in group.items() if key in ("lr", "momentum", "weight_decay", OWN)}
                for group in optimizer.param_groups
            ]

        twin = make()
        before = shown(twin)
        twin.step()
        after = shown(twin)

        def check(optimizer):
            now = shown(optimizer)
            assert now in (before, after)
            optimizer.step()
            assert optimizer.param_groups[0]["weight_decay"] == 0.1 * (0.75 if now == before else 0.5)

        assert interrupted_everywhere(make, lambda optimizer: optimizer.step(), check) > 5

    def test_an_interrupted_reschedule_leaves_tensors_as_they_were(self):
        """All of it is done, or nothing: also what was filled."""

        def make():
            return one_param(weight_decay=torch.tensor(0.5))[1]

        def check(optimizer):
            assert decays(optimizer) in ([(0.5, 0.5)], [(0.25, 0.5)])
            assert (optimizer.param_groups[0]["schedule_step"], decays(optimizer)) in (
                (0, [(0.5, 0.5)]),
                (1, [(0.25, 0.5)]),
            )

        assert interrupted_everywhere(make, lambda one: one.reschedule(policy=DECAY_ALONE, step=1), check) > 5

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
    def test_copies_go_on_alike(self, copied):
        """Pickled or copied, an optimizer has the same edits, and every later value."""
        param, optimizer = one_param()
        optimizer.step()
        optimizer.param_groups[0]["weight_decay"] = 0.4
        twin = copied(optimizer)
        for each in (optimizer, twin):
            assert each.state_dict()["param_groups"][0]["weight_decay_edited_by_hand"] is True
            for group in each.param_groups:
                group["params"][0].grad = torch.ones_like(group["params"][0])
        for _ in range(5):
            optimizer.step()
            twin.step()
            assert decays(twin) == decays(optimizer)
            assert torch.equal(twin.param_groups[0]["params"][0], param)


ADAMS = [
    (CyclicAdamW, AdamW),
    (cyclic(Adam), Adam),
    *((cyclic(base), base) for base in (torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad)),
]


@pytest.mark.parametrize(("ours", "theirs"), ADAMS, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_any_optimizer_equals_itself_driven_by_hand(ours, theirs, data):
    """To the bit, in each of the implementations that the optimizer has."""
    policy = Listed(data.draw(rows(momentum="betas" in theirs([torch.nn.Parameter(torch.ones(1))]).defaults)))
    flags = data.draw(st.sampled_from([{}, {"foreach": False}, {"foreach": True}]))
    if issubclass(theirs, Adam):
        flags = data.draw(st.sampled_from([flags, {"fused": True}]))
    problem = data.draw(problems())
    run_both(
        problem,
        lambda groups: ours(groups, **flags, policy=policy),
        lambda groups: theirs(groups, **flags),
        policy,
        7,
        same,
    )


def test_a_run_taken_over_from_torch_can_move_it():
    """``from_torch`` has the optimizer's weight decay, and drops a key of ours that a checkpoint left there."""
    param = torch.nn.Parameter(torch.ones(2))
    theirs = SGD([param], lr=0.1, weight_decay=0.3)
    theirs.param_groups[0][OWN] = 7.0
    scheduler = torch.optim.lr_scheduler.StepLR(theirs, 2)
    optimizer = CyclicSGD.from_torch(theirs, scheduler, steps_per_epoch=1)
    assert decays(optimizer) == [(0.3, None)]
    optimizer.reschedule(policy=DECAY_ALONE, step=1)
    assert decays(optimizer) == [(0.15, 0.3)]


def test_the_range_test_holds_it_and_puts_it_back():
    """As momentum is held; afterwards all is as it was."""
    model = torch.nn.Linear(2, 1)
    optimizer = CyclicSGD(model.parameters(), lr=0.1, weight_decay=0.1, policy=FALLING)
    seen = []

    def train_step():
        seen.append(optimizer.param_groups[0]["weight_decay"])
        loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        return loss

    before = copy.deepcopy(optimizer.state_dict())
    lr_range_test(model, optimizer, train_step, num_steps=5, end_lr=1e-3, progress=False)
    assert seen == 5 * [0.1]
    assert optimizer.state_dict() == before


# --- other policies


@pytest.mark.parametrize("capturable", [False, True])
def test_a_policy_that_leaves_it_alone_gets_the_groups_own(capturable):
    """By reschedule or by assignment: weight decay goes back to the group's own, and the key is gone."""
    for change in (
        lambda optimizer: optimizer.reschedule(policy=Constant()),
        lambda optimizer: optimizer.param_groups[0].update(policy=Constant()),
    ):
        _, optimizer = one_param(capturable=capturable)
        optimizer.step()
        assert decays(optimizer) != [(0.1, 0.1)]
        change(optimizer)
        assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.1
        optimizer.step()
        assert decays(optimizer) == [(0.1, None)]
        assert not isinstance(optimizer.param_groups[0]["weight_decay"], torch.Tensor)


@pytest.mark.parametrize("capturable", [False, True])
def test_another_policy_that_moves_it_starts_from_the_groups_own(capturable):
    """Not from where the last one left it; and a policy that is the first to move it takes it as it is."""
    _, optimizer = one_param(capturable=capturable)
    optimizer.step()
    optimizer.reschedule(policy=DECAY_ALONE, step=1)
    assert decays(optimizer) == [(pytest.approx(0.05), 0.1)]
    _, optimizer = one_param(Constant(), capturable=capturable)
    optimizer.param_groups[0]["weight_decay"] = 0.3
    optimizer.param_groups[0]["policy"] = DECAY_ALONE
    optimizer.step()
    assert decays(optimizer) == [(pytest.approx(0.15), 0.3)]
    optimizer.reschedule(lr=0.1, step=2)
    assert decays(optimizer) == [(pytest.approx(0.6), 0.3)]


def test_a_policy_of_none_leaves_everything_where_it_is():
    """Without a schedule there is no key of ours, and the values stay."""
    _, optimizer = one_param()
    optimizer.step()
    optimizer.param_groups[0]["policy"] = None
    optimizer.step()
    assert decays(optimizer) == [(pytest.approx(0.075), None)]
    for policy in (None, Constant()):
        assert decays(one_param(policy)[1]) == [(0.1, None)]


# --- checkpoints


def trained(policy, steps, place=CyclicSGD, **options):
    params = [torch.nn.Parameter(torch.arange(1.0, 4.0) * (i + 1)) for i in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.3, "lr": 0.2}]
    optimizer = place(groups, lr=0.1, weight_decay=0.1, policy=policy, **options)
    go_on(optimizer, 0, steps)
    return optimizer


def go_on(optimizer, start, stop):
    for step in range(start, stop):
        for i, group in enumerate(optimizer.param_groups):
            for param in group["params"]:
                param.grad = torch.full_like(param, 0.1 * (step + 1) + i)
        optimizer.step()


def everything(optimizer):
    params = [param.detach() for group in optimizer.param_groups for param in group["params"]]
    return [*params, *(torch.tensor([float(x or 0) for x in pair]) for pair in decays(optimizer))]


WAYS = {
    "host": {},
    "tensor": {"weight_decay": torch.tensor(0.1)},
    "capturable": {"capturable": True},
    "AdamW": {"place": CyclicAdamW},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", [FALLING, LATE, DECAY_ALONE], ids=["all", "late", "alone"])
def test_resumed_at_every_step(way, policy, tmp_path):
    """Bit for bit the undisturbed run, from a file, without a warning."""

    def make(steps):
        options = dict(WAYS[way])
        place, decay = options.pop("place", CyclicSGD), options.pop("weight_decay", None)
        optimizer = trained(policy, 0, place, **options)
        if decay is not None:
            groups = [{**g, "params": list(g["params"])} for g in optimizer.param_groups]
            groups = [{"params": g["params"], "lr": g["max_lr"]} for g in groups]
            optimizer = place(groups, weight_decay=decay, policy=policy)
        go_on(optimizer, 0, steps)
        return optimizer

    whole = make(9)
    for stop in range(9):
        first = make(stop)
        torch.save([first.state_dict(), [p for g in first.param_groups for p in g["params"]]], tmp_path / "run.pt")
        saved, params = torch.load(tmp_path / "run.pt", weights_only=True)
        second = make(0)
        with torch.no_grad():
            for param, value in zip([p for g in second.param_groups for p in g["params"]], params, strict=True):
                param.copy_(value)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second.load_state_dict(saved)
        assert decays(second) == decays(first)
        go_on(second, stop, 9)
        for ours, theirs in zip(everything(second), everything(whole), strict=True):
            assert torch.equal(ours, theirs)


def test_a_checkpoint_of_the_host_goes_on_on_the_device_and_back():
    """Plain numbers in between; the policy's float64 values on the host."""
    for policy in (FALLING, LATE):
        for one, other in ((False, True), (True, False)):
            first = trained(policy, 1, capturable=one)
            second = trained(policy, 0, capturable=other)
            saved = first.state_dict()
            assert all(type(group.get(OWN, 0.1)) is float for group in saved["param_groups"])
            second.load_state_dict(saved)
            go_on(second, 1, 4)
            go_on(first, 1, 4)
            for pair, expected in zip(decays(second), decays(first), strict=True):
                assert pair == pytest.approx(expected, rel=1e-6)


def test_a_checkpoint_of_the_base_class_starts_with_its_weight_decay():
    """And ours loads into the base class, at the present value."""
    param, theirs = torch.nn.Parameter(torch.ones(3, dtype=torch.float64)), None
    theirs = SGD([param], lr=0.1, weight_decay=0.7)
    theirs.param_groups[0][OWN] = 7.0  # left there by nobody knows whom
    _, ours = one_param()
    ours.load_state_dict(theirs.state_dict())
    assert decays(ours) == [(0.7, 0.7)]
    ours.step()
    theirs.load_state_dict(ours.state_dict())
    assert theirs.param_groups[0]["weight_decay"] == 0.7 * 0.75


def test_the_checkpoints_own_is_kept_where_the_code_has_another():
    """As torch keeps the checkpoint's weight decay."""
    _, optimizer = one_param()
    optimizer.step()
    _, fresh = one_param(weight_decay=0.9)
    fresh.load_state_dict(optimizer.state_dict())
    assert decays(fresh) == [(0.1 * 0.75, 0.1)]


def test_values_that_another_optimizer_left_are_named():
    """A weight decay that is not the schedule's, and not marked, is named in a warning, and the schedule's is used."""
    _, optimizer = one_param()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["weight_decay"] = 0.01
    _, fresh = one_param()
    with pytest.warns(UserWarning, match=r"weight_decay=0\.01"):
        fresh.load_state_dict(saved)
    assert decays(fresh) == [(0.1 * 0.75, 0.1)]


@pytest.mark.parametrize("capturable", [False, True])
def test_another_policy_in_the_code(capturable):
    """Its weight decay is the checkpoint's own, moved or left alone as the code's policy does."""
    _, optimizer = one_param(capturable=capturable)
    optimizer.step()
    saved = optimizer.state_dict()
    for policy, expected in ((Constant(), (0.1, None)), (DECAY_ALONE, (0.05, 0.1))):
        _, fresh = one_param(policy, capturable=capturable)
        with pytest.warns(UserWarning, match="written under the policy"):
            fresh.load_state_dict(saved)
        assert decays(fresh) == [(pytest.approx(expected[0]), expected[1])]
    _, moved = one_param(capturable=capturable)
    _, left = one_param(Constant(), weight_decay=0.3, capturable=capturable)
    with pytest.warns(UserWarning, match="written under the policy"):
        moved.load_state_dict(left.state_dict())
    assert decays(moved) == [(pytest.approx(0.3), 0.3)]


@pytest.mark.parametrize(("capturable", "is_tensor"), [(False, False), (False, True), (True, False)])
def test_an_edit_is_marked_and_used_after_loading(capturable, is_tensor):
    """Like an edited momentum: it lasts for one step, wherever that step is made; an equal value is no edit."""
    decay = torch.tensor(0.1, dtype=torch.float64) if is_tensor else 0.1
    param, optimizer = one_param(DECAY_ALONE, weight_decay=decay, capturable=capturable)
    assert "weight_decay_edited_by_hand" not in optimizer.state_dict()["param_groups"][0]
    if is_tensor:
        optimizer.param_groups[0]["weight_decay"].fill_(0.4)
    else:
        optimizer.param_groups[0]["weight_decay"] = 0.4
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["param_groups"][0]["weight_decay_edited_by_hand"] is True
    fresh_param, fresh = one_param(DECAY_ALONE, weight_decay=decay, capturable=capturable)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.load_state_dict(saved)
    assert decays(fresh)[0] == (pytest.approx(0.4), 0.1)
    assert fresh.state_dict()["param_groups"][0].get("weight_decay_edited_by_hand") is True
    optimizer.step()
    fresh.step()
    assert torch.equal(param, fresh_param)
    assert decays(fresh) == decays(optimizer) == [(pytest.approx(0.05), 0.1)]
    assert "weight_decay_edited_by_hand" not in fresh.state_dict()["param_groups"][0]


# --- on the device


@given(problem=problems(dtypes=(torch.float32,)), rows=rows(), options=sgd_options(), data=st.data())
def test_capturable_equals_sgd_driven_by_hand(problem, rows, options, data):
    """The portable update, and Triton's kernel in its interpreter; a group whose weight decay rests among others."""
    options = {**options, "momentum": 0.5, "nesterov": False}
    policy, kernel = Listed(rows), data.draw(st.booleans(), label="kernel")
    built = []

    def build(of_rows):
        built.append(of_rows)
        # Where no parameter has a gradient, no kernel is built.
        return TritonUpdate(of_rows, block=BLOCK) if of_rows else PortableUpdate(of_rows)

    with patch("cyclic_optim.device.sgd.choose_device_update", build) if kernel else warnings.catch_warnings():
        run_both(
            problem,
            lambda groups: CyclicSGD(groups, **options, policy=policy, capturable=True),
            lambda groups: SGD(groups, **options, foreach=False),
            policy,
            5,
            lambda ours, theirs: [
                torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5) for pair in zip(ours, theirs, strict=True)
            ],
        )
    assert not kernel or built or problem.absent


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the product that is not selected
@pytest.mark.parametrize("kernel", [False, True])
def test_a_weight_decay_of_zero_reads_no_parameter(kernel):
    """0 times an infinite parameter would be NaN."""
    param = torch.nn.Parameter(torch.tensor([torch.inf, 1.0]))
    param.grad = torch.ones(2)
    policy = Listed(((1.0, None, 0.0), (1.0, None, 0.5)))
    optimizer = CyclicSGD([param], lr=0.1, weight_decay=1.0, policy=policy, capturable=True)
    build = (lambda of_rows: TritonUpdate(of_rows, block=BLOCK)) if kernel else None
    with patch("cyclic_optim.device.sgd.choose_device_update", build) if kernel else warnings.catch_warnings():
        optimizer.step()
        torch.testing.assert_close(param.detach(), torch.tensor([torch.inf, 0.9]))
        optimizer.step()
        torch.testing.assert_close(param[1].item(), 0.9 - 0.1 * (1 + 0.5 * 0.9))


def mixed(**options):
    """A group that the policy moves, and one that it does not."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(2)
    groups = [{"params": params[:1]}, {"params": params[1:], "policy": Triangular(3), "weight_decay": 0.2}]
    return params, CyclicSGD(groups, lr=0.1, momentum=0.9, weight_decay=0.1, policy=FALLING, **options)


def test_a_capturable_step_never_synchronizes():
    """Nor does it show another tensor."""
    _, optimizer = mixed(capturable=True)
    optimizer.step()
    shown = [optimizer.param_groups[0][key] for key in ("weight_decay", OWN)]
    with NoQuestions():
        optimizer.step()
    assert all(
        group is tensor
        for group, tensor in zip((optimizer.param_groups[0][key] for key in ("weight_decay", OWN)), shown, strict=True)
    )
    assert [tensor.dtype for tensor in shown] == [torch.float32, torch.float64]
    assert optimizer.param_groups[1]["weight_decay"] == 0.2
    assert OWN not in optimizer.param_groups[1]


def test_compiled_it_goes_on_moving():
    """One graph for all steps, and the host's values at each."""
    torch._dynamo.reset()  # compilations of other optimizers make it generalize
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    (params, optimizer), (host_params, host) = mixed(capturable=True), mixed()
    compiled = torch.compile(optimizer.step, fullgraph=True, backend=backend)
    for _ in range(6):
        compiled()
        host.step()
        for param, other in zip(params, host_params, strict=True):
            torch.testing.assert_close(param, other)
        assert decays(optimizer)[0] == pytest.approx(decays(host)[0])
    assert len(graphs) == 1
    optimizer.param_groups[0][OWN] = host.param_groups[0][OWN] = 0.5
    optimizer.param_groups[1]["weight_decay"] = host.param_groups[1]["weight_decay"] = 0.0
    for _ in range(3):
        compiled()
        host.step()
    for param, other in zip(params, host_params, strict=True):
        torch.testing.assert_close(param, other)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    "edit",
    [{"schedule_step": 1}, {"policy": DECAY_ALONE}, {"policy": FALLING, "schedule_step": 2}, {"max_lr": 0.5}],
    ids=str,
)
def test_it_is_the_users_for_one_step_whatever_else_was_assigned(capturable, edit):
    """Another clock, another policy; the step after has the policy's."""
    param, optimizer = one_param(FALLING, capturable=capturable)
    (group,) = optimizer.param_groups
    group.update(weight_decay=0.4, lr=0.25, **edit)
    before = param.detach().clone()
    optimizer.step()
    torch.testing.assert_close(param.detach(), before - 0.25 * (0.5 + 0.4 * before), rtol=1e-6, atol=1e-6)
    factor = edit.get("policy", FALLING).at(edit.get("schedule_step", 0) + 1).weight_decay_factor
    assert decays(optimizer) == [(pytest.approx(0.1 * factor), 0.1)]


def test_what_float32_cannot_hold_is_refused_on_the_device():
    """As for rates and momenta."""
    huge = Listed(((1.0, None, 1.0), (1.0, None, 1e30)))
    with pytest.raises(ValueError, match="need rates, momenta and weight decays that float32 can hold"):
        one_param(huge, weight_decay=1e10, capturable=True)


def test_edits_on_the_device():
    """Of weight decay for one step; of the own from the next step on, also inside its tensor."""
    param, optimizer = one_param(DECAY_ALONE, capturable=True)
    (group,) = optimizer.param_groups

    def step():
        before = param.detach().clone()
        optimizer.step()
        return ((before - param.detach()) / 0.5 - 0.5) / before

    group["weight_decay"] = 0.4
    torch.testing.assert_close(step(), torch.full_like(param, 0.4), rtol=1e-6, atol=1e-6)
    assert decays(optimizer) == [(pytest.approx(0.05), 0.1)]
    group[OWN] = 1.0
    torch.testing.assert_close(step(), torch.full_like(param, 0.5), rtol=1e-6, atol=1e-6)
    group[OWN].fill_(2.0)
    torch.testing.assert_close(step(), torch.full_like(param, 4.0), rtol=1e-6, atol=1e-6)
    group[OWN].fill_(1.0)
    group["weight_decay"].fill_(0.25)
    torch.testing.assert_close(step(), torch.full_like(param, 0.25), rtol=1e-6, atol=1e-6)
    assert decays(optimizer) == [(0.5, 1.0)]
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        copied.param_groups[0]["params"][0].grad = torch.ones_like(param)
        copied.step()
        assert decays(copied) == [(2.0, 1.0)]
    group[OWN] = -1.0
    with pytest.raises(ValueError, match="need max_weight_decay to be a finite number"):
        optimizer.step()


def test_a_group_of_the_device_can_be_added_elsewhere():
    """Its tensors become numbers, and its own weight decay is what counts."""
    _, optimizer = one_param(capturable=True)
    optimizer.step()
    group = {**optimizer.param_groups[0], "params": [torch.nn.Parameter(torch.ones(1))]}
    _, host = one_param(Constant())
    host.add_param_group({key: value for key, value in group.items() if key != "policy"})
    assert decays(host)[1] == (0.1, None)
    assert type(host.param_groups[1]["weight_decay"]) is float


# --- refusals


@pytest.mark.parametrize("capturable", [False, True])
def test_an_optimizer_without_weight_decay_is_refused(capturable):
    """It has no place for it, whatever keys a group has; also where the policy moves it only later."""
    param = torch.nn.Parameter(torch.ones(1))
    param.grad = torch.ones(1)
    for group in ({"params": [param]}, {"params": [param], "weight_decay": 0.1}):
        with pytest.raises(ValueError, match=r"need .*weight.decay"):
            cyclic(torch.optim.Rprop)([group], policy=DECAY_ALONE, capturable=capturable)
    if capturable:
        with pytest.raises(ValueError, match=r"need .*weight.decay"):
            cyclic(torch.optim.Rprop)([param], policy=LATE, capturable=True)
        return
    optimizer = cyclic(torch.optim.Rprop)([param], policy=LATE)
    optimizer.step()
    before = param.detach().clone()
    with pytest.raises(ValueError, match="need an optimizer with weight_decay"):
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("cls", [CyclicAdamW, cyclic(Adam)])
def test_a_capturable_optimizer_that_takes_it_as_a_number_is_refused(cls):
    """torch's update asks ``weight_decay != 0`` on the host, so a graph would repeat one value."""
    with pytest.raises(ValueError, match=r"takes weight decay as a number only.*capturable=False"):
        one_param(DECAY_ALONE, cls, capturable=True)
    _, optimizer = one_param(Constant(), cls, capturable=True)
    with pytest.raises(ValueError, match="takes weight decay as a number only"):
        optimizer.reschedule(policy=LATE)
    assert optimizer.policies == [Constant()]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({OWN: -1.0}, "need 0|>= 0"),
        ({OWN: "0.1"}, "need max_weight_decay to be a number"),
        ({OWN: float("nan")}, "need max_weight_decay"),
        ({"weight_decay": torch.tensor([0.1, 0.2])}, "need weight_decay"),
        ({"weight_decay": torch.tensor(1)}, "need weight_decay as a floating-point tensor"),
        ({"weight_decay": 1e38}, "need max_weight_decay"),
    ],
    ids=str,
)
def test_what_cannot_be_moved_is_refused(given, match):
    """With the rule and the value; nothing is built."""
    policy = Listed(((1.0, None, 100.0),))
    param = torch.nn.Parameter(torch.ones(1))
    with pytest.raises((ValueError, TypeError), match=match):
        CyclicSGD([{"params": [param], **given}], lr=0.1, policy=policy)


def test_a_learned_weight_decay_cannot_be_moved():
    """A policy would overwrite it."""
    learned = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ValueError, match="need weight_decay without requires_grad"):
        one_param(DECAY_ALONE, weight_decay=learned, differentiable=True)
    one_param(Constant(), weight_decay=learned, differentiable=True)


def test_the_key_is_refused_without_a_policy():
    """It looks like an argument of ours, and would have no effect."""
    with pytest.raises(ValueError, match="need a policy beside 'max_weight_decay'"):
        CyclicSGD([{"params": [torch.nn.Parameter(torch.ones(1))], OWN: 0.1}], lr=0.1)


def test_a_composite_in_which_one_part_moves_it():
    """Where a part leaves it alone it stays where the last one left it, as momentum does; resuming changes nothing."""
    policy = Sequential([DECAY_ALONE, Constant()], [2])
    optimizer = trained(policy, 4)
    assert decays(optimizer) == [(0.05, 0.1), (0.15, 0.3)]
    fresh = trained(policy, 0)
    fresh.load_state_dict(optimizer.state_dict())
    assert decays(fresh) == decays(optimizer)
    fresh.reschedule(step=0)
    assert decays(fresh) == [(0.1, 0.1), (0.3, 0.3)]
