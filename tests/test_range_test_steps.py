"""The training step of a range test: any batch, what a step may tell, and what a loss may be."""

import collections
import dataclasses
import functools
import math
import types

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from cyclic_optim import (
    CyclicAdamW,
    CyclicSGD,
    LinearDecay,
    LRRangeTest,
    NoSuggestionError,
    OneCycle,
    Triangular,
    WarmupStableDecay,
    cyclic,
    lr_range_test,
    supervised_step,
)

LOSS = torch.nn.functional.cross_entropy


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, **options)


def classification(seed=3, points=896, classes=3, size=0.3):
    """Gaussian points and the arg max of a random linear map, with the generator's order of batches."""
    torch.manual_seed(seed)
    points = torch.randn(points, 20) * size
    return points, (points @ torch.randn(20, classes)).argmax(1)


def loader_of(points, labels, seed=3):
    order = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(points, labels), 64, shuffle=True, generator=order)


def network(*middle):
    return torch.nn.Sequential(torch.nn.Linear(20, 32), *middle, torch.nn.ReLU(), torch.nn.Linear(32, 3))


# -- batches

Pair = collections.namedtuple("Pair", "first second")
X, Y = torch.ones(2, 3), torch.zeros(2, dtype=torch.long)


class Movable:
    """Knows how to move itself, as transformers' BatchEncoding does."""

    def __init__(self):
        self.devices = []

    def to(self, device):
        self.devices.append(device)
        return self


BATCHES = {
    "a tuple in a tuple": ((X, X), Y),
    "three": (X, X, Y),
    "a dict": {"x": X, "labels": Y, "n": 3},
    "a named tuple": Pair(X, Y),
    "a named tuple inside": (Pair(X, X), Y),
    "a packed sequence": (pack_sequence([torch.ones(3), torch.ones(2)]), Y),
    "one tensor": X,
    "a mapping": types.MappingProxyType({"x": X}),
    "an ordered dict": collections.OrderedDict(x=X),
}


def kinds(batch):
    if isinstance(batch, collections.abc.Mapping):
        return {key: kinds(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence):
        return type(batch), [kinds(value) for value in batch]
    return type(batch), getattr(batch, "device", None)


@pytest.mark.parametrize("kind", BATCHES)
def test_forward_gets_any_batch_on_the_device(kind):
    """Whatever a batch is made of, forward gets it with the same structure, its tensors on the device."""
    model, seen = torch.nn.Linear(3, 3), []

    def forward(given, batch):
        assert given is model
        seen.append(batch)
        return model(X).sum()

    step = supervised_step(model, None, [BATCHES[kind]], forward=forward)
    assert step() == pytest.approx(model(X).sum().item())
    assert model.weight.grad is not None
    assert kinds(seen[0]) == kinds(BATCHES[kind])
    step = supervised_step(model, None, [BATCHES[kind]], forward=forward, device="meta")
    step()
    assert "cpu" not in repr(kinds(seen[1]))


def test_what_moves_itself_is_moved():
    """A batch with a method ``to`` is moved by it."""
    batch, model = Movable(), torch.nn.Linear(3, 3)
    supervised_step(model, None, [batch], forward=lambda model, batch: model(X).sum())()
    assert batch.devices == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        ((X, X, Y), "a tuple of 3"),
        ({"x": X, "labels": Y}, "a dict of 2"),
        (X, "a Tensor"),
        ([X], "a list of 1"),
    ],
)
def test_a_criterion_takes_pairs_alone(batch, shown):
    """A batch that is no pair is an error that says what it was, and that forward takes any."""
    step = supervised_step(torch.nn.Linear(3, 3), LOSS, [batch])
    with pytest.raises(ValueError, match=f"need batches .inputs, targets. with a criterion, got {shown}: pass"):
        step()


def test_a_pair_may_hold_anything():
    """Of a pair, the model gets the first part as it is, a tuple or a dict, and the criterion the second."""
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, inputs):
            seen.append(inputs)
            return super().forward(X)

    for batch in (BATCHES["a tuple in a tuple"], BATCHES["a named tuple inside"], ({"x": X}, Y), Pair(X, Y)):
        supervised_step(Model(3, 3), LOSS, [batch])()
        assert kinds(seen[-1]) == kinds(batch[0])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda out: out, ValueError, r"to return the mean loss of the batch, got a tensor of \(2, 3\)"),
        (lambda out: None, TypeError, "to return the loss as a tensor, got None"),
        (lambda out: 1.5, TypeError, "to return the loss as a tensor, got 1.5"),
    ],
)
def test_a_loss_is_a_scalar_tensor(loss, error, message):
    """A forward or criterion that returns anything else is refused, and nothing is changed."""
    model = torch.nn.Linear(3, 3)
    before = model.weight.tolist()
    for name, step in (
        ("forward", supervised_step(model, None, [X], forward=lambda model, batch: loss(model(batch)))),
        ("criterion", supervised_step(model, lambda out, target: loss(out), [(X, Y)])),
    ):
        with pytest.raises(error, match=f"need {name} {message}"):
            lr_range_test(model, sgd(model), step, progress=False)
        assert model.weight.tolist() == before
        assert model.weight.grad is None


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (None, TypeError, "need train_step to return the loss, a number, got None"),
        (torch.ones(3), ValueError, r"need train_step to return one loss, got a tensor of shape \(3,\)"),
        ("low", TypeError, "need train_step to return the loss, a number, got 'low'"),
    ],
)
def test_a_train_step_returns_a_number(loss, error, message):
    """What one's own step or validation returns must be one number."""
    model = torch.nn.Linear(3, 3)
    with pytest.raises(error, match=message):
        lr_range_test(model, sgd(model), lambda: loss, progress=False)
    with pytest.raises(error, match=message.replace("train_step", "validation")):
        lr_range_test(model, sgd(model), lambda: 1.0, validation=lambda: loss, progress=False)


def test_one_of_criterion_and_forward_is_needed():
    """Neither and both are refused."""
    model = torch.nn.Linear(3, 3)
    for criterion, forward in ((None, None), (LOSS, lambda model, batch: 1)):
        with pytest.raises(ValueError, match="need either a criterion or forward, got criterion="):
            supervised_step(model, criterion, [], forward=forward)


# -- data that end


def test_an_iterator_that_ends_keeps_the_curve_so_far():
    """A one-shot iterator ends the test where it ends; the losses until there are the result."""
    points, labels = classification()
    model = network()
    once = iter([*loader_of(points, labels)] * 3)
    result = lr_range_test(model, sgd(model), supervised_step(model, LOSS, once), progress=False)
    assert result.stopped == "the data ended after 42 steps"
    assert len(result.losses) == len(result.lrs) == 42


def test_an_iterator_that_ends_within_accumulation_ends_the_test():
    """Batches that do not fill a step are not trained on."""
    model = torch.nn.Linear(3, 3)
    step = supervised_step(model, LOSS, iter([(X, Y)] * 7), accumulation_steps=3)
    assert len(lr_range_test(model, sgd(model), step, progress=False).losses) == 2


def test_a_restart_begins_with_the_first_batch():
    """Also after a batch was taken ahead."""
    seen = []
    step = supervised_step(
        torch.nn.Linear(3, 3),
        None,
        [X, X + 1],
        forward=lambda model, batch: (seen.append(batch[0, 0].item()), model(batch).sum())[1],
    )
    for _ in range(2):
        step()
        assert step.ready()
        step.restart()
    assert seen == [1.0, 1.0]


def test_ones_own_step_may_end_the_test():
    """StopIteration from train_step says that the data have ended."""
    model, data = torch.nn.Linear(3, 3), iter([1.0] * 5)
    assert lr_range_test(model, sgd(model), lambda: next(data), progress=False).losses == [1.0] * 5
    with pytest.raises(ValueError, match="need data for at least one optimizer step, got an empty loader or"):
        lr_range_test(model, sgd(model), lambda: next(data), progress=False)


def test_a_step_without_data_says_so():
    """Called by itself, a step raises StopIteration at the end of an iterator, and refuses an empty loader."""
    step = supervised_step(torch.nn.Linear(3, 3), LOSS, iter([(X, Y)]))
    assert step.ready()
    step()
    assert not step.ready()
    with pytest.raises(StopIteration, match="the loader ended after 1 batches and cannot be run through again"):
        step()
    model = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="need data for at least one optimizer step"):
        lr_range_test(model, sgd(model), supervised_step(model, LOSS, []), progress=False)


def test_an_iterable_dataset_is_run_through_again():
    """A loader of an IterableDataset that ends is started again, for as many steps as wanted."""

    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(*classification(points=128), strict=True)

    model = network()
    step = supervised_step(model, LOSS, DataLoader(Stream(), batch_size=64))
    assert len(lr_range_test(model, sgd(model), step, num_steps=11, end_lr=1e-3, progress=False).losses) == 11


# -- what a step tells


def clipping(step, model):
    """As gradients are clipped: after the step, before the update."""

    def clipped():
        loss = step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        return loss

    return clipped


def scaled_test(wrap, **options):
    points, labels = classification()
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    step = supervised_step(model, LOSS, loader_of(points, labels), scaler=scaler)
    more = {"also": (step,)} if options.pop("told", False) else {}
    return lr_range_test(model, sgd(model), wrap(step, model), progress=False, **more)


def plain(step, model):
    return step


WRAPPERS = {
    "functools.wraps": (lambda step, model: functools.wraps(step)(clipping(step, model)), False),
    "partial": (lambda step, model: functools.partial(step), False),
    "wraps twice": (lambda step, model: functools.wraps(step)(functools.wraps(step)(clipping(step, model))), False),
    "also": (clipping, True),
}


@pytest.mark.parametrize("way", WRAPPERS)
def test_a_wrapped_step_keeps_what_it_tells(way):
    """A step in a wrapper that passes on its scaler, generators and restart gives the very same curve."""
    wrap, told = WRAPPERS[way]
    assert scaled_test(wrap, told=told) == scaled_test(plain)


def test_a_wrapped_step_that_loses_what_it_tells_is_noticed():
    """Without its scaler the rates would be 2**16 times too high: the error says how to pass it on."""
    with pytest.raises(ValueError, match="need lr_range_test to know of the supervised_step that train_step calls"):
        scaled_test(clipping)


def test_a_step_may_be_called_where_no_test_runs():
    """After a test, also one that failed, a step can be called by itself and in other functions again."""
    step = supervised_step(torch.nn.Linear(3, 3), LOSS, [(X, Y)])
    model = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="need lr_range_test to know"):
        lr_range_test(model, sgd(model), lambda: step(), progress=False)
    assert step() > 0


def test_ones_own_step_tells_by_its_attributes():
    """A function with scaler, also, restart and ready is asked for each; the wrapper's own come first."""
    model, told, calls = torch.nn.Linear(3, 3), torch.Generator().manual_seed(0), []
    state = told.get_state()

    def step():
        torch.rand(1, generator=told)
        calls.append("step")
        return 1.0

    step.also, step.restart, step.ready = [told], lambda: calls.append("restart"), lambda: len(calls) < 4
    result = lr_range_test(model, sgd(model), step, num_steps=9, progress=False)
    assert torch.equal(told.get_state(), state)
    assert calls == ["restart", "step", "step", "step", "restart"]
    assert result.stopped == "the data ended after 3 steps"


def test_two_scalers_are_refused():
    """A scaler that is not the one that the step scales with would unscale wrongly."""
    one, other = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu")
    model = torch.nn.Linear(3, 3)
    step = supervised_step(model, LOSS, [(X, Y)], scaler=one)
    with pytest.raises(ValueError, match="need one scaler and others in also="):
        lr_range_test(model, sgd(model), step, scaler=other, progress=False)
    assert len(lr_range_test(model, sgd(model), step, scaler=one, num_steps=3, progress=False).losses) == 3


# -- modes and validation


def test_every_step_trains_in_train_mode():
    """A validation that leaves the model in eval mode does not change the next step's mode."""
    model, modes = network(torch.nn.BatchNorm1d(32), torch.nn.Dropout()), []
    model[1].eval()
    points, labels = classification()
    step = supervised_step(model, LOSS, loader_of(points, labels))

    @functools.wraps(step)
    def train_step():
        modes.append([module.training for module in model.modules()])
        return step()

    def evaluate():
        model.eval()
        return LOSS(model(points), labels)

    before = [module.training for module in model.modules()]
    lr_range_test(model, sgd(model), train_step, validation=evaluate, num_steps=20, end_lr=0.01, progress=False)
    assert modes == [before] * 20


def validated(seed, *middle):
    points, labels = classification(seed)
    model = network(*middle)
    step = supervised_step(model, LOSS, loader_of(points[:640], labels[:640], seed))

    def evaluate():
        model.eval()
        with torch.no_grad():
            return LOSS(model(points[640:]), labels[640:])

    return (
        lr_range_test(model, sgd(model), step, validation=evaluate, progress=False),
        lr_range_test(model, sgd(model), step, progress=False),
        model,
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("norm", [lambda: [], lambda: [torch.nn.BatchNorm1d(32)]], ids=["plain", "BatchNorm"])
def test_validation_losses_suggest_what_training_losses_do(norm, seed):
    """On a fresh network, with running statistics too, both kinds of loss lead to a peak of the same size."""
    of_validation, of_training, model = validated(seed, *norm())
    ratio = of_validation.suggest()[1] / of_training.suggest()[1]
    assert 1 / 4 < ratio < 4
    assert 0.02 < of_validation.suggest()[1] < 2
    assert all(getattr(module, "momentum", 0.1) == 0.1 for module in model.modules())


def test_running_statistics_are_the_last_batchs_while_validating():
    """Without a validation the layers' momentum is not touched."""
    momenta = []

    def test(**options):
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3, track_running_stats=False))

        def step():
            momenta.append([layer.momentum for layer in model])
            return model(torch.randn(4, 3)).sum()

        lr_range_test(model, sgd(model), step, num_steps=2, progress=False, **options)

    test()
    test(validation=lambda: 1.0)
    assert momenta == [[0.1, 0.1]] * 2 + [[1.0, 0.1]] * 2


# -- maximize


@pytest.mark.parametrize("middle", [lambda: [], lambda: [torch.nn.BatchNorm1d(32)]], ids=["plain", "BatchNorm"])
def test_a_maximized_loss_gives_the_same_curve_upside_down(middle):
    """With maximize=True and the negated loss the test stops where it does otherwise, and suggests the same."""
    points, labels = classification()
    found = []
    for maximize, sign in ((False, 1.0), (True, -1.0)):
        torch.manual_seed(0)
        model = network(*middle())
        step = supervised_step(model, lambda out, y, sign=sign: sign * LOSS(out, y), loader_of(points, labels))
        found.append(lr_range_test(model, sgd(model, maximize=maximize), step, progress=False))
    usual, other = found
    assert other.maximize
    assert other.losses == [-loss for loss in usual.losses]
    assert other.smoothed == [-loss for loss in usual.smoothed]
    assert (other.stopped, other.suggest()) == (usual.stopped, usual.suggest())
    assert other.suggest_lr("steepest") == usual.suggest_lr("steepest")


def test_groups_that_pull_in_both_directions_are_refused():
    """What progress is cannot be said of a loss that some groups minimize and others maximize."""
    model = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])
    optimizer = torch.optim.SGD([{"params": [model[0]], "maximize": True}, {"params": [model[1]]}], lr=0.1)
    with pytest.raises(ValueError, match="need all param groups to maximize, or none, got both: with two optimizers"):
        lr_range_test(model, optimizer, lambda: 1.0, progress=False)


# -- what cannot be tested


def test_a_model_without_parameters_to_train_is_refused():
    """Nothing is trained without a parameter that requires a gradient."""
    model = torch.nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="need a parameter with requires_grad=True in the optimizer, got none among 2"):
        lr_range_test(model, sgd(model), lambda: 1.0, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, r"need model to be a torch\.nn\.Module, got None"),
        ({"optimizer": [1]}, r"need optimizer to be a torch\.optim\.Optimizer, got \[1\]"),
        ({"train_step": [1, 2]}, r"need train_step to be a function, got \[1, 2\]: supervised_step makes one"),
        ({"validation": 3}, "need validation to be a function, got 3"),
        (
            {"also": torch.nn.Linear(1, 1)},
            r"need also to be a tuple or list, got Linear.* write also=\(thing,\)",
        ),
        ({"also": (x for x in ())}, "need also to be a tuple or list, got <generator"),
        ({"scaler": "x"}, r"need scaler to be a torch\.amp\.GradScaler, got scaler='x'"),
        ({"start_lr": "1e-3"}, "need start_lr to be a number, got start_lr='1e-3'"),
        ({"smoothing": None}, "need smoothing to be a number, got smoothing=None"),
        (
            {"optimizer": torch.optim.LBFGS([torch.nn.Parameter(torch.ones(1))])},
            r"need an optimizer whose step\(\) needs no closure, got LBFGS",
        ),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(arguments, message):
    """Each says the rule and the value, and a common mistake its way out, before anything has happened."""
    model = torch.nn.Linear(3, 3)
    given = {"model": model, "optimizer": sgd(model), "train_step": lambda: 1.0} | arguments
    with pytest.raises(TypeError, match=message):
        lr_range_test(**given, progress=False)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_must_be_enabled(off):
    """A test inside of no_grad could train nothing."""
    model = torch.nn.Linear(3, 3)
    with off(), pytest.raises(ValueError, match=r"need gradients, got .*: call this outside of torch\.no_grad\(\)"):
        lr_range_test(model, sgd(model), lambda: 1.0, progress=False)


def test_a_loss_without_a_gradient_is_refused():
    """A loss that does not depend on the parameters says so, instead of torch's words."""
    model = torch.nn.Linear(3, 3)
    step = supervised_step(model, None, [X], forward=lambda model, batch: model(batch).detach().sum())
    with pytest.raises(ValueError, match="need forward to return a loss that depends on parameters with"):
        lr_range_test(model, sgd(model), step, progress=False)


def test_a_model_without_parameters_needs_a_device():
    """Where the batches go cannot be read off such a model."""
    with pytest.raises(ValueError, match=r"need a model with parameters, or device=\.\.\., got ReLU without"):
        supervised_step(torch.nn.ReLU(), LOSS, [])
    assert supervised_step(torch.nn.ReLU(), LOSS, [], device="cpu").device == torch.device("cpu")


@pytest.mark.parametrize("loss", [0.0, 0.7, -3.0])
def test_a_constant_loss_suggests_nothing_and_says_why(loss):
    """A loss that is the same at every rate is none of the trained parameters'."""
    model = torch.nn.Linear(3, 3)
    result = lr_range_test(model, sgd(model), lambda: loss, progress=False)
    with pytest.raises(NoSuggestionError, match=f"it was always {loss:.3g}: does it depend on the param"):
        result.suggest()


# -- from the curve to the cycle


def curve(ratios=(1.0,)):
    lrs = [10 ** (i / 10 - 6) for i in range(60)]
    losses = [2.0 - 1.5 / (1 + (1e-3 / lr) ** 1.5) + min(5.0, (lr / 0.2) ** 2) for lr in lrs]
    return LRRangeTest(lrs, losses, "exponential", "the loss diverged", 0.5, ratios=ratios)


WAYS = {
    "one_cycle": (100, OneCycle),
    "triangular": (10, Triangular),
    "linear_decay": (100, LinearDecay),
    "warmup_stable_decay": (100, WarmupStableDecay),
}


def groups(model, rates=True):
    return [{"params": [model[0]]}, {"params": [model[1]], **({"lr": 0.02} if rates else {})}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [CyclicSGD, CyclicAdamW, cyclic(torch.optim.RMSprop)], ids=["SGD", "AdamW", "RMSprop"])
def test_one_call_from_the_curve_to_the_cycle(make, way):
    """The tested optimizer follows the cycle from its first step, its groups' rates in the tested proportion."""
    length, kind = WAYS[way]
    model = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])
    optimizer, found = make(groups(model), lr=0.1), curve((1.0, 0.2))
    optimizer.reschedule(**getattr(found, way)(length), step=0)
    max_lr = found.suggest()[1]
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx([max_lr, 0.2 * max_lr])
    assert all(type(policy) is kind for policy in optimizer.policies)
    assert [group["schedule_step"] for group in optimizer.param_groups] == [0, 0]
    first = optimizer.policies[0].at(0).lr_factor
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([max_lr * first, 0.2 * max_lr * first])


@pytest.mark.parametrize("make", [CyclicSGD, CyclicAdamW, cyclic(torch.optim.RMSprop)], ids=["SGD", "AdamW", "RMSprop"])
def test_rates_of_groups_are_never_kept_silently(make):
    """A constructor's lr does not reach groups with rates of their own: it refuses the list, and says where it goes."""
    model = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])
    with pytest.raises(TypeError, match=r"need lr to be a number, got lr=\[.*reschedule\(lr=\[\.\.\.\]\)"):
        make(groups(model), **curve((1.0, 0.2)).triangular(10))


def test_equal_rates_of_their_own_are_not_kept_either():
    """Groups that all have the same rate of their own, another than the optimizer's, need ``reschedule``, too."""
    model = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])
    own = [{"params": [model[0]], "lr": 0.05}, {"params": [model[1]], "lr": 0.05}]
    found = lr_range_test(model, CyclicSGD(own, lr=0.1), lambda: 1.0, num_steps=3, progress=False)
    assert found.rates_of_their_own
    found = dataclasses.replace(curve((1.0, 1.0)), rates_of_their_own=True)
    assert found.one_cycle(100)["lr"] == [found.suggest()[1]] * 2


@pytest.mark.parametrize("make", [torch.optim.SGD, CyclicSGD, CyclicAdamW])
def test_groups_without_rates_of_their_own_are_seen_to_have_none(make):
    """Groups that take the optimizer's rate lead to one number, also after a scheduler has moved it."""
    model = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])
    for given in (model.parameters(), groups(model, rates=False)):
        optimizer = make(given, lr=0.1)
        if make is torch.optim.SGD:
            torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5)
        found = lr_range_test(model, optimizer, lambda: 1.0, num_steps=3, progress=False)
        assert not found.rates_of_their_own


def test_groups_of_one_rate_get_one_number():
    """Groups that differ in weight decay alone take the suggestion as the constructor's one lr."""
    model = torch.nn.ParameterList([torch.ones(1), torch.ones(1)])
    found = curve((1.0, 1.0))
    optimizer = CyclicSGD(groups(model, rates=False), **found.one_cycle(100))
    assert {group["max_lr"] for group in optimizer.param_groups} == {found.suggest()[1]}


def test_the_cycles_take_their_options():
    """Other arguments of each policy are passed on; the range is always the suggested one."""
    found = curve()
    base_lr, max_lr = found.suggest()
    assert found.linear_decay(100, warmup=5) == {"lr": max_lr, "policy": LinearDecay(100, warmup=5)}
    by_default = WarmupStableDecay(100, warmup=5, decay=20, shape="sqrt")
    assert found.warmup_stable_decay(100) == {"lr": max_lr, "policy": by_default}
    assert found.warmup_stable_decay(100, decay=10)["policy"] == dataclasses.replace(by_default, decay=10)
    assert found.one_cycle(100, pct_start=0.2)["policy"] == OneCycle(100, pct_start=0.2, div_factor=max_lr / base_lr)


def test_a_length_that_is_none_is_refused_in_words():
    """Before parts of it are taken."""
    with pytest.raises(TypeError, match=r"need total_steps to be an int .*, got total_steps='100'"):
        curve().warmup_stable_decay("100")


def test_infinite_losses_on_the_way_are_no_data_end():
    """A loss that is not finite ends the test by itself, with the reason."""
    model = torch.nn.Linear(3, 3)
    result = lr_range_test(model, sgd(model), lambda: math.inf, progress=False)
    assert result.stopped.startswith("the loss was inf at lr=")
