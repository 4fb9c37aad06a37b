"""Corners of the optimizer that no drawn example is sure to reach."""

import math
import warnings

import pytest
import torch

from cyclic_optim import (
    Constant,
    CyclicSGD,
    InverseTimeDecay,
    LinearRamp,
    OneCycle,
    Plateau,
    Policy,
    Triangular,
    native,
    torch_private,
)
from cyclic_optim import scheduled as scheduled_module
from cyclic_optim import sgd as sgd_module
from cyclic_optim.device.clock import DeviceClock, Position, _extent
from cyclic_optim.host import schedules as host_schedules


def parameter(*shape):
    param = torch.nn.Parameter(torch.zeros(shape))
    param.grad = torch.zeros(shape)
    return param


@pytest.mark.parametrize(("shape", "counted"), [((1,), 0), ((), 0), ((2,), 0), ((0,), 1), ((3, 0), 1)])
def test_a_first_step_at_rate_0_without_gradients_is_a_dry_run_where_a_gradient_can_tell(shape, counted):
    """Gradients of 0 tell a dry run, be it a single number; an empty one tells nothing, and the step counts."""
    optimizer = CyclicSGD([parameter(*shape)], lr=0.1, policy=LinearRamp(3, 0.0))
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == counted


def test_without_a_policy_a_checkpoint_is_checked_as_sgd_does():
    """What plain SGD loads, a rate of NaN included, loads; with a policy it is refused."""
    checkpoint = torch.optim.SGD([parameter(2)], lr=0.1).state_dict()
    checkpoint["param_groups"][0]["lr"] = math.nan
    optimizer = CyclicSGD([parameter(2)])
    optimizer.load_state_dict(checkpoint)
    assert math.isnan(optimizer.param_groups[0]["lr"])
    scheduled = CyclicSGD([parameter(2)], policy=Constant())
    saved = scheduled.state_dict()
    saved["param_groups"][0]["lr"] = math.nan
    with pytest.raises(ValueError, match="need lr to be a finite number"):
        scheduled.load_state_dict(saved)


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"nesterov": True}, {"maximize": True}, {"fused": True}], ids=str
)
def test_an_option_that_an_older_checkpoint_lacks_is_as_in_the_code(options):
    """An option that is not in a checkpoint keeps the value that the optimizer was built with."""
    (option,) = options
    optimizer = CyclicSGD([parameter(2)], momentum=0.9, policy=Constant(), **options)
    checkpoint = optimizer.state_dict()
    del checkpoint["param_groups"][0][option]
    optimizer.load_state_dict(checkpoint)
    assert optimizer.param_groups[0][option] is True


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(warning.category, str(warning.message)) for warning in caught]


def test_the_warning_of_a_scheduler_reads_exactly_so():
    """An attached scheduler is warned of once, in these words."""

    def train():
        optimizer = CyclicSGD([parameter(2)], lr=0.1, policy=Triangular(5))
        torch.optim.lr_scheduler.StepLR(optimizer, 10)
        optimizer.step()
        optimizer.step()

    assert warned(train) == [
        (
            UserWarning,
            "an LR scheduler is attached to an optimizer that has a policy: both write lr, and the last to do so "
            "before a step wins. Remove the scheduler, or the policy.",
        )
    ]


def test_the_warning_of_another_policy_reads_exactly_so():
    """A checkpoint of another policy is loaded under the one in the code, with both named, and the step."""
    saved = CyclicSGD([parameter(2)], policy=Triangular(5))
    saved.step()
    optimizer = CyclicSGD([parameter(2)], policy=LinearRamp(7))
    assert warned(lambda: optimizer.load_state_dict(saved.state_dict())) == [
        (
            UserWarning,
            "the checkpoint was written under the policy Triangular(step_size_up=5, step_size_down=None, "
            "div_factor=10, cycle_growth=1, cycle_momentum=True, base_momentum=0.8, max_momentum=0.9, scale_fn=None, "
            "scale_mode='cycle'); going on at step 1 under the one in the code, "
            "LinearRamp(total_iters=7, start_factor=0.3333333333333333, end_factor=1.0)",
        )
    ]


def test_a_repr_lists_every_group_and_its_options():
    """The repr names the policy, then each group's options in alphabetical order, without its tensors."""
    optimizer = CyclicSGD(
        [{"params": [parameter(2)]}, {"params": [parameter(1)], "lr": 0.2}], lr=0.1, policy=Constant()
    )
    assert repr(optimizer) == "\n".join(
        [
            "CyclicSGD (",
            "policy: Constant()",
            *(
                line
                for i, lr in enumerate((0.1, 0.2))
                for line in (
                    f"Parameter Group {i}",
                    "    dampening: 0",
                    "    differentiable: False",
                    "    foreach: None",
                    "    fused: None",
                    f"    lr: {lr}",
                    f"    max_lr: {lr}",
                    "    maximize: False",
                    "    momentum: 0",
                    "    nesterov: False",
                    "    schedule_step: 0",
                    "    weight_decay: 0",
                )
            ),
            ")",
        ]
    )


def test_nesterov_needs_a_momentum_be_it_the_policys():
    """Nesterov is taken with a policy that cycles momentum, and refused with one that does not, or with dampening."""
    assert CyclicSGD([parameter(1)], nesterov=True, policy=Triangular(5)).defaults["momentum"] == 0
    assert CyclicSGD([parameter(1)], momentum=0.3, policy=Triangular(5)).defaults["momentum"] == 0.3
    for options in ({"policy": Constant()}, {"policy": Triangular(5), "dampening": 0.1}, {}):
        with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
            CyclicSGD([parameter(1)], nesterov=True, **options)


def test_a_refused_group_leaves_the_groups_as_they_were():
    """A param group that breaks a rule is not added, and the dict given is not written to."""
    optimizer = CyclicSGD([parameter(2)], lr=0.1, policy=OneCycle(20))
    bad = {"params": [parameter(1)], "lr": -1.0}
    with pytest.raises(ValueError, match="need lr"):
        optimizer.add_param_group(bad)
    assert len(optimizer.param_groups) == 1
    assert sorted(bad) == ["lr", "params"]
    good = {"params": [parameter(1)], "lr": 0.3}
    optimizer.add_param_group(good)
    assert sorted(good) == ["lr", "params"]
    assert optimizer.param_groups[1]["max_lr"] == 0.3


@pytest.mark.parametrize("flag", ["nesterov", "maximize", "differentiable"])
def test_only_the_implementation_may_be_left_open(flag):
    """None lets torch choose foreach and fused, which are otherwise bools; the other flags are said."""
    optimizer = CyclicSGD([parameter(2)], policy=Constant())
    optimizer.add_param_group({"params": [parameter(1)], "foreach": None, "fused": None})
    for wrong in ({flag: None}, {"foreach": 1}):
        with pytest.raises(TypeError, match=r"need \w+ to be a bool"):
            optimizer.add_param_group({"params": [parameter(1)], **wrong})


def test_an_invalid_peak_is_refused_where_the_schedule_starts_anew():
    """An SGD checkpoint leaves the peaks as the code has them; one edited to nonsense is then refused by its name."""
    optimizer = CyclicSGD([parameter(2)], policy=Constant())
    optimizer.param_groups[0]["max_lr"] = -1.0
    with pytest.raises(ValueError, match=r"need max_lr to be a finite number >= 0, got max_lr=-1\.0"):
        optimizer.load_state_dict(torch.optim.SGD([parameter(2)]).state_dict())


def test_a_group_added_later_knows_of_the_reports():
    """A group that joins a Plateau has the state of reports that its peers have, in a dict of its own."""
    optimizer = CyclicSGD([parameter(2)], lr=1.0, policy=Plateau(factor=0.5, patience=0))
    for metric in (1.0, 2.0):
        optimizer.report(metric)
    optimizer.add_param_group({"params": [parameter(1)], "lr": 0.1})
    first, second = optimizer.param_groups
    assert second["policy_state"] == first["policy_state"]
    assert second["policy_state"] is not first["policy_state"]
    assert second["lr"] == 0.05
    optimizer.report(3.0)
    assert (first["lr"], second["lr"]) == (0.25, 0.025)


def test_the_state_of_reports_is_there_from_the_start():
    """A Plateau's state is in every group before any report, so that a checkpoint made then has it."""
    optimizer = CyclicSGD([parameter(2)], policy=Plateau(mode="max"))
    assert optimizer.param_groups[0]["policy_state"] == Plateau(mode="max").initial_state()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("peak", [0, 1, 0.5, torch.tensor(0.5).item()])
def test_an_edited_peak_becomes_a_float(monkeypatch, peak, compiled):
    """An edit of max_lr lasts, and is kept as Python's float, be it 0."""
    if not compiled:
        monkeypatch.setattr(native, "compiled", None)
    optimizer = CyclicSGD([parameter(2)], lr=0.1, policy=Constant())
    optimizer.param_groups[0]["max_lr"] = peak
    for _ in range(2):
        optimizer.step()
        assert (type(optimizer.param_groups[0]["max_lr"]), optimizer.param_groups[0]["lr"]) == (float, peak)


@pytest.mark.parametrize("compiled", [True, False])
def test_an_edited_rate_may_be_an_int(monkeypatch, compiled):
    """An int written into group["lr"] is used by one step, and the policy's float follows."""
    if not compiled:
        monkeypatch.setattr(native, "compiled", None)
    param = parameter(2)
    param.grad = torch.ones(2)
    optimizer = CyclicSGD([param], lr=0.5, policy=Constant())
    optimizer.param_groups[0]["lr"] = 1
    optimizer.step()
    assert param.tolist() == [-1.0, -1.0]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_policy_without_reports_takes_over_from_one_with():
    """Of a Plateau's checkpoint, loaded under another policy, no state of reports is left."""
    checkpoint = CyclicSGD([parameter(2)], policy=Plateau()).state_dict()
    optimizer = CyclicSGD([parameter(2)], policy=Constant())
    assert len(warned(lambda: optimizer.load_state_dict(checkpoint))) == 1
    assert "policy_state" not in optimizer.param_groups[0]


def test_a_rate_that_a_tensor_rounds_is_not_edited():
    """A float32 tensor that holds the policy's rate as well as it can is the policy's; another value is an edit."""
    optimizer = CyclicSGD([parameter(2)], lr=torch.tensor(0.1), policy=LinearRamp(7, 0.3))
    assert "edited_by_hand" not in optimizer.state_dict()["param_groups"][0]
    optimizer.param_groups[0]["lr"].fill_(0.05)
    assert optimizer.state_dict()["param_groups"][0]["edited_by_hand"] is True


class Listens(Policy):
    """A policy of the user's that depends on the step and on what was reported."""

    def at(self, step):
        return self.after({"reports": 0}, step)

    def initial_state(self):
        return {"reports": 0}

    def after(self, state, step):
        return 1 / (1 + step + 10 * state["reports"]), 0.1 * step

    def report(self, state, metric):
        return {"reports": state["reports"] + 1}

    def check_state(self, state):
        pass


@pytest.mark.parametrize("compiled", [True, False])
def test_a_policy_that_listens_may_look_at_the_step_too(monkeypatch, compiled):
    """Rate and momentum after each step and each report are what the policy says of the state and the step."""
    if not compiled:
        monkeypatch.setattr(native, "compiled", None)
    optimizer, policy = CyclicSGD([parameter(2)], lr=2.0, policy=Listens()), Listens()
    (group,) = optimizer.param_groups
    for step in range(6):
        for reports in (step, step + 1):
            factor, momentum = policy.after({"reports": reports}, step)
            assert (group["lr"], group["momentum"]) == (2.0 * factor, momentum)
            if reports == step:
                optimizer.report(1.0)
        optimizer.step()


def test_a_report_that_changes_nothing_leaves_an_edited_rate_alone():
    """Only a report that lowers the rate puts it in force; otherwise an edit of group["lr"] stays for the next step."""
    optimizer = CyclicSGD([parameter(2)], lr=1.0, policy=Plateau(factor=0.5, patience=1))
    (group,) = optimizer.param_groups
    for metric in (3.0, 3.0, 3.0):
        optimizer.report(metric)
    assert group["lr"] == 0.5
    group["lr"] = 7.0
    optimizer.report(2.0)
    assert group["lr"] == 7.0


def test_a_checkpoint_without_a_state_of_reports_starts_anew():
    """A Plateau goes on from a checkpoint that lacks its state as if nothing had been reported."""
    optimizer = CyclicSGD([parameter(2)], policy=Plateau())
    checkpoint = optimizer.state_dict()
    del checkpoint["param_groups"][0]["policy_state"]
    optimizer.report(1.0)
    optimizer.load_state_dict(checkpoint)
    assert optimizer.param_groups[0]["policy_state"] == Plateau().initial_state()


def test_nothing_of_a_scheduler_stays_behind():
    """Of an SGD checkpoint with a scheduler's keys, the peak and momentum are the code's, and initial_lr goes."""
    plain = torch.optim.SGD([parameter(2)], lr=0.5, momentum=0.5)
    torch.optim.lr_scheduler.CyclicLR(plain, 0.01, 0.3, cycle_momentum=True)
    optimizer = CyclicSGD([parameter(2)], lr=0.1, momentum=0.9, policy=Constant())
    optimizer.load_state_dict(plain.state_dict())
    (group,) = optimizer.param_groups
    assert "initial_lr" not in group
    assert (group["max_lr"], group["lr"], group["momentum"]) == (0.1, 0.1, 0.9)


class FailsAt3(Policy):
    """A policy of the user's that has no answer at step 3."""

    def at(self, step):
        return (math.nan if step == 3 else 1.0), None


def test_loading_asks_the_policy_of_the_step_that_was_saved():
    """A checkpoint of step 2 loads where the policy has an answer for step 2, whatever it says of step 3."""
    optimizer = CyclicSGD([parameter(2)], policy=FailsAt3())
    optimizer.step()
    optimizer.step()
    checkpoint = optimizer.state_dict()
    CyclicSGD([parameter(2)], policy=FailsAt3()).load_state_dict(checkpoint)
    checkpoint["param_groups"][0]["schedule_step"] = 3
    with pytest.raises(ValueError, match="need lr_factor to be a finite number >= 0, got lr_factor=nan at step 3"):
        CyclicSGD([parameter(2)], policy=FailsAt3()).load_state_dict(checkpoint)


def test_a_warning_finds_its_way_out_of_code_without_a_name():
    """Called from code that is in no module, the warning comes all the same."""
    optimizer = CyclicSGD([parameter(2)], lr=0.1, policy=Triangular(5))
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    assert len(warned(lambda: exec("optimizer.step()", {"optimizer": optimizer}))) == 1


def test_a_dry_run_makes_the_buffers_that_are_missing():
    """A dry run gives momentum buffers of 0 to parameters with gradients, and to no others."""
    params = [parameter(2), parameter(3), parameter(4)]
    params[2].grad = None
    optimizer = CyclicSGD(params, lr=0.1, momentum=0.9, policy=Constant())
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    made = optimizer.state[params[1]]["momentum_buffer"]
    assert torch.equal(made, torch.zeros(3))
    assert not made.requires_grad
    assert params[2] not in optimizer.state or "momentum_buffer" not in optimizer.state[params[2]]
    assert (optimizer.param_groups[0]["schedule_step"], optimizer.param_groups[0]["lr"]) == (0, 0.1)


@pytest.mark.parametrize("key", ["found_inf", "grad_scale"])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_loss_scale_that_torchs_loops_do_not_know_fails_as_in_sgd(key, foreach):
    """Without a policy, what AMP leaves for a fused update is refused by the other ones, as torch.optim.SGD does."""
    errors = []
    for kind in (torch.optim.SGD, CyclicSGD):
        optimizer = kind([parameter(2)], lr=0.1, foreach=foreach)
        setattr(optimizer, key, torch.tensor(1.0))
        with pytest.raises(AssertionError) as raised:
            optimizer.step()
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("of_the_group", [False, True])
@pytest.mark.parametrize("policy", [None, Constant()], ids=repr)
def test_what_cannot_be_fused_is_refused_as_in_sgd(policy, of_the_group):
    """fused=True with a complex parameter is SGD's error, with a policy too, as often as it is tried."""
    errors = []
    for make in (torch.optim.SGD, lambda params, **options: CyclicSGD(params, policy=policy, **options)):
        param = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        param.grad = torch.ones(2, dtype=torch.complex64)
        groups = [{"params": [param], "fused": True}] if of_the_group else [param]
        optimizer = make(groups, lr=0.1, **({} if of_the_group else {"fused": True}))
        for _ in range(2):
            with pytest.raises(RuntimeError) as raised:
                optimizer.step()
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


class Subclass(CyclicSGD):
    """With a step of its own round the optimizer's."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("policy", [None, Constant()], ids=repr)
def test_hooks_of_a_subclass_run_once(policy):
    """A subclass whose step calls ours has its hooks called once a step, and the closure's loss returned."""
    optimizer, calls = Subclass([parameter(2)], lr=0.1, policy=policy), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    assert optimizer.step(lambda: calls.append("closure") or 3.0) == 3.0
    assert calls == ["before", "closure", "after"]
    assert optimizer.step() is None
    assert calls == ["before", "closure", "after", "before", "after"]


@pytest.mark.parametrize("policy", [None, OneCycle(20), Plateau()], ids=repr)
@pytest.mark.parametrize("foreach", [None, True, False])
def test_near_a_compiler_the_steps_are_the_same(monkeypatch, policy, foreach):
    """The way round torch.compile takes the same steps, closure and all, as the short one."""
    ends = []
    for near in (False, True):
        with monkeypatch.context() as patch:
            if near:
                patch.setattr(scheduled_module, "compiler_is_near", lambda: True)
                patch.setattr(scheduled_module, "step_is_watched", lambda _: True)
            param = torch.nn.Parameter(torch.ones(3))
            optimizer = CyclicSGD([param], lr=0.1, momentum=0.9, policy=policy, foreach=foreach)
            for step in range(5):
                param.grad = torch.full((3,), 1.0 + step)
                assert (
                    optimizer.step(None if step % 2 else lambda: torch.is_grad_enabled()) is (None, True)[step % 2 == 0]
                )
            ends.append((param.detach().clone(), optimizer.state_dict()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1]["param_groups"] == ends[1][1]["param_groups"]
    assert torch.equal(ends[0][1]["state"][0]["momentum_buffer"], ends[1][1]["state"][0]["momentum_buffer"])


def test_any_dampening_that_sgd_takes_is_taken():
    """Beside a policy, too, dampening may be negative."""
    assert CyclicSGD([parameter(1)], momentum=0.9, dampening=-0.5, policy=Constant()).defaults["dampening"] == -0.5


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1])
def test_ints_of_64_bits_are_taken_and_no_larger_ones(number):
    """What torch's operations can be given is taken to the last int; one further is refused."""
    optimizer = CyclicSGD([parameter(1)], policy=Constant())
    optimizer.add_param_group({"params": [parameter(1)], "dampening": number})
    larger = {"params": [parameter(1)], "dampening": number + (1 if number > 0 else -1)}
    with pytest.raises(TypeError, match="need dampening to be a float, or an int of 64 bits"):
        optimizer.add_param_group(larger)


def test_the_highest_number_of_a_dtype_is_held():
    """A number as high as the parameters' dtype goes is taken."""
    highest = torch.finfo(torch.float32).max
    optimizer = CyclicSGD([parameter(1)], lr=0.1, policy=Constant())
    optimizer.add_param_group({"params": [parameter(1)], "lr": highest, "weight_decay": highest})
    assert optimizer.param_groups[1]["max_lr"] == highest


@pytest.mark.parametrize("lr", [torch.tensor(0.5), torch.tensor([0.5])], ids=["of no dimension", "of one dimension"])
def test_a_rate_may_be_a_tensor_of_either_shape(lr):
    """A tensor lr with one element is taken, whatever its dimension; other numbers must have none."""
    optimizer = CyclicSGD([parameter(1)], lr=lr, policy=Constant(), foreach=False)
    assert (optimizer.param_groups[0]["lr"].shape, optimizer.param_groups[0]["max_lr"]) == (lr.shape, 0.5)


def test_a_number_without_data_is_refused_in_words():
    """A tensor on the meta device holds no number, and nobody asks it for one."""
    with pytest.raises(TypeError, match="need momentum to be a number, got momentum="):
        CyclicSGD([parameter(1)], lr=0.1, momentum=torch.tensor(0.9, device="meta"), policy=Constant())


def test_a_scheduler_shows_also_after_a_load_took_its_mark_away():
    """A checkpoint without a scheduler's keys replaces the groups that had them; the wrapped step still tells."""
    checkpoint = CyclicSGD([parameter(2)], policy=Constant()).state_dict()
    optimizer = CyclicSGD([parameter(2)], policy=Constant())
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    optimizer.load_state_dict(checkpoint)
    assert "initial_lr" not in optimizer.param_groups[0]
    assert len(warned(optimizer.step)) == 1


def test_later_steps_at_rate_0_without_gradients_or_state_count():
    """Only the first step may be a dry run that its rate does not show: later ones count, momentum or not."""
    param = parameter(2)
    optimizer = CyclicSGD([param], lr=0.1, policy=LinearRamp(3, 0.0, 0.0))
    param.grad.fill_(1.0)
    optimizer.step()
    param.grad.zero_()
    optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == 2


@pytest.mark.parametrize("differentiable", [True, False])
def test_loading_keeps_a_graph_where_autograd_goes_through_steps(differentiable):
    """A loaded buffer has its graph with differentiable=True, and none without; it is a tensor of its own."""
    optimizer = CyclicSGD([parameter(2)], momentum=0.9, differentiable=differentiable)
    checkpoint = optimizer.state_dict()
    buffer = torch.ones(2, requires_grad=True) * 3
    checkpoint["state"] = {0: {"momentum_buffer": buffer}}
    optimizer.load_state_dict(checkpoint)
    (state,) = optimizer.state.values()
    assert state["momentum_buffer"].requires_grad is differentiable
    assert state["momentum_buffer"].data_ptr() != buffer.data_ptr()


class Torn(list):
    """Param groups that another thread is writing to: at the first look some are a step further than others."""

    looks = 0

    def __iter__(self):
        self.looks += 1
        steps = [7, 8] if self.looks == 1 else [6 + self.looks] * 2
        return iter([{**group, "schedule_step": step} for group, step in zip(list.copy(self), steps, strict=True)])


def test_groups_of_different_moments_are_looked_at_again():
    """A state dict has the groups of one moment, at which all of them had made the same steps."""
    optimizer = CyclicSGD([{"params": [parameter(2)]}, {"params": [parameter(3)]}], policy=Constant())
    optimizer.param_groups = Torn(optimizer.param_groups)
    saved = optimizer.state_dict()["param_groups"]
    assert [group["schedule_step"] for group in saved] == [9, 9]


class Twice(CyclicSGD):
    """A subclass that lets a closure take steps before its own."""

    def step(self, closure=None):
        if closure is None:
            return super().step()
        loss = closure()
        assert super().step(closure=lambda: loss) == loss
        return loss


def test_a_step_within_a_subclasss_step_has_hooks_of_its_own():
    """Each step, of the subclass and within it, has its hooks once, and super().step() gets what it is given."""
    optimizer, seen = Twice([parameter(2)], policy=Constant()), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))

    def closure():
        optimizer.step()
        return 3.0

    assert optimizer.step(closure) == 3.0
    assert seen == ["before", "before"]
    assert optimizer.param_groups[0]["schedule_step"] == 2


def test_what_cannot_be_fused_is_refused_before_any_group_moves():
    """An error for a group that asks for fused, and cannot have it, comes before the other groups are updated."""
    param, integers = parameter(2), torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    param.grad.fill_(1.0)
    integers.grad = torch.ones(2, dtype=torch.complex64)
    optimizer = CyclicSGD([{"params": [param]}, {"params": [integers]}], lr=0.1, policy=Constant())
    optimizer.param_groups[1]["fused"] = True
    with pytest.raises(RuntimeError, match="fused"):
        optimizer.step()
    assert param.tolist() == [0.0, 0.0]


def test_a_checkpoint_that_does_not_name_its_policy_is_taken_for_the_codes():
    """Where a group of a checkpoint lacks the policy's name or a state of reports, the code's policy goes on."""
    optimizer = CyclicSGD([parameter(2)], policy=Triangular(5))
    optimizer.step()
    checkpoint = optimizer.state_dict()
    del checkpoint["param_groups"][0]["policy"]
    checkpoint["param_groups"][0]["policy_state"] = None
    other = CyclicSGD([parameter(2)], policy=Triangular(5))
    assert warned(lambda: other.load_state_dict(checkpoint)) == []
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_groups_may_remember_different_reports():
    """Each group's memory of reports is its own, and comes back from a checkpoint."""
    groups = [{"params": [parameter(2)]}, {"params": [parameter(3)]}]
    optimizer = CyclicSGD(groups, policy=Plateau(patience=3))
    checkpoint = optimizer.state_dict()
    optimizer.report(2.0)
    checkpoint["param_groups"][1]["policy_state"] = optimizer.state_dict()["param_groups"][1]["policy_state"]
    optimizer.load_state_dict(checkpoint)
    assert [group["policy_state"]["best"] for group in optimizer.param_groups] == [math.inf, 2.0]
    optimizer.report(1.0)
    assert [group["policy_state"]["best"] for group in optimizer.param_groups] == [1.0, 1.0]


def test_a_dry_run_without_momentum_makes_no_state():
    """What a dry run creates is what a step would: without momentum there are no buffers."""
    optimizer = CyclicSGD([parameter(2)], lr=0.1, policy=Constant())
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == 0
    assert not any(optimizer.state.values())


def test_the_mark_of_a_scheduler_alone_is_not_warned_of():
    """Groups that carry initial_lr, with nobody to write lr, are no reason for a warning."""
    optimizer = CyclicSGD([parameter(2)], lr=0.1, policy=Triangular(5))
    optimizer.param_groups[0]["initial_lr"] = 0.1
    assert warned(optimizer.step) == []


def test_a_compiler_is_near_while_it_traces_or_watches(monkeypatch):
    """Plain training does not go the long way round torch.compile; what is traced, or called by what was, does."""
    assert not torch_private.compiler_is_near()
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert torch_private.compiler_is_near()
    monkeypatch.setattr(torch_private, "_eval_frame_callback", lambda: "watching")
    assert torch_private.compiler_is_near()


def test_traced_without_a_policy_a_step_is_an_update(monkeypatch):
    """While torch.compile traces a step without a policy, it is torch's own update."""
    param = parameter(2)
    param.grad.fill_(1.0)
    optimizer = CyclicSGD([param], lr=0.5)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    optimizer._compiled_plain_step(None)
    assert param.tolist() == [-0.5, -0.5]


def test_the_rate_of_every_group_is_remembered():
    """A group that joins does not make those before it forget that their rates are the schedule's own."""
    optimizer = CyclicSGD([{"params": [parameter(2)]}, {"params": [parameter(3)]}], policy=LinearRamp(3, 0.0))
    optimizer.step()  # all rates and all gradients are 0: no dry run, as nobody but the policy wrote the rates
    assert [group["schedule_step"] for group in optimizer.param_groups] == [1, 1]


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize(
    ("policy", "module", "step"),
    [(Constant(), host_schedules, "_uncompiled_step"), (None, sgd_module, "_uncompiled_plain_step")],
    ids=["policy", "sgd"],
)
def test_near_a_compiler_the_step_is_out_of_its_sight(monkeypatch, policy, module, step, near):
    """Near a compiler, and only there, the step is the one that torch.compile must not look into."""
    calls = []
    monkeypatch.setattr(module, step, lambda *given: calls.append(given))
    monkeypatch.setattr(scheduled_module, "compiler_is_near", lambda: near)
    monkeypatch.setattr(scheduled_module, "step_is_watched", lambda _: near)
    CyclicSGD([parameter(2)], policy=policy).step()
    assert len(calls) == near


def test_near_a_compiler_autograd_goes_through_steps_where_it_may(monkeypatch):
    """The way round torch.compile keeps the graph of a differentiable step, too."""
    monkeypatch.setattr(scheduled_module, "compiler_is_near", lambda: True)
    monkeypatch.setattr(scheduled_module, "step_is_watched", lambda _: True)
    param = torch.ones(2, requires_grad=True).clone()
    param.grad = torch.ones(2)
    CyclicSGD([param], lr=0.1, differentiable=True).step()
    assert "Add" in type(param.grad_fn).__name__


@pytest.mark.parametrize("hooked", [False, True])
def test_traced_on_the_device_a_step_does_all_that_it_is_given(monkeypatch, hooked):
    """While torch.compile traces a capturable step, its closure is called and its hooks run."""
    param = parameter(2)
    param.grad.fill_(1.0)
    optimizer, seen = CyclicSGD([param], lr=0.5, policy=Constant(), capturable=True), []
    if hooked:
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert optimizer.step(closure=lambda: seen.append("closure") or 3.0) == 3.0
    assert optimizer.step(lambda: 4.0) == 4.0
    monkeypatch.undo()
    assert seen == (["before", "closure", "before"] if hooked else ["closure"])
    assert param.tolist() == [-1.0, -1.0]
    assert optimizer.state_dict()["param_groups"][0]["schedule_step"] == 2


# --- the device path


def test_groups_that_join_on_the_device_have_peaks_of_their_own():
    """Each group added later joins the cycle where it stands, at its own peak."""
    optimizer = CyclicSGD([parameter(2)], lr=0.1, policy=Triangular(4), capturable=True)
    optimizer.step()
    for lr in (0.2, 0.4):
        optimizer.add_param_group({"params": [parameter(1)], "lr": lr})
    optimizer.step()
    factor, momentum, _ = Triangular(4).at(2)
    for group, peak in zip(optimizer.param_groups, (0.1, 0.2, 0.4), strict=True):
        assert group["max_lr"].item() == peak
        assert group["lr"].item() == pytest.approx(peak * factor, rel=1e-6)
        assert group["momentum"].item() == pytest.approx(momentum, rel=1e-6)
        assert group["schedule_step"].item() == 2


def clock(policy, **options):
    step, horizon = options.get("step", 0), options.get("horizon")
    made = DeviceClock(torch.device("cpu"), horizon)
    made.join()
    made.fill(made.parts_for([Position(policy, None, step)]), [step])
    return made


@pytest.mark.parametrize(
    ("policy", "horizon", "rows"),
    [
        (LinearRamp(10), None, 11),
        (LinearRamp(10), 12, 11),
        (LinearRamp(10), 11, 11),
        (LinearRamp(10), 10, 10),
        (LinearRamp(10), 1, 1),
        (Constant(), None, 1),
        (Triangular(4), None, 8),
        (Triangular(4), 8, 8),
        (Triangular(4), 100, 8),
        (InverseTimeDecay(0.1), 7, 7),
        (InverseTimeDecay(0.1), None, 100_000),
    ],
    ids=repr,
)
def test_a_table_is_as_long_as_it_need_be(policy, horizon, rows):
    """One row for each step up to the end, or of the period, or of the horizon, which is 100,000 by default."""
    made = clock(policy, horizon=horizon)
    assert made.parts[0].rows.shape == (rows, 3)
    assert len(made.table) >= rows


def test_the_longest_table_without_a_horizon():
    """A table of 2**20 rows is made without being asked for, one of a row more is not, unless there is a horizon."""
    assert _extent(LinearRamp(2**20 - 1), None) == (None, 2**20, False)
    with pytest.raises(ValueError, match="need a policy of at most 1048576 steps"):
        _extent(LinearRamp(2**20), None)
    assert _extent(LinearRamp(2**20), 2**21) == (None, 2**20 + 1, False)
    assert _extent(Triangular(2**19), None) == (2**20, 2**20, False)


def test_the_default_horizon():
    """A policy that neither ends nor repeats is tabulated for 100,000 steps from where it stands."""
    assert _extent(InverseTimeDecay(1.0), None) == (None, 100_000, True)
    assert _extent(InverseTimeDecay(1.0), 5) == (None, 5, True)


def test_which_step_holds():
    """Past the last row the last row's step holds; of a periodic policy every step is its own."""
    assert [clock(LinearRamp(10)).parts[0].row_step(step) for step in (0, 10, 11, 99)] == [0, 10, 10, 10]
    assert [clock(InverseTimeDecay(1), step=5, horizon=3).parts[0].row_step(step) for step in (5, 7, 8, 99)] == [
        5,
        7,
        7,
        7,
    ]
    assert [clock(LinearRamp(10), step=5, horizon=3).parts[0].row_step(step) for step in (5, 7, 8, 99)] == [5, 7, 7, 7]
    assert [clock(Triangular(4)).parts[0].row_step(step) for step in (0, 8, 99)] == [0, 8, 99]


def test_what_is_on_the_device_does_not_follow_the_default_dtype():
    """Rates and momenta are float32, peaks and the table float64, whatever torch's default is."""
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            made = clock(Triangular(4))
        finally:
            torch.set_default_dtype(torch.float32)
        held = made.lr[0], made.momentum[0], made.max_lr[0], made.table, made.step, made.place
        assert [tensor.dtype for tensor in held] == [
            torch.float32,
            torch.float32,
            torch.float64,
            torch.float64,
            torch.int64,
            torch.int64,
        ]


@pytest.mark.parametrize("policy", [Triangular(2), LinearRamp(3), InverseTimeDecay(1.0), OneCycle(12)], ids=repr)
def test_a_tick_puts_the_next_values_in_force(policy):
    """After each tick rate, momentum and counter are the policy's; one that found an inf changes nothing."""
    made = clock(policy, step=2, horizon=20)
    made.max_lr[0].fill_(0.7)
    made.momentum[0].fill_(0.25)
    for step in range(3, 15):
        before = [tensor.clone() for tensor in made.tensors]
        made.tick(torch.tensor([1.0]))
        assert all(torch.equal(*pair) for pair in zip(before, made.tensors, strict=True) if not pair[0].isnan().any())
        made.tick(None if step % 2 else torch.tensor([0.0]))
        lr_factor, momentum, _ = policy.at(step)
        assert made.steps[0].item() == step
        assert made.lr[0].item() == torch.tensor(0.7 * lr_factor, dtype=torch.float32).item()
        assert made.momentum[0].item() == torch.tensor(0.25 if momentum is None else momentum).item()


def test_what_a_table_says_of_the_whole_schedule():
    """The highest factor of all rows, and whether any of them has a momentum, is known."""
    (rising,), (cycling,) = clock(LinearRamp(5, 0.1, 0.6)).parts, clock(Triangular(2)).parts
    assert (rising.highest_factor, rising.cycles_momentum) == (0.6, False)
    assert (cycling.highest_factor, cycling.cycles_momentum) == (1.0, True)
    assert rising.rows[:, 1].isnan().all()
