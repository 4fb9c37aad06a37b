"""``CyclicAdamW(capturable=True)`` and its like: one compiled step, whose rate and momentum go on cycling.

On the CPU torch takes a capturable step only where it is compiled.
"""

import copy
import pickle

import pytest
import torch
import torch_versions
from helpers import DEEP, params_of, through_a_file
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import held_momentum, policies
from torch._dynamo.utils import counters
from torch.optim import Adam, AdamW, NAdam, RMSprop

from cyclic_optim import (
    Constant,
    CosineDecay,
    CyclicAdamW,
    ExponentialDecay,
    InverseTimeDecay,
    OneCycle,
    Plateau,
    Triangular,
    cyclic,
)

STEPS = 200


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def two_groups(cls=CyclicAdamW, *, seed=0, shapes=((3, 4), (5,), ()), peaks=(0.05, 0.01), **options):
    """An optimizer of two groups, with the peaks given."""
    torch.manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    groups = [{"params": params[:1], "lr": peaks[0]}, {"params": params[1:], "lr": peaks[1]}]
    return cls(groups, **options)


def set_grads(optimizer, step):
    generator = torch.Generator().manual_seed(step)
    for param in params_of(optimizer):
        # Into the same memory, as a graph reads it.
        grad = torch.randn(param.shape, generator=generator)
        param.grad = grad if param.grad is None else param.grad.copy_(grad)


def compiled(optimizer, backend="aot_eager" if DEEP else "eager"):
    """Its step in one graph: "aot_eager" traces all that inductor would; "eager" compiles twice as fast."""
    return torch.compile(optimizer.step, fullgraph=True, backend=backend)


def run(optimizer, step_of, steps, recompiles=False):
    """Make these steps; a second compilation is an error."""
    for step in steps:
        set_grads(optimizer, step)
        with torch._dynamo.config.patch(error_on_recompile=not recompiles):
            step_of()


def set_by_hand(optimizer, policy, step, peaks=(0.05, 0.01)):
    lr_factor, momentum, _ = policy.at(step)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * lr_factor
        if momentum is not None:
            group["betas"] = (momentum, *group["betas"][1:])


def assert_at(optimizer, policy, step, peaks=(0.05, 0.01)):
    """The groups show the policy's values of this step."""
    lr_factor, momentum, _ = policy.at(step)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        assert group["schedule_step"].item() == step
        assert group["lr"].item() == torch.tensor(peak * lr_factor, dtype=torch.float32).item()
        if momentum is not None:
            assert group["betas"][0].item() == held_momentum(momentum)


def assert_close(ours, theirs, tolerance=2e-5):
    for mine, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def is_bounded(policy):
    """Whether its table is small; momentum near 1 or tiny rates are fine."""
    return (policy.end or policy.period or 10**9) < 10**5


def shown_tensors(optimizer):
    """What the groups show: the very objects."""
    return [
        tensor
        for group in optimizer.param_groups
        for tensor in (group["lr"], group["max_lr"], group["schedule_step"], *group["betas"])
        if isinstance(tensor, torch.Tensor)
    ]


# --- the update


@settings(max_examples=4, phases=[Phase.explicit, Phase.generate])  # each takes a second; shrinking, minutes
@given(
    policy=policies("Triangular", "OneCycle", "Sequential").filter(
        lambda policy: is_bounded(policy) and policy.at(0).momentum is not None
    ),
    amsgrad=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_a_compiled_step_cycles_by_itself(policy, amsgrad, weight_decay):
    """200 steps of one compilation: rate and beta1 are the policy's, weights those of AdamW driven by hand."""
    torch._dynamo.reset()
    counters.clear()
    options = {"amsgrad": amsgrad, "weight_decay": weight_decay}
    optimizer = two_groups(policy=policy, capturable=True, **options)
    twin = two_groups(AdamW, **options)
    step_of = compiled(optimizer, "aot_eager")
    for step in range(STEPS):
        assert_at(optimizer, policy, step)
        set_by_hand(twin, policy, step)
        set_grads(twin, step)
        twin.step()
        run(optimizer, step_of, [step])
    assert_at(optimizer, policy, STEPS)
    assert_close(optimizer, twin, 1e-4)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("cls", [Adam, AdamW])
def test_inductor_compiles_it_once(cls):
    """The default backend: one compilation, the same values and weights."""
    policy = OneCycle(40)
    optimizer, twin = two_groups(cyclic(cls), policy=policy, capturable=True), two_groups(cls)
    step_of = compiled(optimizer, "inductor")
    for step in range(50):
        set_by_hand(twin, policy, step)
        set_grads(twin, step)
        twin.step()
        run(optimizer, step_of, [step])
        assert_at(optimizer, policy, step + 1)
    assert_close(optimizer, twin)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("options", [{"foreach": True}, {"maximize": True}])
def test_flags_are_honoured(options):
    """foreach and maximize: the weights are those of AdamW with the same flag."""
    policy = Triangular(4)
    optimizer, twin = two_groups(policy=policy, capturable=True, **options), two_groups(AdamW, **options)
    step_of = compiled(optimizer)
    for step in range(12):
        set_by_hand(twin, policy, step)
        set_grads(twin, step)
        twin.step()
        run(optimizer, step_of, [step])
    assert_close(optimizer, twin)


def test_without_momentum_cycling_betas_stay_floats():
    """Only what the policy moves is a tensor."""
    policy = CosineDecay(30)
    optimizer, twin = two_groups(policy=policy, capturable=True), two_groups(AdamW)
    step_of = compiled(optimizer)
    for step in range(40):
        set_by_hand(twin, policy, step)
        set_grads(twin, step)
        twin.step()
        run(optimizer, step_of, [step])
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        assert_at(optimizer, policy, step + 1)
    assert_close(optimizer, twin)
    assert counters["stats"]["unique_graphs"] == 1


def test_rmsprop_is_compiled():
    """A base without tensor momentum: its rate cycles, its momentum is the number given."""
    policy = OneCycle(30, cycle_momentum=False)
    optimizer = two_groups(cyclic(RMSprop), policy=policy, capturable=True, momentum=0.9)
    twin = two_groups(RMSprop, momentum=0.9)
    step_of = compiled(optimizer)
    for step in range(40):
        lr_factor = policy.at(step).lr_factor
        for group, peak in zip(twin.param_groups, (0.05, 0.01), strict=True):
            group["lr"] = peak * lr_factor
        set_grads(twin, step)
        twin.step()
        run(optimizer, step_of, [step])
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert_close(optimizer, twin, 1e-4)
    assert counters["stats"]["unique_graphs"] == 1


def test_groups_differ():
    """A group of its own policy, and one without: each at its values, in one graph."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    policy, other = Triangular(4), CosineDecay(10)
    groups = [{"params": params[:1]}, {"params": params[1:2], "policy": other}, {"params": params[2:], "policy": None}]
    optimizer = CyclicAdamW(groups, lr=0.1, policy=policy, capturable=True)
    step_of = compiled(optimizer)
    run(optimizer, step_of, range(7))
    first, second, third = optimizer.param_groups
    assert first["betas"][0].item() == pytest.approx(policy.at(7).momentum)
    assert second["lr"].item() == pytest.approx(0.1 * other.at(7).lr_factor)
    assert (second["betas"], third["betas"]) == ((0.9, 0.999),) * 2
    assert third["lr"].item() == pytest.approx(0.1)
    assert "schedule_step" not in third


# --- what is refused


@pytest.mark.parametrize("cls", [NAdam, RMSprop])
def test_a_momentum_that_is_no_tensor_cannot_cycle(cls):
    """Bases that take momentum as a number only are refused beside a policy that cycles it, with the way out."""
    with pytest.raises(ValueError, match=f"need cycle_momentum=False with capturable=True and {cls.__name__}, which"):
        two_groups(cyclic(cls), policy=OneCycle(10), capturable=True)
    two_groups(cyclic(cls), policy=OneCycle(10, cycle_momentum=False), capturable=True)


def test_the_fused_update_takes_momentum_as_a_number():
    """fused=True beside a policy that cycles momentum is refused, as the rate alone is not."""
    with pytest.raises(ValueError, match="need fused unset with capturable=True beside a policy that cycles momentum"):
        two_groups(policy=OneCycle(10), capturable=True, fused=True)
    optimizer = two_groups(policy=OneCycle(10, cycle_momentum=False), capturable=True, fused=True)
    with pytest.raises(ValueError, match="need fused unset"):
        optimizer.reschedule(policy=OneCycle(10))
    assert optimizer.policies == [OneCycle(10, cycle_momentum=False)] * 2


def test_a_step_that_is_not_compiled_is_refused_by_torch():
    """On the CPU; nothing has moved then, the clock included."""
    optimizer = two_groups(policy=OneCycle(10), capturable=True)
    set_grads(optimizer, 0)
    before = copy.deepcopy(params_of(optimizer))
    with pytest.raises(AssertionError, match="If capturable=True"):
        optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"].item() == 0
    assert all(map(torch.equal, params_of(optimizer), before))


def test_the_base_class_says_whether_it_unscales():
    """GradScaler hands its scale to a step that takes it: the fused one, and not the others."""
    policy = OneCycle(10, cycle_momentum=False)
    for fused in (None, True):
        optimizer = two_groups(policy=policy, capturable=True, fused=fused)
        for one in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert getattr(one, "_step_supports_amp_scaling", False) is bool(fused)


def test_a_loss_scaler_skips():
    """Under GradScaler a skipped step leaves weights and clock, and the gradients of the others are unscaled."""
    policy = Triangular(4)
    optimizer, twin = two_groups(policy=policy, capturable=True), two_groups(AdamW)
    optimizer.step = compiled(optimizer)
    scaler, applied = torch.amp.GradScaler("cpu", init_scale=8.0), 0
    for step, overflow in enumerate([False, True, False, True, False]):
        scaler.scale(torch.ones(()))  # creates the scale
        set_grads(optimizer, step)
        for param in params_of(optimizer):
            param.grad.mul_(float("inf") if overflow else scaler.get_scale())
        if not overflow:
            set_by_hand(twin, policy, applied)
            set_grads(twin, step)
            twin.step()
            applied += 1
        scaler.step(optimizer)
        scaler.update()
        assert_at(optimizer, policy, applied)
        assert_close(optimizer, twin)


# --- checkpoints and changes


def test_a_state_dict_is_plain_numbers():
    """Groups are saved as by an optimizer that is not capturable, in full precision."""
    optimizer = two_groups(policy=OneCycle(30), capturable=True, betas=(0.9, 0.98))
    run(optimizer, compiled(optimizer), range(5))
    lr_factor, momentum, _ = OneCycle(30).at(5)
    for group, peak in zip(through_a_file(optimizer.state_dict())["param_groups"], (0.05, 0.01), strict=True):
        assert group["lr"] == peak * lr_factor
        assert group["betas"] == (momentum, 0.98)
        assert (type(group["max_lr"]), type(group["schedule_step"])) == (float, int)
        assert (group["max_lr"], group["schedule_step"]) == (peak, 5)


def test_loading_goes_into_the_same_tensors():
    """A compiled step goes on from a loaded checkpoint without a second compilation, beta2 included."""
    policy = OneCycle(60)
    source = two_groups(policy=policy, capturable=True, betas=(0.9, 0.9))
    run(source, compiled(source), range(20))
    torch._dynamo.reset()  # code compiled for another optimizer would count as compiled again
    counters.clear()
    optimizer = two_groups(policy=policy, capturable=True)
    step_of = compiled(optimizer)
    run(optimizer, step_of, range(3))
    before = shown_tensors(optimizer)
    optimizer.load_state_dict(through_a_file(source.state_dict()))
    assert all(one is other for one, other in zip(shown_tensors(optimizer), before, strict=True))
    with torch.no_grad():
        for param, its in zip(params_of(optimizer), params_of(source), strict=True):
            param.copy_(its)
    assert_at(optimizer, policy, 20)
    assert optimizer.param_groups[0]["betas"][1].item() == pytest.approx(0.9)
    run(optimizer, step_of, range(20, 40))
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
    run(source, compiled(source), range(20, 40))
    assert_close(optimizer, source, 1e-6)


def test_a_failed_load_leaves_the_tensors_as_they_were(monkeypatch):
    """A checkpoint that is refused, or an interrupt at the end of loading, changes no value, beta2 included."""
    optimizer = two_groups(policy=OneCycle(60), capturable=True)
    run(optimizer, compiled(optimizer), range(3))
    before = [tensor.clone() for tensor in shown_tensors(optimizer)]
    good = through_a_file(two_groups(policy=OneCycle(60), betas=(0.5, 0.5)).state_dict())
    wrong = copy.deepcopy(good)
    wrong["param_groups"][1]["lr"] = wrong["param_groups"][1]["max_lr"] = 1e39
    with pytest.raises(ValueError, match="need"):
        optimizer.load_state_dict(wrong)
    assert all(map(torch.equal, shown_tensors(optimizer), before))
    monkeypatch.setattr(optimizer._schedules.update, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        optimizer.load_state_dict(good)
    assert all(map(torch.equal, shown_tensors(optimizer), before))


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("capturable", [True, False])
def test_capturable_is_the_codes(capturable):
    """A checkpoint of the other kind is loaded as what the code says, and the run goes on."""
    policy = OneCycle(30)
    source = two_groups(policy=policy, capturable=not capturable)
    run(source, source.step if capturable else compiled(source), range(5))
    optimizer = two_groups(policy=policy, capturable=capturable)
    optimizer.load_state_dict(through_a_file(source.state_dict()))
    assert {group["capturable"] for group in optimizer.param_groups} == {capturable}
    with torch.no_grad():
        for param, its in zip(params_of(optimizer), params_of(source), strict=True):
            param.copy_(its)
    run(optimizer, compiled(optimizer) if capturable else optimizer.step, range(5, 10))
    run(source, source.step if capturable else compiled(source), range(5, 10), recompiles=True)
    assert_close(optimizer, source)
    assert [float(group["schedule_step"]) for group in optimizer.param_groups] == [10, 10]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_go_on_alone(duplicate):
    """A copy in mid-run has tensors of its own, and goes on as the original does."""
    policy = OneCycle(30)
    optimizer = two_groups(policy=policy, capturable=True)
    run(optimizer, compiled(optimizer), range(4))
    other = duplicate(optimizer)
    assert not {id(one) for one in shown_tensors(other)} & {id(one) for one in shown_tensors(optimizer)}
    torch._dynamo.reset()
    run(other, compiled(other), range(4, 9))
    assert_at(optimizer, policy, 4)
    assert_at(other, policy, 9)
    torch._dynamo.reset()
    run(optimizer, compiled(optimizer), range(4, 9))
    assert_close(other, optimizer, 1e-6)


@pytest.mark.parametrize(
    ("changes", "policy", "step", "peaks"),
    [
        ({"lr": [0.2, 0.1]}, OneCycle(60), 3, (0.2, 0.1)),
        ({"step": 30}, OneCycle(60), 30, (0.05, 0.01)),
        ({"policy": Triangular(7)}, Triangular(7), 3, (0.05, 0.01)),
        ({"policy": Triangular(7), "lr": 0.3, "step": 2}, Triangular(7), 2, (0.3, 0.3)),
    ],
)
def test_reschedule_goes_into_the_same_tensors(changes, policy, step, peaks):
    """A compiled step follows each change: one of peak or clock as it is, another policy in a second compilation."""
    optimizer = two_groups(policy=OneCycle(60), capturable=True)
    step_of = compiled(optimizer)
    run(optimizer, step_of, range(3))
    before = shown_tensors(optimizer)
    optimizer.reschedule(**changes)
    assert_at(optimizer, policy, step, peaks)
    assert all(one is other for one, other in zip(shown_tensors(optimizer), before, strict=True))
    run(optimizer, step_of, range(3, 8), recompiles="policy" in changes)  # the groups hold it as text
    assert_at(optimizer, policy, step + 5, peaks)
    assert counters["stats"]["unique_graphs"] == 1 + ("policy" in changes)
    optimizer.reschedule(policy=OneCycle(60), lr=[0.05, 0.01], step=3)
    run(optimizer, step_of, range(3, 8))  # compiled before
    assert_at(optimizer, OneCycle(60), 8)


@torch_versions.compiles_edits
def test_edits_by_hand_are_followed():
    """lr and betas edited by hand count for one step; beta2 stays, is shown as a tensor and saved as a number."""
    policy, twin = OneCycle(60), two_groups(AdamW)
    optimizer = two_groups(policy=policy, capturable=True)
    step_of = compiled(optimizer)
    own = optimizer.param_groups[0]["betas"]
    for step in range(5):
        set_by_hand(twin, policy, step)
        if step == 2:
            for one in (optimizer, twin):
                one.param_groups[0].update(lr=0.3, betas=(0.5, 0.9))
            assert optimizer.state_dict()["param_groups"][0]["betas"] == (0.5, 0.9)
        if step > 2:
            twin.param_groups[0]["betas"] = (policy.at(step).momentum, 0.9)
        set_grads(twin, step)
        twin.step()
        run(optimizer, step_of, [step], recompiles=True)
    assert_close(optimizer, twin)
    assert optimizer.param_groups[0]["betas"] is own
    assert optimizer.state_dict()["param_groups"][0]["betas"] == (policy.at(5).momentum, 0.9)


@torch_versions.compiles_edits
def test_a_plateau_is_told():
    """report() lowers the rate in the tensors that a compiled step reads; few reports compile it anew."""
    optimizer = two_groups(policy=Plateau(patience=0, factor=0.5), capturable=True)
    step_of = compiled(optimizer, "aot_eager")
    run(optimizer, step_of, range(2))
    optimizer.report(1.0)
    optimizer.report(2.0)
    run(optimizer, step_of, range(2, 4), recompiles=True)
    assert [group["lr"].item() for group in optimizer.param_groups] == pytest.approx([0.025, 0.005])
    for report in range(20):
        optimizer.report(1 / (report + 2))
        run(optimizer, step_of, [report], recompiles=True)
    assert counters["stats"]["unique_graphs"] <= 4


def test_a_group_joins_where_the_others_stand():
    """add_param_group in mid-run: the new group shows tensors, too, and is updated."""
    policy = Triangular(4)
    optimizer = two_groups(policy=policy, capturable=True)
    step_of = compiled(optimizer)
    run(optimizer, step_of, range(3))
    late = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late], "lr": 0.2})
    assert_at(optimizer, policy, 3, (0.05, 0.01, 0.2))
    run(optimizer, step_of, range(3, 6), recompiles=True)
    assert_at(optimizer, policy, 6, (0.05, 0.01, 0.2))
    assert not torch.equal(late, torch.ones(2))


def test_capturable_without_a_policy_is_the_base():
    """Groups and weights are AdamW's, compiled as AdamW is."""
    optimizer, twin = two_groups(capturable=True), two_groups(AdamW, capturable=True)
    run(optimizer, torch.compile(optimizer.step, backend="aot_eager"), range(3), recompiles=True)
    run(twin, torch.compile(twin.step, backend="aot_eager"), range(3), recompiles=True)
    assert optimizer.state_dict()["param_groups"] == twin.state_dict()["param_groups"]
    assert_close(optimizer, twin, 0)


def test_a_policy_without_end_is_tabulated():
    """ExponentialDecay goes on for its 100,000 rows; a policy that neither ends nor repeats is taken, too."""
    for policy in (ExponentialDecay(0.99), InverseTimeDecay(0.1), Constant()):
        optimizer = two_groups(policy=policy, capturable=True)
        torch._dynamo.reset()
        run(optimizer, compiled(optimizer), range(3))
        assert_at(optimizer, policy, 3)
