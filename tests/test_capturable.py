"""``capturable=True``: a step that never asks the host, in one graph, and is otherwise the same."""

import copy
import pickle
import warnings

import pytest
import torch
from helpers import assert_same, through_a_file
from hypothesis import example, given
from hypothesis import strategies as st
from questions import NoQuestions
from reference import reference_step
from strategies import Problem, flat, policies, problems, sgd_options
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from cyclic_optim import (
    Combined,
    Constant,
    CyclicSGD,
    InverseTimeDecay,
    LambdaPolicy,
    OneCycle,
    Plateau,
    Triangular,
    lr_range_test,
)
from cyclic_optim.device import sgd as device_sgd

SHOWN = ("lr", "momentum", "max_lr", "schedule_step")


def one_param(policy=None, *, shape=(3,), dtype=torch.float32, device="cpu", capturable=True, **options):
    """A parameter with a gradient, and an optimizer of it."""
    param = torch.nn.Parameter(torch.ones(shape, dtype=dtype, device=device))
    param.grad = torch.full_like(param, 0.5)
    options = {"lr": 1.0, "momentum": 0.9, **options}
    return param, CyclicSGD([param], policy=policy or Triangular(4), capturable=capturable, **options)


def everything(optimizer):
    """All that a step may change, as values."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    params = [param.detach() for group in optimizer.param_groups for param in group["params"]]
    return copy.deepcopy((groups, params, [state for state in optimizer.state.values() if state]))


# --- the update


@given(
    problem=problems(),
    options=sgd_options(),
    policy=policies(without=("LambdaPolicy",)),
    skips=st.lists(st.sampled_from([None, 0.0, 1.0, 2.0, float("nan")]), min_size=1, max_size=7),
    scale=st.sampled_from([None, 1024.0]),
)
@example(
    problem=Problem(shapes=(((),),), dtype=torch.float64, seed=0, absent=0.0),
    options={"lr": 0.5, "momentum": 0.5, "dampening": 0.3},
    policy=Constant(),
    skips=[None, None],  # a float32 dampening shows in float64 parameters
    scale=None,
)
@example(
    problem=Problem(shapes=(((),),), dtype=torch.float64, seed=0, absent=0.0),
    options={"lr": 0.5, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.01},
    policy=Combined(Constant(), None, Constant()),
    skips=[None],  # a weight decay that a policy moves is a float32
    scale=None,
)
def test_it_is_the_plain_update(problem, options, policy, skips, scale):
    """Any groups, options, late gradients, loss scales and skips: the reference's numbers, at the values shown."""
    ours, twins = problem.params(), problem.params()
    buffers: list[dict] = [{} for _ in twins]
    horizon = max(policy.period or 1, 50)
    optimizer = CyclicSGD([{"params": p} for p in ours], policy=policy, capturable=True, horizon=horizon, **options)
    for step, found_inf in enumerate(skips):
        problem.set_grads(ours, step)
        problem.set_grads(twins, step)
        optimizer.grad_scale = optimizer.found_inf = None
        if scale is not None:
            optimizer.grad_scale = torch.tensor(scale)
            for param in flat(ours):
                if param.grad is not None:
                    param.grad *= scale
        if found_inf is not None:
            optimizer.found_inf = torch.tensor(found_inf)
        if found_inf is None or found_inf == 0:
            for twin, known, group in zip(twins, buffers, optimizer.param_groups, strict=True):
                shown = (key for key in ("lr", "momentum", "weight_decay") if isinstance(group[key], torch.Tensor))
                values = {key: group[key].item() for key in shown}
                reference_step(twin, known, **{**options, **values})
        else:
            for param in flat(ours):
                if param.grad is not None:
                    param.grad.fill_(float("inf"))
        grads = [None if param.grad is None else param.grad.clone() for param in flat(ours)]
        optimizer.step()
        for param, grad in zip(flat(ours), grads, strict=True):
            assert grad is None or torch.equal(param.grad, grad)  # the gradient belongs to the caller
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}[problem.dtype]
    for param, twin in zip(flat(ours), flat(twins), strict=True):
        torch.testing.assert_close(param, twin, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"dampening": 0.5, "weight_decay": 0.1, "maximize": True}])
def test_half_precision_is_computed_in_float32(dtype, options):
    """Each step rounds once: from the stored values it is the float32 step, to the bit of what is stored."""
    torch.manual_seed(0)
    param, optimizer = one_param(dtype=dtype, shape=(257,), lr=0.1, **options)
    for step in range(8):
        param.grad = torch.randn(257).to(dtype)
        twin = torch.nn.Parameter(param.detach().float())
        twin.grad = param.grad.float()
        known = {} if step == 0 else {0: optimizer.state[param]["momentum_buffer"].float()}
        group = optimizer.param_groups[0]
        reference_step([twin], known, **{**options, "lr": group["lr"].item(), "momentum": group["momentum"].item()})
        optimizer.step()
        # float32 may be summed in another order, which can tip a rounding.
        torch.testing.assert_close(param.detach(), twin.detach().to(dtype))
        torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], known[0].to(dtype))


def test_layouts_may_differ():
    """Parameter, gradient and buffer may lie in memory in any way."""
    ours, optimizer = one_param(shape=(4, 6))
    twin, reference = one_param(shape=(4, 6), capturable=False, foreach=False)
    for step in range(3):
        twin.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        ours.grad = twin.grad.t().contiguous().t()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, twin)


def test_negated_parameters_and_buffers_are_updated():
    """A lazily negated view is a tensor like others, as on the host."""
    ends = []
    for capturable in (True, False):
        param, optimizer = one_param(Constant(), lr=0.1, capturable=capturable)
        optimizer.step()
        param.data = torch._neg_view(param.data)
        optimizer.step()
        optimizer.state[param]["momentum_buffer"] = torch._neg_view(optimizer.state[param]["momentum_buffer"].clone())
        optimizer.step()
        ends.append(param.detach().clone())
    torch.testing.assert_close(*ends)


def test_momentum_that_touches_0_leaves_buffers():
    """At a momentum of exactly 0 SGD does not use its buffers; they are there when it rises again."""
    policy = Triangular(2, base_momentum=0.0, max_momentum=0.9)
    for options in ({}, {"dampening": 0.5}):
        ours, optimizer = one_param(policy, lr=0.1, **options)
        twin, reference = one_param(policy, lr=0.1, capturable=False, foreach=False, **options)
        for _ in range(9):
            optimizer.step()
            reference.step()
            torch.testing.assert_close(ours, twin)


@given(skips=st.lists(st.booleans(), min_size=1, max_size=6), dampening=st.sampled_from([0.0, 0.5]))
def test_a_skip_changes_nothing_under_grad_scaler(skips, dampening):
    """With GradScaler, which hands over scale and verdict, skipped steps leave all as it was, the first one too."""
    param, optimizer = one_param(lr=0.1, dampening=dampening)
    twin, known = torch.nn.Parameter(param.detach().clone()), {}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    for i, skip in enumerate(skips):
        scaler.scale(torch.ones(()))
        twin.grad = torch.full_like(twin, i + 1.0)
        param.grad = twin.grad * scaler.get_scale()
        if skip:
            param.grad[0] = float("inf")
        else:
            group = optimizer.param_groups[0]
            values = {"lr": group["lr"].item(), "momentum": group["momentum"].item()}
            reference_step([twin], known, dampening=dampening, **values)
        before = everything(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if skip:
            assert_same(everything(optimizer), before)
    torch.testing.assert_close(param, twin)
    assert optimizer.param_groups[0]["schedule_step"].item() == skips.count(False)


def test_parameters_can_be_clipped_first():
    """After ``scaler.unscale_`` and clipping, gradients are taken as they are."""
    param, optimizer = one_param(Constant(), momentum=0, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    param.grad = torch.full_like(param, 1024.0)
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_([param], 0.5)
    expected = param.detach() - 0.1 * param.grad
    scaler.step(optimizer)
    torch.testing.assert_close(param.detach(), expected)


@pytest.mark.parametrize("error", [ImportError("no triton"), RuntimeError("0 active drivers")])
def test_an_unusable_triton_is_no_error(error, monkeypatch):
    """Where the kernel cannot be imported or built for tensors on CUDA, the portable update is taken, silently."""

    def fail(*_):
        raise error

    monkeypatch.setattr(device_sgd, "import_module", fail)
    with FakeTensorMode():  # tensors that say they are on CUDA, without one
        values = torch.empty((), device="cuda"), torch.empty((), device="cuda")
        row = device_sgd.DeviceRow(torch.empty(3, device="cuda"), None, None, *values, 0.0, 0.0, False, False)
        assert row.param.is_cuda
        assert isinstance(device_sgd.choose_device_update([row]), device_sgd.PortableUpdate)


# --- no question to the host

OPTIONS = [{}, {"nesterov": True}, {"dampening": 0.5, "weight_decay": 0.1, "maximize": True}, {"momentum": 0.0}]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("policy", [Triangular(4), OneCycle(10), InverseTimeDecay(0.1)], ids=str)
def test_a_step_asks_the_device_nothing(device, options, policy):
    """No synchronising operation in a step, with a scaler and without; on "meta" nothing has a value to ask for."""
    options = {"horizon": 20, "momentum": 0.9, **options}
    _, optimizer = one_param(policy, device=device, **options)
    with NoQuestions():
        optimizer.step()
        optimizer.grad_scale = torch.ones((), device=device)
        optimizer.found_inf = torch.zeros((), device=device)
        optimizer.step()


def test_grad_scaler_asks_the_device_nothing():
    """GradScaler leaves unscaling and the verdict to the step, and its own part does not wait either."""
    param, optimizer = one_param()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    param.grad[0] = float("inf")
    with NoQuestions():
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.param_groups[0]["schedule_step"].item() == 0
    assert scaler.get_scale() == 512.0


def test_the_mode_finds_a_question():
    """The mode that the test above relies on does fail, on a step of the host's path under a scaler."""
    _, optimizer = one_param(capturable=False)
    optimizer.found_inf = torch.zeros(())
    with NoQuestions(), pytest.raises(AssertionError, match="waits for the device"):
        optimizer.step()


# --- torch.compile


class Inductor:
    """torch.compile's default backend, counting the graphs it has compiled.

    Those that it gave up for a better one, as it may when none is in its cache on disk yet, do not count.
    """

    frame_count = 0

    def __call__(self, graph, inputs):
        compiled = lookup_backend("inductor")(graph, inputs)
        self.frame_count += 1
        return compiled


@pytest.fixture
def inductor():
    """A backend that counts."""
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler uses what torch deprecates
        yield Inductor()
    torch._dynamo.reset()


def assert_one_graph(inductor):
    """One graph was compiled in all, and none was broken."""
    assert inductor.frame_count == 1
    assert not counters["graph_break"]


def model_and(make):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    return model, make(model.parameters())


def set_grads(model, step):
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator)


@pytest.mark.parametrize("options", [{}, {"nesterov": True, "weight_decay": 0.01}], ids=str)
def test_one_graph_for_200_steps(inductor, options):
    """Compiled with fullgraph=True it is one graph, never broken and never compiled again, and steps as eager does."""
    policy = Triangular(7)
    model, optimizer = model_and(lambda ps: CyclicSGD(ps, lr=0.1, policy=policy, capturable=True, **options))
    twin, eager = model_and(lambda ps: CyclicSGD(ps, lr=0.1, policy=policy, **options))
    compiled = torch.compile(optimizer.step, fullgraph=True, backend=inductor)
    shown = set()
    for step in range(200):
        set_grads(model, step)
        set_grads(twin, step)
        compiled()
        eager.step()
        shown.add((optimizer.param_groups[0]["lr"].item(), optimizer.param_groups[0]["momentum"].item()))
    assert_one_graph(inductor)
    assert len(shown) == 8  # both ends of 7 steps up and down, and those between
    assert optimizer.param_groups[0]["schedule_step"].item() == 200
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_sgd_with_a_rate_that_changes_is_compiled_until_torch_gives_up(inductor):
    """What it is better than: SGD with a float rate is compiled anew for every rate, up to torch's limit."""
    model, optimizer = model_and(lambda ps: SGD(ps, lr=0.1, momentum=0.9))
    compiled, graphs = torch.compile(optimizer.step, backend=inductor), []
    set_grads(model, 0)
    with torch._dynamo.config.patch(cache_size_limit=4):
        for step in range(8):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            compiled()
            graphs.append(inductor.frame_count)
    assert graphs[0] < graphs[1] < graphs[2] < graphs[3]
    assert graphs[-1] == graphs[-2]


def test_sgd_with_its_rate_in_a_tensor_is_compiled_twice(inductor):
    """Its first step has no momentum buffers yet; from the second on it follows OneCycleLR, momentum included."""
    (model, optimizer), (twin, eager) = (
        model_and(lambda ps, lr=lr: SGD(ps, lr=lr, momentum=0.9)) for lr in (torch.tensor(0.1), 0.1)
    )
    schedulers = [OneCycleLR(each, 0.1, total_steps=30) for each in (optimizer, eager)]
    compiled, shown = torch.compile(optimizer.step, backend=inductor), set()
    for step in range(25):
        set_grads(model, step)
        set_grads(twin, step)
        compiled()
        eager.step()
        for scheduler in schedulers:
            scheduler.step()
        shown.add(optimizer.param_groups[0]["momentum"])
    assert inductor.frame_count == 2
    assert len(shown) > 10
    for theirs, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_step_follows_edits_and_loads(inductor):
    """The compiled step reads tensors: a rate written into one, and a checkpoint loaded, need no new graph."""
    param, optimizer = one_param(lr=0.1)
    twin, eager = one_param(lr=0.1, capturable=False)
    compiled = torch.compile(optimizer.step, fullgraph=True, backend=inductor)
    for step in range(12):
        if step == 4:
            optimizer.param_groups[0]["lr"].fill_(0.25)
            eager.param_groups[0]["lr"] = 0.25
        if step == 6:
            optimizer.param_groups[0]["max_lr"].fill_(0.3)
            eager.param_groups[0]["max_lr"] = 0.3
        if step == 8:
            saved = copy.deepcopy(eager.state_dict())
            saved["param_groups"][0].update(schedule_step=2, lr=0.03, edited_by_hand=True)
            saved["state"][0]["momentum_buffer"] += 1
            optimizer.load_state_dict(saved)
            eager.load_state_dict(saved)
        compiled()
        eager.step()
        torch.testing.assert_close(param, twin)
    assert_one_graph(inductor)


def test_hooks_are_called_by_a_compiled_step(inductor):
    """A hook of the user's is not lost where the step is compiled."""
    _, optimizer = one_param()
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        compiled()
    assert len(seen) == 3
    assert optimizer.param_groups[0]["schedule_step"].item() == 3


def test_a_whole_training_step_compiles(inductor):
    """Model, backward, update and scaler's verdict in one compiled function: a skip still changes nothing."""
    model, optimizer = model_and(
        lambda ps: CyclicSGD(ps, lr=0.1, momentum=0.9, dampening=0.5, policy=Triangular(7), capturable=True)
    )
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)

    @torch.compile(backend="aot_eager")
    def training_step(x):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    for step in range(6):
        optimizer.found_inf.fill_(step == 3)
        before = everything(optimizer)
        training_step(torch.randn(4, 4, generator=torch.Generator().manual_seed(step)))
        if step == 3:
            assert_same(everything(optimizer), before)
    assert optimizer.param_groups[0]["schedule_step"].item() == 5


# --- state


@given(
    problem=problems(),
    options=sgd_options(),
    policy=policies(without=("LambdaPolicy",)),
    ways=st.lists(st.booleans(), min_size=2, max_size=4),
)
def test_checkpoints_go_both_ways(problem, options, policy, ways):
    """Loaded from host to device and back any number of times, training is what it would have been."""
    check_both_ways(problem, options, policy, ways)


def test_a_momentum_below_float32_is_momentum():
    """A momentum of 1e-125 replaces the buffer on the device too, as it does on the host."""
    problem = Problem(shapes=(((),),), dtype=torch.float64, seed=0, absent=0.0)
    policy = Triangular(step_size_up=1, div_factor=1.0, base_momentum=1e-125, max_momentum=0.5)
    check_both_ways(problem, {"lr": 0.5, "momentum": 0.1, "nesterov": True}, policy, [False, True])


@pytest.mark.parametrize("momentum", [1e-125, 2.0**-150, 1e-45])
@pytest.mark.parametrize("way", ["policy", "argument", "number", "tensor"])
def test_a_momentum_below_float32_is_shown_and_saved(momentum, way):
    """The group shows a momentum above 0, and the checkpoint has the number itself, however it got there."""
    cycling = Triangular(1, base_momentum=momentum, max_momentum=momentum)
    given = momentum if way == "argument" else 0.9
    _, optimizer = one_param(cycling if way == "policy" else Constant(), momentum=given)
    group = optimizer.param_groups[0]
    if way in ("number", "tensor"):
        group["momentum"] = momentum if way == "number" else torch.tensor(momentum, dtype=torch.float64)
    for _ in range(2):
        optimizer.step()
        assert group["momentum"].item() == 2.0**-149
        (saved,) = optimizer.state_dict()["param_groups"]
        assert saved["momentum"] == (momentum if way != "tensor" else 2.0**-149)
        assert not any("edited" in key for key in saved)


def check_both_ways(problem, options, policy, ways):
    horizon = max(policy.period or 1, 50)

    def make(capturable):
        params = problem.params()
        device = {"capturable": True, "horizon": horizon} if capturable else {}
        return params, CyclicSGD([{"params": group} for group in params], policy=policy, **options, **device)

    twins, never_moved = make(False)
    params, optimizer = make(ways[0])
    step = 0
    for capturable in ways:
        before, moved = params, optimizer
        params, optimizer = make(capturable)
        for new, old in zip(flat(params), flat(before), strict=True):
            new.data.copy_(old.data)
        saved = moved.state_dict()
        with warnings.catch_warnings():
            warnings.simplefilter("error" if "scale_fn" not in repr(policy) else "ignore")
            optimizer.load_state_dict(saved)
        assert all(
            not isinstance(group[key], torch.Tensor) for group in moved.state_dict()["param_groups"] for key in SHOWN
        )
        for _ in range(3):
            problem.set_grads(params, step)
            problem.set_grads(twins, step)
            optimizer.step()
            never_moved.step()
            step += 1
    tolerance = 1e-5 if problem.dtype is torch.float32 else 1e-6  # rates are rounded to float32
    for param, twin in zip(flat(params), flat(twins), strict=True):
        torch.testing.assert_close(param, twin, rtol=10 * tolerance, atol=10 * tolerance)
    ours, theirs = optimizer.state_dict()["param_groups"], never_moved.state_dict()["param_groups"]
    assert [group["schedule_step"] for group in ours] == [group["schedule_step"] for group in theirs]
    assert [group["lr"] for group in ours] == [group["lr"] for group in theirs]


def test_the_momentum_of_a_group_without_a_policy_is_saved_as_it_was_given():
    """A checkpoint has it in full precision, and what was assigned since the last step in its place."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": params[:1], "policy": None, "momentum": 0.9}, {"params": params[1:]}]
    optimizer = CyclicSGD(groups, lr=0.1, policy=Triangular(4), capturable=True)
    assert optimizer.state_dict()["param_groups"][0]["momentum"] == 0.9
    optimizer.param_groups[0]["momentum"] = 0.3
    assert optimizer.state_dict()["param_groups"][0]["momentum"] == 0.3


def test_a_state_dict_is_plain_numbers():
    """The very groups that the host's path saves, in full precision, and a file that weights_only reads."""
    _, optimizer = one_param(OneCycle(20), lr=0.1)
    _, host = one_param(OneCycle(20), lr=0.1, capturable=False)
    for _ in range(7):
        optimizer.step()
        host.step()
    saved = through_a_file(optimizer.state_dict())
    assert saved["param_groups"] == host.state_dict()["param_groups"]
    assert saved["state"][0].keys() == {"momentum_buffer"}
    sgd = SGD([torch.nn.Parameter(torch.ones(3))], lr=9.0)
    sgd.load_state_dict(saved)
    assert sgd.param_groups[0]["lr"] == host.param_groups[0]["lr"]


def test_beyond_the_horizon_the_values_held_are_saved():
    """What a checkpoint says is what is in force, also where the table has ended; loading it begins a new table."""
    policy = InverseTimeDecay(0.1)
    _, optimizer = one_param(policy, lr=0.1, horizon=5)
    for _ in range(9):
        optimizer.step()
    group = optimizer.state_dict()["param_groups"][0]
    assert (group["schedule_step"], group["lr"]) == (9, 0.1 * policy.at(4).lr_factor)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.1 * policy.at(10).lr_factor


def test_the_counter_can_be_set():
    """A step number assigned is gone on from, be it beyond the table so far."""
    policy = InverseTimeDecay(0.1)
    _, optimizer = one_param(policy, lr=0.1, horizon=5)
    optimizer.param_groups[0]["schedule_step"] = 1000
    optimizer.step()
    group = optimizer.state_dict()["param_groups"][0]
    assert (group["schedule_step"], group["lr"]) == (1001, 0.1 * policy.at(1001).lr_factor)


def test_loading_writes_into_the_tensors_that_there_are():
    """A captured graph knows addresses: after a load the values stand in the same tensors, of nobody else's."""
    param, optimizer = one_param(dampening=0.5)
    optimizer.step()
    group, kept = optimizer.param_groups[0], optimizer.state[param]
    tensors = [*(group[key] for key in SHOWN), kept["momentum_buffer"], kept["started"]]
    _, other = one_param(OneCycle(20), lr=0.5, capturable=False)
    for _ in range(5):
        other.step()
    saved = copy.deepcopy(other.state_dict())
    with pytest.warns(UserWarning, match="under the policy OneCycle|max_lr=") as caught:
        optimizer.load_state_dict(saved)
    assert ["under the policy OneCycle" in str(one.message) for one in caught] == [True, False]
    assert "max_lr=[0.5], in the code [1.0]" in str(caught[1].message)
    group, kept = optimizer.param_groups[0], optimizer.state[param]
    now = [*(group[key] for key in SHOWN), kept["momentum_buffer"], kept["started"]]
    assert all(new is old for new, old in zip(now, tensors, strict=True))
    assert (group["schedule_step"].item(), group["max_lr"].item()) == (5, 0.5)
    assert torch.equal(kept["momentum_buffer"], saved["state"][0]["momentum_buffer"])
    assert kept["momentum_buffer"].data_ptr() != saved["state"][0]["momentum_buffer"].data_ptr()


def test_parameters_that_never_moved_are_saved_without_buffers():
    """With dampening a first step is another one, also after a round trip through a checkpoint."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = CyclicSGD(params, lr=0.1, momentum=0.9, dampening=0.5, policy=Constant(), capturable=True)
    params[0].grad = torch.ones(2)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert "momentum_buffer" in saved["state"][0]
    assert "momentum_buffer" not in saved["state"].get(1, {})
    optimizer.step()
    params[1].grad = torch.ones(2)
    optimizer.load_state_dict(saved)
    optimizer.step()
    torch.testing.assert_close(params[1].detach(), torch.full((2,), 0.9))  # undampened


def test_an_sgd_checkpoint_starts_the_schedule():
    """SGD's buffers are taken over, the schedule starts at step 0 with the peaks of the code."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    sgd = SGD([param], lr=0.3, momentum=0.9)
    sgd.step()
    mine, optimizer = one_param(lr=1.0)
    optimizer.step()
    with pytest.warns(UserWarning, match=r"the schedule starts at step 0 .* reschedule\(step=\.\.\.\) .* from_torch"):
        optimizer.load_state_dict(sgd.state_dict())
    group = optimizer.param_groups[0]
    assert (group["schedule_step"].item(), group["max_lr"].item()) == (0, 1.0)
    assert torch.equal(optimizer.state[mine]["momentum_buffer"], sgd.state[param]["momentum_buffer"])


@pytest.mark.parametrize(
    "change",
    [
        {"schedule_step": -1},
        {"schedule_step": 1.5},
        {"max_lr": float("nan")},
        {"max_lr": 1e300},
        {"lr": "much"},
        {"fused": True},
    ],
    ids=str,
)
def test_a_failed_load_changes_nothing(change):
    """A checkpoint that cannot be is refused, with everything, and every tensor, as it was."""
    policy = InverseTimeDecay(0.1)
    _, optimizer = one_param(policy, dampening=0.5, horizon=20)
    optimizer.step()
    before, tensors = everything(optimizer), {key: optimizer.param_groups[0][key] for key in SHOWN}
    saved = copy.deepcopy(one_param(policy)[1].state_dict())
    saved["param_groups"][0].update({"schedule_step": 500, "lr": policy.at(500).lr_factor, **change})
    with pytest.raises((ValueError, TypeError), match="need"):
        optimizer.load_state_dict(saved)
    assert_same(everything(optimizer), before)
    assert all(optimizer.param_groups[0][key] is tensor for key, tensor in tensors.items())
    optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"].item() == 2
    assert optimizer.param_groups[0]["lr"].item() == torch.tensor(policy.at(2).lr_factor).item()


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_copies_go_on_and_share_nothing(twin):
    """A deepcopy, and what comes out of a pickle, steps by itself and leaves the original alone."""
    param, optimizer = one_param(dampening=0.5)
    optimizer.step()
    copied = twin(optimizer)
    before = everything(optimizer)
    (its,) = copied.param_groups[0]["params"]
    its.grad = torch.full_like(its, 0.5)
    copied.step()
    assert_same(everything(optimizer), before)
    optimizer.step()
    assert_same(everything(copied), everything(optimizer))
    assert copied._step_supports_amp_scaling
    assert param is not its


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_distributed_checkpoint_round_trip(flatten, momentum):
    """Through torch.distributed.checkpoint's state dicts a fresh optimizer goes on exactly."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    policy = Triangular(4, cycle_momentum=False)

    def make():
        return model_and(lambda ps: CyclicSGD(ps, lr=0.1, momentum=momentum, policy=policy, capturable=True))

    model, optimizer = make()
    for step in range(3):
        set_grads(model, step)
        optimizer.step()
    optimizer.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    fresh_model, fresh = make()
    fresh_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(fresh_model, fresh, saved, options=options)
    assert_same(everything(fresh), everything(optimizer))


# --- what users do between steps


def test_a_dry_run_moves_nothing():
    """Rates and gradients of 0 and no state, as distributed checkpointing has it: nothing moves, the rates are back."""
    for zero in (0.0, torch.tensor(0.0)):
        param, optimizer = one_param(Constant(), momentum=0.0, weight_decay=0.5)
        before = everything(optimizer)
        optimizer.param_groups[0]["lr"] = zero
        param.grad.zero_()
        optimizer.step()
        assert_same(everything(optimizer), before)
        optimizer.step()
        assert not torch.equal(param.detach(), torch.ones(3))


@pytest.mark.parametrize("capturable", [True, False])
def test_asking_does_not_end_a_dry_run(capturable):
    """Whoever saves or adds up between the zeros and the step does not make it one that moves."""
    param, optimizer = one_param(Triangular(4, cycle_momentum=False), momentum=0.0, capturable=capturable)
    optimizer.param_groups[0]["lr"] = 0.0
    param.grad.zero_()
    optimizer.state_dict()
    optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3))
    saved = optimizer.state_dict()["param_groups"][0]
    assert (saved["schedule_step"], saved["lr"]) == (0, Triangular(4).at(0).lr_factor)


def test_a_rate_of_0_in_the_tensor_is_a_rate():
    """A 0 written into the tensor is one step's rate: buffers and counter move on, weights do not."""
    param, optimizer = one_param()
    optimizer.param_groups[0]["lr"].fill_(0.0)
    optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3))
    assert optimizer.param_groups[0]["schedule_step"].item() == 1


@pytest.mark.parametrize("write", ["assigned", "filled", "tensor"])
@pytest.mark.parametrize("key", ["lr", "momentum", "max_lr"])
def test_edits_hold_as_on_the_host(key, write):
    """A rate or momentum edited holds for one step, a peak for good, whichever way it was written."""
    ours, optimizer = one_param(lr=0.1)
    twin, host = one_param(lr=0.1, capturable=False)
    for step in range(6):
        if step == 2:
            host.param_groups[0][key] = 0.5
            if write == "filled":
                optimizer.param_groups[0][key].fill_(0.5)
            else:
                optimizer.param_groups[0][key] = 0.5 if write == "assigned" else torch.tensor(0.5)
        if step == 3:
            assert host.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
        optimizer.step()
        host.step()
        torch.testing.assert_close(ours, twin)


def test_nothing_is_set_up_while_a_graph_is_captured(monkeypatch):
    """A number assigned before a capture would be written again by every replay: refused, and nothing is touched.

    Whether a stream is capturing is what this machine is made to say; a real capture needs a GPU.
    """
    param, optimizer = one_param()
    optimizer.param_groups[0]["lr"] = 0.5
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="need nothing to be set up while a CUDA graph is captured"):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = optimizer._schedules.clock.lr[0]
        optimizer.state[param].clear()
        with pytest.raises(RuntimeError, match="has no buffer yet"):
            optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3))
    assert optimizer.param_groups[0]["schedule_step"].item() == 0


def test_an_update_chosen_in_a_capture_is_that_graphs_alone(monkeypatch):
    """Where the first step is a captured one, no kernel can be loaded; the steps outside get theirs all the same."""
    _, optimizer = one_param()
    chosen = []

    def choose(rows):
        chosen.append(rows)
        return device_sgd.PortableUpdate(rows)

    monkeypatch.setattr("cyclic_optim.device.sgd.choose_device_update", choose)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        optimizer.step()
    for _ in range(3):
        optimizer.step()
    assert len(chosen) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", float("nan")),
        ("max_lr", -1.0),
        ("momentum", "much"),
        ("lr", 1e300),
        ("schedule_step", 1.5),
        ("schedule_step", torch.tensor(-1)),
        ("max_lr", torch.ones(2)),
    ],
)
def test_edits_that_cannot_be_are_refused(key, value):
    """A value that is no rate is an error of the next step, which changes nothing."""
    param, optimizer = one_param()
    optimizer.param_groups[0][key] = value
    with pytest.raises((ValueError, TypeError), match=f"need .*{key}"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3))


def two_groups(capturable, **options):
    """Two parameters in groups of different rates."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(2)
    groups = [{"params": [params[0]], "lr": 1.0}, {"params": [params[1]], "lr": 0.1}]
    return params, CyclicSGD(groups, policy=Constant(), capturable=capturable, **options)


@pytest.mark.parametrize("momenta", [(0.9, 0.9), (0.5, 0.0)])
def test_groups_may_change_places(momenta):
    """Each takes its rates along, though they are shown by one another's tensors for a while."""
    ends = []
    for capturable in (True, False):
        params, optimizer = two_groups(capturable)
        for group, momentum in zip(optimizer.param_groups, momenta, strict=True):
            group["momentum"] = momentum
        for _ in range(3):
            optimizer.step()
            optimizer.param_groups.reverse()
        saved = optimizer.state_dict()["param_groups"]
        ends.append((torch.stack(params).detach(), [(group["lr"], group["momentum"]) for group in saved]))
    torch.testing.assert_close(ends[0][0], ends[1][0])
    torch.testing.assert_close(torch.tensor(ends[0][1]), torch.tensor(ends[1][1]))


def test_a_counter_that_cannot_be_set_changes_nothing():
    """Where the policy has no answer from there on, neither counter nor table nor any other edit is taken over."""
    policy = LambdaPolicy(lambda step: 1.0 if step < 10 else -1.0)
    param, optimizer = one_param(policy, horizon=5)
    group, table = optimizer.param_groups[0], optimizer._schedules.clock.table.clone()
    group["max_lr"], group["schedule_step"] = 0.5, 8
    with pytest.raises(ValueError, match=r"need fn\(10\) to be a finite number"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3))
    assert optimizer._schedules.clock.steps[0].item() == 0
    assert optimizer._schedules.clock.max_lr[0].item() == 1.0
    assert_same(optimizer._schedules.clock.table, table)


@pytest.mark.parametrize("failure", ["number", "device"])
def test_a_group_that_cannot_join_leaves_no_trace(failure, monkeypatch):
    """Whatever goes wrong while it joins, the next one joins as if nothing had been."""
    _, optimizer = two_groups(True, momentum=0.9)
    late = torch.nn.Parameter(torch.ones(2))
    group = {"params": [late], "momentum": 1e300 if failure == "number" else 0.5}
    with monkeypatch.context() as patch:
        if failure == "device":
            patch.setattr(torch, "zeros_like", lambda *args, **options: torch.empty(-1))
        with pytest.raises((ValueError, RuntimeError)):
            optimizer.add_param_group(group)
    clock = optimizer._schedules.clock
    assert [*map(len, (optimizer.param_groups, clock.parts))] == [2, 2]
    assert len(optimizer.state_dict()["param_groups"]) == 2
    optimizer.add_param_group({"params": [late], "lr": 0.25})
    assert optimizer.param_groups[2]["lr"] is clock.lr[2]
    optimizer.step()


@pytest.mark.parametrize("momentum", [1e300, 1e39])
def test_a_momentum_that_float32_cannot_hold_is_refused(momentum):
    """As a rate is, with the rule and the value."""
    with pytest.raises(ValueError, match="need momentum to be a number that the parameters can hold"):
        one_param(Constant(), momentum=momentum)


def test_parameters_that_moved_to_another_device_are_refused():
    """A model moved after its optimizer was built: the values in force are where it was."""
    param, optimizer = one_param()
    moved = torch.nn.Parameter(param.to("meta"))
    moved.grad = torch.ones_like(moved)
    optimizer.param_groups[0]["params"] = [moved]
    with pytest.raises(ValueError, match=r"on cpu, got meta: build it after model.to\(device\)"):
        optimizer.step()


def test_other_hyperparameters_can_be_edited():
    """weight_decay and the flags are read on every step that is not captured."""
    ours, optimizer = one_param(Constant(), lr=0.1)
    twin, host = one_param(Constant(), lr=0.1, capturable=False)
    edits = [{}, {"weight_decay": 0.5}, {"maximize": True}, {"dampening": 0.5}, {"dampening": 0.0}, {"dampening": 0.3}]
    for edit in edits:
        for each in (optimizer, host):
            each.param_groups[0].update(edit)
            each.step()
        torch.testing.assert_close(ours, twin)


def test_a_thawed_parameter_gets_a_buffer():
    """A parameter frozen when the optimizer was built joins with its own first step."""
    ours, theirs = ([torch.nn.Parameter(torch.ones(2)) for _ in range(2)] for _ in range(2))
    for params in (ours, theirs):
        params[1].requires_grad_(False)
    optimizer = CyclicSGD(ours, lr=0.1, momentum=0.9, dampening=0.5, policy=Constant(), capturable=True)
    host = CyclicSGD(theirs, lr=0.1, momentum=0.9, dampening=0.5, policy=Constant())
    for step in range(5):
        for params in (ours, theirs):
            params[1].requires_grad_(step >= 2)
            for param in params if step >= 2 else params[:1]:
                param.grad = torch.full_like(param, step + 1.0)
        optimizer.step()
        host.step()
    torch.testing.assert_close(ours, theirs)


def test_a_group_joins_the_cycle_where_it_stands():
    """A group added later shows the current values for its own peak, and the same counter."""
    _, optimizer = one_param()
    for _ in range(3):
        optimizer.step()
    late = torch.nn.Parameter(torch.ones(2))
    late.grad = torch.ones(2)
    optimizer.add_param_group({"params": [late], "lr": 0.5})
    first, second = optimizer.param_groups
    assert second["schedule_step"] == first["schedule_step"] == 3
    assert second["lr"].item() == torch.tensor(0.5 * Triangular(4).at(3).lr_factor).item()
    optimizer.step()
    assert second["lr"].item() == torch.tensor(0.5 * Triangular(4).at(4).lr_factor).item()
    assert torch.equal(second["momentum"], first["momentum"])


def test_reports_reach_the_device():
    """Plateau lowers the rate in the tensor at once, and for the steps that follow."""
    _, optimizer = one_param(Plateau(factor=0.5, patience=0), lr=1.0, horizon=10)
    lr = optimizer.param_groups[0]["lr"]
    optimizer.report(1.0)
    optimizer.report(1.0)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5
    optimizer.step()
    assert lr.item() == 0.5
    _, host = one_param(Plateau(factor=0.5, patience=0), lr=1.0, capturable=False)
    host.load_state_dict(optimizer.state_dict())
    for each in (host, optimizer):
        each.report(2.0)
    assert host.param_groups[0]["lr"] == lr.item() == 0.25


def test_the_range_test_leaves_nothing_behind():
    """A range test on a capturable optimizer runs at constant momentum, and puts every tensor back."""
    model, optimizer = model_and(
        lambda ps: CyclicSGD(ps, lr=0.1, momentum=0.9, dampening=0.5, policy=Triangular(3), capturable=True)
    )
    before, weights = everything(optimizer), copy.deepcopy(model.state_dict())
    x, momenta = torch.randn(8, 4), []

    def train_step():
        momenta.append(optimizer.param_groups[0]["momentum"].item())
        loss = model(x).square().mean()
        loss.backward()
        return loss

    lr_range_test(model, optimizer, train_step, num_steps=20)
    assert len(set(momenta)) == 1
    assert_same(everything(optimizer), before)
    assert_same(model.state_dict(), weights)


def test_hooks_and_closures_work():
    """A closure's loss comes back, and hooks are called, as without capturable."""
    _, optimizer = one_param()
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    assert optimizer.step(lambda: 7.0) == 7.0
    assert seen == ["pre", "post"]


def test_a_scheduler_beside_it_is_warned_of():
    """An outside scheduler writes the same tensor: one warning says so."""
    _, optimizer = one_param()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="both write lr"):
        optimizer.step()


# --- what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"policy": None}, ValueError, r"got policy=None: pass policy=Constant\(\)"),
        ({"capturable": 1}, TypeError, "need capturable to be True or False, got capturable=1"),
        ({"capturable": False, "horizon": 5}, ValueError, "need horizon only with capturable=True"),
        ({"horizon": 0}, ValueError, "need 1 <= horizon"),
        ({"foreach": True}, ValueError, "need foreach unset with capturable=True"),
        ({"fused": True}, ValueError, "need fused unset with capturable=True"),
        ({"differentiable": True}, ValueError, "need differentiable unset with capturable=True"),
        ({"weight_decay": torch.tensor(0.1)}, TypeError, "need weight_decay as a number"),
        ({"lr": 1e300}, ValueError, "need lr to be a number that the parameters can hold"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_contradictions_are_refused(options, error, message):
    """What cannot be had on the device is refused when the optimizer is built, with the cure."""
    options = {"policy": Triangular(4), "capturable": True, **options}
    with pytest.raises(error, match=message):
        CyclicSGD([torch.nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize("later", [False, True])
def test_parameters_that_cannot_be_are_refused(later):
    """All parameters live on one device and are real numbers, those of groups added later as well."""
    others = {"one device": torch.nn.Parameter(torch.ones(2, device="meta")), "floating-point": torch.ones(2).cfloat()}
    for message, other in others.items():
        first, options = torch.nn.Parameter(torch.ones(2)), {"policy": Constant(), "capturable": True}
        if later:
            optimizer = CyclicSGD([first], **options)
            with pytest.raises(ValueError, match=message):
                optimizer.add_param_group({"params": [other]})
            assert len(optimizer.param_groups) == 1
            first.grad = torch.ones(2)
            optimizer.step()
        else:
            with pytest.raises(ValueError, match=message):
                CyclicSGD([first, other], **options)


def test_sparse_gradients_are_refused():
    """A sparse gradient is an error that says so, before anything moved."""
    param, optimizer = one_param()
    param.grad = param.grad.to_sparse()
    with pytest.raises(ValueError, match="need dense gradients with capturable=True"):
        optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"].item() == 0


def test_without_capturable_groups_hold_plain_numbers():
    """The host's path is as it was: numbers, and no key of the device's."""
    _, optimizer = one_param(capturable=False)
    assert all(not isinstance(optimizer.param_groups[0][key], torch.Tensor) for key in SHOWN)
    assert "capturable" not in optimizer.param_groups[0]
