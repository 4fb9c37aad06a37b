"""What a range test puts back: whatever training touches, each thing however the others fare."""

import collections
import copy
import functools
import random
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from cyclic_optim import CyclicSGD, LRRangeTest, OneCycle, RestoreError, lr_range_test, supervised_step
from cyclic_optim.range_test.contents import Place, clone_contents
from cyclic_optim.range_test.put_back import save_all
from cyclic_optim.range_test.undo import MOST_NAMES, put_back

LOSS = torch.nn.functional.cross_entropy


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def batches(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 4, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(3)]


class Layer(torch.nn.Linear):
    """A layer of which each forward pass changes something; ``change`` says what."""

    def __init__(self, change, **state):
        torch.manual_seed(0)
        super().__init__(4, 3)
        self.change = change
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, x):
        self.change(self, x)
        return super().forward(x)


def replaced_buffer(layer, x):
    layer.mean = 0.9 * layer.mean + 0.1 * x.detach().mean(0)


def first_filled(layer, x):
    if layer.late is None:
        layer.late = x.detach().mean(0)
    layer.late += 1


def replaced_parameter(layer, x):
    layer.bias = torch.nn.Parameter(layer.bias.detach() + 1)


def new_memory(layer, x):
    layer.bias.data = layer.bias.data + 1


def resized(layer, x):
    layer.mean.resize_(layer.mean.numel() + 1).zero_()


def freed(layer, x):
    layer.mean.untyped_storage().resize_(0)


def follows_autograd(layer, x):
    layer.mean.copy_(layer.weight.mean(0))


def plain_attributes(layer, x):
    layer.calls += 1
    layer.seen.append(float(x.sum()))
    layer.last["x"] = x
    layer.plain += 1
    layer.names.add(len(layer.names))
    layer.window.append(0)


def arrays_and_generators(layer, x):
    layer.array += 1
    torch.rand(1, generator=layer.draw)
    layer.python.random()
    layer.numpy.random()


def frozen(layer, x):
    layer.bias.requires_grad_(False)


def new_part(layer, x):
    layer.add_module(f"part{len(layer._modules)}", torch.nn.Linear(1, 1))


def new_mode(layer, x):
    layer.eval()


def with_buffer(change, name, tensor):
    layer = Layer(change)
    layer.register_buffer(name, tensor)
    return layer


CHANGES = {
    "a buffer that forward replaces": lambda: with_buffer(replaced_buffer, "mean", torch.ones(4)),
    "a buffer that was None": lambda: with_buffer(first_filled, "late", None),
    "a parameter that is replaced": lambda: Layer(replaced_parameter),
    "a parameter whose data is replaced": lambda: Layer(new_memory),
    "a buffer that is resized": lambda: with_buffer(resized, "mean", torch.ones(4)),
    "a buffer whose memory is freed": lambda: with_buffer(freed, "mean", torch.ones(4)),
    "a buffer that autograd comes to follow": lambda: with_buffer(follows_autograd, "mean", torch.ones(4)),
    "plain attributes": lambda: Layer(
        plain_attributes,
        calls=0,
        seen=[1.0],
        last={"x": None},
        plain=torch.ones(2),
        names={"a"},
        window=collections.deque([1, 2], maxlen=2),
    ),
    "arrays and generators": lambda: Layer(
        arrays_and_generators,
        array=np.ones(2),
        draw=torch.Generator().manual_seed(0),
        python=random.Random(0),
        numpy=np.random.default_rng(0),
    ),
    "a parameter that is frozen": lambda: Layer(frozen),
    "a part that is added": lambda: Layer(new_part),
    "the mode": lambda: Layer(new_mode),
}


def held(model):
    """What a model is made of: its attributes, the same objects, and the contents of its tensors."""
    tensors = [*model._parameters.values(), *model._buffers.values()]
    described = [
        None if t is None else (id(t), t.requires_grad, t.is_leaf, t.tolist(), t.stride(), t.grad) for t in tensors
    ]
    plain = {key: repr(value) for key, value in vars(model).items() if key != "window"}
    states = [getattr(getattr(model, name, None), get, list)() for name, get in (("python", "getstate"),)]
    states += [model.draw.get_state().tolist(), model.numpy.bit_generator.state] if hasattr(model, "draw") else []
    return plain, list(getattr(model, "window", [])), states, described


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_forward_changes_is_put_back(change):
    """Buffers, parameters and attributes that a forward pass replaces, fills, moves or extends are as before."""
    model = CHANGES[change]()
    optimizer = sgd(model)
    before = held(model)
    result = lr_range_test(model, optimizer, supervised_step(model, LOSS, batches()), num_steps=12, progress=False)
    assert len(result.losses) > 5
    assert held(model) == before


def test_a_parameter_shares_its_memory_again():
    """A parameter that was given other memory is afterwards again a view of the flat one that it came from."""
    model, flat = Layer(new_memory), torch.zeros(3)
    model.bias.data = flat
    lr_range_test(model, sgd(model), supervised_step(model, LOSS, batches()), num_steps=3, progress=False)
    assert model.bias.data_ptr() == flat.data_ptr()
    assert flat.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("keep", get_args(Place))
@pytest.mark.parametrize(
    "view",
    [
        lambda: torch.arange(3.0).expand(4, 3),
        lambda: torch.arange(3.0)[:, None].expand(3, 4),
        lambda: torch.arange(6.0).unfold(0, 3, 1),
        lambda: torch.zeros(0, 3).expand(2, 0, 3),
        lambda: torch.arange(6.0).view(2, 3).t(),
        lambda: torch.arange(6.0)[::2],
        lambda: torch.tensor(1.0).expand(1),
    ],
    ids=["rows", "columns", "windows", "empty", "transposed", "every other", "scalar"],
)
def test_a_view_of_any_layout_is_put_back(view, keep):
    """An expanded or overlapping view cannot be copied into; the memory under it is put back all the same."""
    model = with_buffer(lambda layer, x: layer.table.untyped_storage().fill_(7), "table", view())
    before = model.table.clone()
    lr_range_test(model, sgd(model), supervised_step(model, LOSS, batches()), num_steps=3, keep=keep, progress=False)
    assert torch.equal(model.table, before)
    assert model.table.stride() == view().stride()


@given(st.data())
def test_the_memory_under_any_view_is_put_back(data):
    """Whatever the sizes and strides of a view, its elements are what they were."""
    dims = data.draw(st.integers(0, 3))
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=dims, max_size=dims))
    strides = data.draw(st.lists(st.integers(0, 4), min_size=dims, max_size=dims))
    storage = torch.arange(40.0)
    tensor = storage.as_strided(sizes, strides, data.draw(st.integers(0, 5)))
    before = tensor.tolist()
    undos = clone_contents([("it", tensor)], "device")
    storage.fill_(-1)
    assert put_back(undos) == []
    assert tensor.tolist() == before


def test_a_tensor_of_inference_mode_is_put_back():
    """A buffer that was made in inference mode can only be written to in it, and is."""
    with torch.inference_mode():
        table = torch.ones(3)

    def change(layer, x):
        with torch.inference_mode():
            layer.table.add_(1)

    model = with_buffer(change, "table", table)
    lr_range_test(model, sgd(model), supervised_step(model, LOSS, batches()), num_steps=3, progress=False)
    assert model.table.tolist() == [1.0, 1.0, 1.0]


def test_uninitialized_parameters_are_refused():
    """A lazy module without its first batch has nothing to save yet; the error says what to do."""
    model = torch.nn.LazyLinear(3)
    step = supervised_step(model, LOSS, batches(), device="cpu")
    with pytest.raises(ValueError, match=r"need initialized lazy modules, got model\.weight without: call"):
        lr_range_test(model, torch.optim.SGD(model.parameters(), lr=0.1), step, progress=False)


# -- also


class Counter:
    """Whatever has state_dict and load_state_dict."""

    def __init__(self):
        self.counts = [0]

    def state_dict(self):
        return {"counts": self.counts}

    def load_state_dict(self, state):
        self.counts = state["counts"]

    def use(self):
        self.counts[0] += 1


class NumPyGenerator:
    """As numpy's new generators are used."""

    def __init__(self):
        self.thing = np.random.default_rng(0)


def scheduler():
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1)


def adam():
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    return torch.optim.Adam([param])


OTHERS = {
    "a module": (
        lambda: torch.nn.BatchNorm1d(4),
        lambda module: module(torch.randn(8, 4)),
        lambda module: [t.tolist() for t in module.state_dict().values()],
    ),
    "an optimizer": (
        adam,
        lambda optimizer: optimizer.step(),
        lambda optimizer: [repr(optimizer.state_dict()), optimizer.param_groups[0]["params"][0].tolist()],
    ),
    "a tensor": (lambda: torch.ones(2), lambda tensor: tensor.add_(1), lambda tensor: tensor.tolist()),
    "a list of tensors": (
        lambda: [torch.ones(2)],
        lambda tensors: [tensors[0].add_(1), tensors.append(1)],
        lambda tensors: repr(tensors),
    ),
    "a generator": (
        lambda: torch.Generator().manual_seed(0),
        lambda generator: torch.rand(1, generator=generator),
        lambda generator: generator.get_state().tolist(),
    ),
    "Python's Random": (lambda: random.Random(0), lambda r: r.random(), lambda r: r.getstate()),
    "numpy's RandomState": (
        lambda: np.random.RandomState(0),
        lambda r: r.rand(),
        lambda r: [part.tolist() if isinstance(part, np.ndarray) else part for part in r.get_state()],
    ),
    "numpy's Generator": (lambda: np.random.default_rng(0), lambda r: r.random(), lambda r: r.bit_generator.state),
    "a loader": (
        lambda: DataLoader(range(8), shuffle=True, generator=torch.Generator().manual_seed(0)),
        list,
        lambda loader: loader.generator.get_state().tolist(),
    ),
    "a sampler": (
        lambda: RandomSampler(range(8), generator=torch.Generator().manual_seed(0)),
        list,
        lambda sampler: sampler.generator.get_state().tolist(),
    ),
    "a batch sampler": (
        lambda: BatchSampler(RandomSampler(range(8), generator=torch.Generator().manual_seed(0)), 2, False),
        list,
        lambda sampler: sampler.sampler.generator.get_state().tolist(),
    ),
    "a scheduler": (scheduler, lambda s: [s.optimizer.step(), s.step()], lambda s: repr(s.state_dict())),
    "anything with a state_dict": (Counter, Counter.use, lambda counter: list(counter.counts)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_else_training_touches_is_put_back(kind):
    """Each kind of thing in ``also`` is after the test what it was before, and was used meanwhile."""
    make, use, show = OTHERS[kind]
    thing, model = make(), torch.nn.Linear(4, 3)
    before, seen = copy.deepcopy(show(thing)), []

    def train_step():
        use(thing)
        seen.append(copy.deepcopy(show(thing)))
        loss = model(torch.ones(1, 4)).sum()
        loss.backward()
        return loss

    lr_range_test(model, sgd(model), train_step, num_steps=3, also=(thing,), progress=False)
    assert seen[0] != before
    assert show(thing) == before


@pytest.mark.parametrize("thing", [3, "model", None, lambda: 1, {1: 2}.items()], ids=lambda thing: type(thing).__name__)
def test_what_cannot_be_saved_is_refused(thing):
    """A thing that nothing is known to save is an error that names it, before anything has happened."""
    model, called, loader = torch.nn.Linear(4, 3), [], DataLoader(range(3), persistent_workers=False)
    with pytest.raises(TypeError, match=r"need also= to hold modules, .* got also\[1\] \("):
        lr_range_test(model, sgd(model), lambda: called.append(1), also=(loader, thing), progress=False)
    assert called == []


def test_a_thing_whose_saving_fails_is_refused():
    """An exception of its state_dict is the cause of an error that names the thing; what was prepared is put back."""

    class Broken(Counter):
        def state_dict(self):
            raise OSError("gone")

    model, loader = torch.nn.Linear(4, 3), DataLoader(range(3))
    loader._iterator = kept = object()
    with pytest.raises(ValueError, match=r"got also\[1\] \(Broken\), which raised OSError\('gone'\)"):
        lr_range_test(model, sgd(model), lambda: 1.0, also=(loader, Broken()), progress=False)
    assert loader._iterator is kept


def test_a_loss_with_parameters_of_its_own_is_put_back():
    """A criterion that is a module is put back without being named: its parameters, buffers and gradients."""

    class Center(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output, target):
            self.calls += 1
            return self.scale * LOSS(output, target)

    model, criterion = torch.nn.Linear(4, 3), Center()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    result = lr_range_test(model, optimizer, supervised_step(model, criterion, batches()), num_steps=5, progress=False)
    assert len(set(result.losses)) > 1
    assert (criterion.calls.item(), criterion.scale.item(), criterion.scale.grad) == (0.0, 1.0, None)


def test_a_second_optimizer_is_put_back():
    """The discriminator of a GAN and its optimizer, which train_step steps itself, are as before."""
    torch.manual_seed(0)
    generator, critic = torch.nn.Linear(2, 4), torch.nn.Linear(4, 1)
    optimizer, of_critic = sgd(generator), torch.optim.Adam(critic.parameters(), lr=0.01)

    def train_step():
        fake = generator(torch.randn(8, 2))
        of_critic.zero_grad()
        (critic(fake.detach()) - critic(torch.ones(8, 4))).mean().backward()
        of_critic.step()
        loss = -critic(fake).mean()
        loss.backward()
        return loss

    before = copy.deepcopy([critic.state_dict(), of_critic.state_dict()])
    lr_range_test(generator, optimizer, train_step, num_steps=6, also=(critic, of_critic), progress=False)
    assert repr(before) == repr([critic.state_dict(), of_critic.state_dict()])
    assert all(param.grad is None for param in critic.parameters())


@pytest.mark.parametrize(("begun", "named"), [(False, False), (True, False), (True, True)])
def test_batches_of_persistent_workers_come_in_the_same_order(begun, named):
    """Workers that persist give the batches that they give without the test, in mid-epoch and named twice too."""
    orders = []
    for tested in (False, True):
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(16, 4), torch.arange(16) % 3)
        loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
        model = torch.nn.Linear(4, 3)
        epoch = iter(loader) if begun else iter(())
        order = [next(epoch)[1].tolist()] if begun else []
        if tested:
            step, also = supervised_step(model, LOSS, loader), (loader,) if named else ()
            lr_range_test(model, sgd(model), step, num_steps=5, also=also, progress=False)
        order += [labels.tolist() for _, labels in epoch]
        order += [labels.tolist() for _ in range(2) for _, labels in loader]
        orders.append(order)
    assert orders[0] == orders[1]


def test_the_parts_of_data_parallel_are_put_back(tmp_path):
    """A model inside DistributedDataParallel trains after the test as it does without it, its buffers too."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ends = []
        for tested in (False, True):
            torch.manual_seed(0)
            model = DistributedDataParallel(torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)))
            optimizer, step = sgd(model), supervised_step(model, LOSS, batches())
            for at in range(6):
                if at == 3 and tested:
                    lr_range_test(model, optimizer, step, num_steps=10, progress=False)
                optimizer.zero_grad()
                step()
                optimizer.step()
            ends.append([tensor.tolist() for tensor in model.state_dict().values()])
        assert ends[0] == ends[1]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(2, 4))])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_scripted_model_is_put_back(compiled, training):
    """A model in TorchScript, whose parts are not Python's, is as before: parameters, buffers and mode."""
    torch.manual_seed(0)
    model = compiled(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)))
    model.train(training)
    before = [tensor.tolist() for tensor in model.state_dict().values()]
    lr_range_test(model, sgd(model), supervised_step(model, LOSS, batches()), num_steps=6, progress=False)
    assert [tensor.tolist() for tensor in model.state_dict().values()] == before
    assert [module.training for module in model.modules()] == [training] * 4


@pytest.mark.parametrize("kind", ["itself", "method", "partial"])
def test_a_loss_function_is_found_in_what_calls_it(kind):
    """A criterion that is a module is put back also where a method of it or a partial of it is given."""
    model, criterion = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
    given = {"itself": criterion, "method": criterion.forward, "partial": functools.partial(criterion)}[kind]
    step = supervised_step(model, given, [])
    assert [one for one in step.also if one is criterion] == [criterion]


def test_another_step_brings_all_that_it_touches():
    """A step in ``also`` names its own model, its scaler and its loader; its scaler does not step this optimizer."""
    torch.manual_seed(0)
    model, other = torch.nn.Linear(4, 3), torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    scaler = torch.amp.GradScaler("cpu", growth_interval=1)
    of_other, own = sgd(other), supervised_step(model, LOSS, batches())
    adversary = supervised_step(other, LOSS, batches(1), scaler=scaler)

    def both():
        of_other.zero_grad()
        adversary()
        scaler.step(of_other)
        scaler.update()
        return own()

    before = repr(other.state_dict())
    found = lr_range_test(model, sgd(model), both, num_steps=9, also=(own, adversary, of_other), progress=False)
    alone = lr_range_test(model, sgd(model), own, num_steps=9, progress=False)
    assert found.losses == alone.losses
    assert repr(other.state_dict()) == before
    assert scaler.get_scale() == 2.0**16
    assert not of_other.state


def test_a_tensor_that_cannot_be_cloned_is_named():
    """Before anything is changed, the error says which tensor it is, and of what kind."""
    model = with_buffer(lambda layer, x: None, "table", torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match=r"need tensors that can be cloned, got model\.table \(torch\.float32"):
        lr_range_test(model, sgd(model), lambda: 1.0, keep="cpu", progress=False)


# -- what cannot be put back


class Stuck(Counter):
    """Cannot be put back."""

    def load_state_dict(self, state):
        raise OSError("the disk is full")


def stuck_test(train_step=None, also=None):
    torch.manual_seed(0)
    model = Layer(replaced_buffer)
    model.register_buffer("mean", torch.ones(4))
    optimizer, before = sgd(model), held(model)
    random.seed(0)
    state = random.getstate()
    step = train_step or supervised_step(model, LOSS, batches())
    try:
        lr_range_test(model, optimizer, step, num_steps=12, also=also or (Stuck(),), progress=False)
    finally:
        assert held(model) == before
        assert random.getstate() == state


def test_what_could_not_be_put_back_is_named_beside_the_result():
    """The error names the thing and its exception and holds the result; everything else is put back."""
    with pytest.raises(RestoreError) as raised:
        stuck_test()
    error = raised.value
    assert isinstance(error.result, LRRangeTest)
    assert len(error.result.losses) == 12
    ((name, cause),) = error.failures
    assert name == "also[0] (Stuck)"
    assert isinstance(cause, OSError)
    assert str(error) == (
        "the range test could not put back: also[0] (Stuck) (OSError: the disk is full). All else is as before the "
        f"test, and its result is this error's .result: {error.result!r}"
    )


def test_an_exception_of_the_training_is_the_cause():
    """Without a result the error says what could not be put back, and its cause is what ended the training."""

    def train_step():
        random.random()
        raise ZeroDivisionError

    with pytest.raises(RestoreError, match=r"All else is as before the test$") as raised:
        stuck_test(train_step)
    assert raised.value.result is None
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_stays_one(interrupt):
    """Ctrl-C goes on as such although something could not be put back; a warning names it."""

    def train_step():
        raise interrupt

    with pytest.warns(UserWarning, match="could not put back: also"), pytest.raises(interrupt):
        stuck_test(train_step)


def test_an_earlier_exception_is_not_the_cause():
    """An exception that is being handled where the test is called is not taken for one of the test."""
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        with pytest.raises(RestoreError) as raised:
            stuck_test()
    assert raised.value.__cause__ is None
    assert raised.value.result is not None


def test_many_failures_are_counted():
    """Of many things that could not be put back the first are named, and the others counted."""
    with pytest.raises(RestoreError, match=r"; 3 more\. All else") as raised:
        stuck_test(also=[Stuck() for _ in range(MOST_NAMES + 3)])
    assert len(raised.value.failures) == MOST_NAMES + 3
    assert str(raised.value).count("the disk is full") == MOST_NAMES


def test_a_tensor_that_cannot_be_written_to_is_named():
    """A buffer that refuses to be copied into is named by its place in the model; the others are put back."""

    class ReadOnly(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.copy_:
                raise OSError("read-only")
            return super().__torch_function__(function, types, args, kwargs or {})

    model = with_buffer(lambda layer, x: None, "table", torch.ones(3).as_subclass(ReadOnly))
    weight = model.weight.tolist()
    with pytest.raises(RestoreError, match=r"could not put back: model\.table \(OSError: read-only\)"):
        lr_range_test(model, sgd(model), supervised_step(model, LOSS, batches()), num_steps=3, progress=False)
    assert model.weight.tolist() == weight


def test_names_say_where_things_are():
    """Parameters, state and attributes are named as they are reached from model and optimizer."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    model[0].history = [torch.zeros(1)]
    optimizer = CyclicSGD(model.parameters(), lr=0.1, momentum=0.9, policy=OneCycle(10))
    model[0].weight.grad = torch.ones(1, 1)
    optimizer.step()
    names = {undo.name for undo in save_all(model, optimizer)}
    assert {"model.0.weight", "model.0.weight.grad", "model.0.history[0]", "model.0.history"} <= names
    assert "optimizer.param_groups[0]" in names
    assert "optimizer.state[0].momentum_buffer" in names


def test_a_deeply_nested_model_is_put_back():
    """The search is no recursion: models may be nested deeper than Python's stack."""
    model = inner = torch.nn.Sequential()
    for _ in range(sys.getrecursionlimit()):
        inner.add_module("next", deeper := torch.nn.Sequential())
        inner = deeper
    inner.add_module("last", torch.nn.Linear(1, 1))
    param = inner[0].weight
    undos = save_all(torch.nn.Identity(), torch.optim.SGD([param], lr=0.1), also=[model])
    before = param.item()
    with torch.no_grad():
        param.add_(1)
    inner[0].bias = None
    assert put_back(undos) == []
    assert param.item() == before
    assert inner[0].bias is not None
