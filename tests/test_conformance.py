"""What torch's optimizer database asks of SGD, CyclicSGD does in the same numbers, without a policy and with any."""

import copy
import functools
import os

import hypothesis
import pytest
import torch
import torch_versions
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import IMPLEMENTATIONS, policies
from torch.optim import SGD
from torch_database import ERRORS, INPUTS, SGD_ENTRY

from cyclic_optim import Combined, Constant, CosineWave, CyclicSGD, OneCycle, Triangular, native

pytestmark = pytest.mark.usefixtures("part", "on_one_thread")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
POLICIES = (None, Constant(), Triangular(step_size_up=2), OneCycle(total_steps=6))
STEPS = 4


@pytest.fixture(scope="module")
def on_one_thread():
    """torch's fused op starts its threads for every tensor, however small: most of the time would go there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def name_of(policy):
    return type(policy).__name__


#: Ordinary tensors; one of them is large enough for threads.
PLAIN = [(2, 3, 2, 2), (5, 7), (17,), (1,), (), (0,), (3, 0, 2), (130, 130)]
#: The ways in which a tensor of two dimensions or more may lie in memory.
LAYOUTS = (
    lambda t: t.contiguous(),
    lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    lambda t: torch.stack([t, t], dim=-1)[..., 0],
    lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.flip(0),
)


@functools.cache
def drawn(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, *shape), generator=generator, dtype=torch.float64).unbind()


class World:
    """Two param groups of the same values and gradients whenever they are made from the same arguments."""

    def __init__(self, dtype, device="cpu", odd=False):
        self.dtype, self.device, self.odd = dtype, device, odd
        shapes = [(2, 3, 2, 2), (4, 5), (6, 3), (2, 3, 2, 2), (0, 4), (3, 4)] if odd else PLAIN
        tensors = [self._draw(shape, seed) for seed, shape in enumerate(shapes)]
        if odd:
            tensors = [LAYOUTS[i % len(LAYOUTS)](tensor) for i, tensor in enumerate(tensors)]
        self.params = [torch.nn.Parameter(tensor) for tensor in tensors]
        self.groups = [{"params": self.params[:4]}, {"params": self.params[4:], "lr": 0.05, "weight_decay": 0.01}]

    def _draw(self, shape, seed):
        real, imaginary = drawn(tuple(shape), seed)
        values = torch.complex(real, imaginary) if self.dtype.is_complex else real
        return values.to(device=self.device, dtype=self.dtype, copy=True)

    def set_grads(self, step):
        for i, param in enumerate(self.params):
            grad = self._draw(param.shape, 1000 * (step + 1) + i)
            param.grad = LAYOUTS[(i + step) % len(LAYOUTS)](grad) if self.odd else grad


def run(make, world, policy=None, by_hand=False):
    """Take some steps; ``by_hand``, the policy's values are written into the groups before each of them."""
    optimizer = make(world.groups)
    own = [(float(group["lr"]), group["weight_decay"]) for group in optimizer.param_groups]
    for step in range(STEPS):
        world.set_grads(step)
        if by_hand:
            lr_factor, momentum, decay_factor = policy.at(step)
            for group, (peak, decay) in zip(optimizer.param_groups, own, strict=True):
                rate = peak * lr_factor
                is_tensor = isinstance(group["lr"], torch.Tensor)
                group["lr"] = torch.tensor(rate, dtype=group["lr"].dtype) if is_tensor else rate
                group["momentum"] = group["momentum"] if momentum is None else momentum
                group["weight_decay"] = decay if decay_factor is None else decay * decay_factor
        optimizer.step()
    return [*world.params, *(optimizer.state[param].get("momentum_buffer") for param in world.params)]


def assert_same(ours, theirs, exact):
    for one, other in zip(ours, theirs, strict=True):
        if one is None or other is None:
            assert one is other
            continue
        one, other = one.detach(), other.detach()
        assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        if one.device.type == "meta":
            assert one.stride() == other.stride()
        elif exact:
            assert torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))
        else:
            rounding = 16 * torch.finfo(one.dtype).eps
            torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


def by_op(flags, policy, dtype):
    """Whether torch's fused op, or the compiled part in its place, is what runs; elsewhere it is torch's own loops."""
    asked = flags.get("fused", policy is not None and "foreach" not in flags)
    return asked and dtype in (torch.float32, torch.float64)


def compare(options, flags, policy, dtype, device="cpu", odd=False):
    options = copy.deepcopy(options)  # a tensor lr is an argument, too
    ours = run(lambda groups: CyclicSGD(groups, policy=policy, **options, **flags), World(dtype, device, odd), policy)
    fused = by_op(flags, policy, dtype)
    if fused or flags.get("fused") or (policy is not None and not flags):
        # torch's op is wrong for half precision and for tensors that lie in memory unlike each other.
        flags = {"fused": True} if fused and not odd and device == "cpu" else {"foreach": False}
    by_hand = policy is not None
    theirs = run(lambda groups: SGD(groups, **options, **flags), World(dtype, device, odd), policy, by_hand)
    # The op may join a multiplication and an addition, which the compiled part rounds one by one.
    rounded = fused and (odd or (policy is not None and native.compiled is not None))
    assert_same(ours, theirs, exact=not rounded)


def test_the_database_is_read_whole():
    """Nothing that the database says of SGD is unknown here, and reading it leaves the process alone."""
    assert set(SGD_ENTRY.supported_impls) == {"foreach", "fused", "differentiable"}
    assert {key for flags in IMPLEMENTATIONS for key in flags} == {"foreach", "fused"}
    assert set(SGD_ENTRY.not_og_supported_flags) == {"foreach", "differentiable", "fused", "maximize", "capturable"}
    assert "cpu" in SGD_ENTRY.supports_fused_on
    assert (SGD_ENTRY.supports_sparse, SGD_ENTRY.supports_complex) == (True, True)
    assert len(INPUTS) >= 9
    assert len(ERRORS) >= 7
    assert not torch.backends.flags_frozen()
    assert hypothesis.settings.get_current_profile_name() == os.environ.get("HYPOTHESIS_PROFILE", "quick")


#: All but complex numbers and ``fused=True``, which torch refuses (see below).
COMBINATIONS = [
    (flags, dtype)
    for flags in IMPLEMENTATIONS
    for dtype in (*FLOATS, *COMPLEX)
    if not (dtype.is_complex and flags.get("fused"))
]


@pytest.mark.parametrize("odd", [False, True], ids=["plain", "odd"])
@pytest.mark.parametrize(("flags", "dtype"), COMBINATIONS, ids=str)
@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_every_input_gives_sgds_numbers(options, flags, dtype, odd):
    """Parameters and buffers are SGD's to the bit; with a policy, SGD's whose rates are set by hand."""
    for policy in POLICIES:
        compare(options, flags, policy, dtype, odd=odd)


MOVES_DECAY = Combined(Constant(), None, CosineWave(1, 0.0))
#: An input with weight decay, which a policy may move.
DECAYED = next(options for options in INPUTS.values() if options.get("weight_decay"))


@given(
    policy=policies(),
    options=st.sampled_from(list(INPUTS.values())),
    flags=st.sampled_from(IMPLEMENTATIONS),
    dtype=st.sampled_from(FLOATS),
    odd=st.booleans(),
)
@example(
    policy=Combined(Constant(), None, CosineWave(1, 0.0)), options=DECAYED, flags={}, dtype=torch.float32, odd=False
)
def test_any_policy_gives_sgds_numbers(policy, options, flags, dtype, odd):
    """Whatever the policy, the numbers are those of SGD whose values are set by hand before every step."""
    compare(options, flags, policy, dtype, odd=odd)


#: The inputs that have no tensor among their numbers, which the compiled part leaves to torch.
NUMBERS_ALONE = [options for options in INPUTS.values() if not isinstance(options.get("lr"), torch.Tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", NUMBERS_ALONE, ids=str)
def test_the_compiled_part_gives_the_bits_of_plain_arithmetic(options, dtype, part):
    """After the first step, small tensors get what the formula gives, every operation rounded once to the dtype."""
    if part == "python":
        return  # torch's op is what runs

    def rounded(number):
        return torch.tensor(number, dtype=dtype)

    param = torch.nn.Parameter(drawn((1001,), 0)[0].to(dtype))
    optimizer = CyclicSGD([param], policy=Triangular(step_size_up=3, cycle_momentum=False), **options)
    (group,) = optimizer.param_groups
    for step in range(8):
        param.grad = drawn((1001,), step + 1)[0].to(dtype)
        moved, buffer = param.detach().clone(), copy.deepcopy(optimizer.state[param].get("momentum_buffer"))
        lr = group["lr"]
        optimizer.step()
        if step == 0:
            continue
        change = -param.grad if group["maximize"] else param.grad
        if group["weight_decay"]:
            change = change + moved * rounded(group["weight_decay"])
        if group["momentum"]:
            buffer = buffer * rounded(group["momentum"]) + change * rounded(1 - group["dampening"])
            change = change + buffer * rounded(group["momentum"]) if group["nesterov"] else buffer
        assert_same([param], [moved - change * rounded(lr)], exact=True)
        assert_same([optimizer.state[param].get("momentum_buffer")], [buffer], exact=True)


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_a_device_without_data_is_stepped_like_sgd(options, policy):
    """On the meta device, every implementation that SGD allows there leaves what SGD leaves: shapes and buffers."""
    for flags in IMPLEMENTATIONS:
        if not flags.get("fused"):  # refused, as the next test says
            compare(options, flags, policy, torch.float32, device="meta")


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@pytest.mark.parametrize(("dtype", "device"), [(torch.complex64, "cpu"), (torch.float32, "meta")], ids=str)
def test_what_cannot_be_fused_is_refused_in_sgds_words(dtype, device, policy):
    """``fused=True`` for complex numbers, or where there is no fused op, is SGD's error, and nothing has moved."""
    messages = []
    for make in (SGD, lambda groups, **options: CyclicSGD(groups, policy=policy, **options)):
        world = World(dtype, device)
        optimizer = make(world.groups, momentum=0.9, fused=True)
        before = copy.deepcopy((world.params, optimizer.state_dict()))
        world.set_grads(0)
        with pytest.raises(RuntimeError, match="fused") as error:
            optimizer.step()
        messages.append(str(error.value))
        assert repr((world.params, optimizer.state_dict())) == repr(before)
    assert messages[0] == messages[1]


#: Where a policy is present, these are refused before SGD sees them, in the words of the other rules for schedules.
OWN_WORDS = {
    "Tensor lr must be 1-element": "need lr as a number or a Tensor of 1 element",
    "momentum should be between 0 and 1": "need momentum to be a finite number >= 0",
}


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@pytest.mark.parametrize("mistake", ERRORS)
def test_every_mistake_is_sgds_error(mistake, policy):
    """A mistake raises, or warns of, what it does with SGD; without a policy, in the same words."""
    error = ERRORS[mistake]
    given = error.optimizer_error_input
    params = [torch.nn.Parameter(torch.randn(1, 1))] if given.params is None else given.params
    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            CyclicSGD(params, policy=policy, **given.kwargs)
        return
    with pytest.raises(error.error_type) as theirs:
        SGD(copy.deepcopy(params), **given.kwargs)
    with pytest.raises(error.error_type) as ours:
        CyclicSGD(params, policy=policy, **given.kwargs)
    assert type(ours.value) is type(theirs.value)
    if policy is None or mistake not in OWN_WORDS:
        assert str(ours.value) == str(theirs.value)
    else:
        assert OWN_WORDS[mistake] in str(ours.value)


def differentiated(make, options, policy, inputs):
    """The parameter and its buffer after one differentiable step, as functions of what went in."""
    param, grad, buffer = inputs
    param = param.clone()
    param.grad = grad
    optimizer = make([param], policy, differentiable=True, **copy.copy(options))
    optimizer.state[param]["momentum_buffer"] = buffer.clone()
    optimizer.step()
    return param, optimizer.state[param]["momentum_buffer"]


def sgd_by_hand(params, policy, **options):
    optimizer = SGD(params, **options)
    if policy is not None:
        lr_factor, momentum, _ = policy.at(0)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * lr_factor
            group["momentum"] = group["momentum"] if momentum is None else momentum
    return optimizer


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_every_input_is_differentiable(options, policy):
    """With ``differentiable=True`` the gradient through a step is right, and is the one through SGD's."""
    inputs = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def ours(*inputs):
        return differentiated(
            lambda groups, policy, **o: CyclicSGD(groups, policy=policy, **o), options, policy, inputs
        )

    assert torch.autograd.gradcheck(ours, inputs)
    gradients = [
        torch.autograd.grad(sum(value.square().sum() for value in outputs), inputs, allow_unused=True)
        for outputs in (ours(*inputs), differentiated(sgd_by_hand, options, policy, inputs))
    ]
    assert_same(*gradients, exact=True)


@torch_versions.differentiable_numbers
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_without_a_policy_hyperparameters_are_differentiable(options, name):
    """A rate or a weight decay that requires a gradient gets the one that it gets through SGD."""
    gradients = []
    for cls in (SGD, CyclicSGD):
        number = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        start = torch.tensor([1.0, 2.0], dtype=torch.float64)
        param = start.clone().requires_grad_().clone()
        param.grad = start.square()
        optimizer = cls([param], differentiable=True, **{**options, name: number})
        optimizer.state[param]["momentum_buffer"] = start.clone()  # a new one would be a detached copy
        optimizer.step()
        gradients.append(torch.autograd.grad(param.square().sum(), number)[0])
    assert gradients[0] != 0
    assert torch.equal(*gradients)


@pytest.mark.parametrize("flags", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("index", range(len(SGD_ENTRY.scheduler_inputs)))
def test_the_databases_schedulers_drive_it(index, flags):
    """Without a policy, every combination of torch's schedulers drives it as it drives SGD, to the bit."""
    ends = []
    for cls in (SGD, CyclicSGD):
        world = World(torch.float32)
        optimizer = cls(world.groups, lr=0.1, momentum=0.9, **flags)
        schedulers = [make(optimizer) for make in SGD_ENTRY.scheduler_inputs[index]]
        for step in range(12):
            world.set_grads(step)
            optimizer.step()
            for scheduler in schedulers:
                is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(1.0) if is_plateau else scheduler.step()
        ends.append([*world.params, *(torch.tensor(group["lr"]) for group in optimizer.param_groups)])
    assert_same(*ends, exact=True)


@pytest.mark.parametrize("policy", POLICIES[:2], ids=name_of)
@pytest.mark.parametrize("flags", [{}, {"foreach": False}, {"foreach": True}], ids=str)
def test_the_databases_sparse_run(flags, policy):
    """Sparse gradients, coalesced or not, give SGD's numbers under the database's options and schedulers."""
    options, schedulers = SGD_ENTRY.metadata_for_sparse
    ends = []
    for make in (SGD, lambda groups, **options: CyclicSGD(groups, policy=policy, **options)):
        param = torch.nn.Parameter(torch.tensor([1.5, 1.5, 3.0], dtype=torch.float64))
        optimizer = make([param], **options, **flags)
        drivers = [schedule(optimizer) for schedule in schedulers if policy is None]
        for step in range(STEPS):
            values, where = param.detach()[[0, 0, 2]] + step, torch.tensor([[0, 0, 2]])
            grad = torch.sparse_coo_tensor(where, values, (3,), check_invariants=True)
            param.grad = grad.coalesce() if step % 2 else grad
            optimizer.step()
            for driver in drivers:
                driver.step()
        ends.append([param])
    assert_same(*ends, exact=True)


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@pytest.mark.parametrize("flags", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("grads", ["none", "zero"])
def test_a_step_without_gradients_moves_nothing(grads, flags, policy):
    """No gradients, or zeros without weight decay, leave every parameter as it was, and none means no state."""
    for options in INPUTS.values():
        if grads == "zero" and options.get("weight_decay"):
            continue
        world = World(torch.float32)
        world.groups[1].pop("weight_decay")
        before = [param.detach().clone() for param in world.params]
        optimizer = CyclicSGD(world.groups, policy=policy, **copy.deepcopy(options), **flags)
        for _ in range(STEPS):
            for param in world.params:
                param.grad = torch.zeros_like(param) if grads == "zero" else None
            optimizer.step()
        assert_same(world.params, before, exact=True)
        assert grads == "zero" or not any(optimizer.state.values())


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@pytest.mark.parametrize("flags", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_a_repeated_parameter_is_updated_as_by_sgd(options, flags, policy):
    """torch warns of a parameter that is twice in a group, and updates it twice; so it is here."""

    class Twice(World):
        def __init__(self):
            super().__init__(torch.float64)
            self.groups[0]["params"].append(self.params[1])
            self.groups[1]["params"].insert(0, self.params[-1])  # the large one, too

    def ours(groups):
        return CyclicSGD(groups, policy=policy, **copy.deepcopy(options), **flags)

    def theirs(groups):
        return SGD(groups, **copy.deepcopy(options), foreach=flags.get("foreach", False))

    ends = []
    for make, by_hand in ((ours, False), (theirs, policy is not None)):
        with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
            ends.append(run(make, Twice(), policy, by_hand))
    assert_same(*ends, exact="foreach" in flags or flags.get("fused") is False)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding, self.head = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=generator))
        self.head.weight = self.embedding.weight

    def forward(self, words):
        return self.head(self.embedding(words))


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@pytest.mark.parametrize("flags", IMPLEMENTATIONS, ids=str)
def test_a_parameter_shared_between_modules_stays_shared(flags, policy):
    """Tied weights are one parameter with one buffer, moved once a step, by SGD's numbers, and stay tied."""
    ends = []
    for make in (lambda params, **options: CyclicSGD(params, policy=policy, **options), None):
        model = Tied()
        options = {"lr": 0.1, "momentum": 0.9, **flags}
        optimizer = make(model.named_parameters(), **options) if make else SGD(model.parameters(), **options)
        assert len(optimizer.param_groups[0]["params"]) == 2
        for step in range(STEPS):
            if make is None and policy is not None:
                lr_factor, momentum, _ = policy.at(step)
                held = optimizer.param_groups[0]
                held["lr"] = 0.1 * lr_factor
                held["momentum"] = held["momentum"] if momentum is None else momentum
            optimizer.zero_grad()
            model(torch.arange(6)).square().sum().backward()
            optimizer.step()
        assert model.head.weight is model.embedding.weight
        ends.append([*model.parameters(), *(optimizer.state[p]["momentum_buffer"] for p in model.parameters())])
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
    if policy is None:
        assert_same(*ends, exact=True)
