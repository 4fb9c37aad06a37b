"""The range test with several processes: one loss, one curve, one end; and every rank is put back.

Each launch starts real gloo processes, which import torch anew, so one launch serves several claims: the scenarios
return what they saw, and the tests compare.
"""

import copy
import datetime
import pickle
import re
from typing import get_args

import pytest
import torch
import torch.distributed as dist
import torch_versions
from processes import leave, run_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from cyclic_optim import CyclicSGD, lr_range_test, supervised_step
from cyclic_optim.range_test.contents import Place

LOSS = torch.nn.functional.cross_entropy
#: With two processes all is tested that may differ; with four, that it holds for more of them.
SEEDS = {2: range(3), 4: range(1)}
KEEP = {2: get_args(Place), 4: ("device",)}


# -- what is trained


def data(seed):
    torch.manual_seed(seed)
    points = torch.randn(512, 10)
    return TensorDataset(points, (points @ torch.randn(10, 3)).argmax(1))


def loader(seed, rank, world_size):
    sampler = DistributedSampler(data(seed), world_size, rank, seed=seed)
    return DataLoader(data(seed), 32, sampler=sampler)


def network(seed, norm=True):
    torch.manual_seed(seed)
    middle = [torch.nn.BatchNorm1d(16)] if norm else []
    return torch.nn.Sequential(torch.nn.Linear(10, 16), *middle, torch.nn.ReLU(), torch.nn.Linear(16, 3))


def sgd(model):
    return CyclicSGD(model.parameters(), lr=0.1, momentum=0.9)


def local(value):
    return value.to_local() if hasattr(value, "to_local") else value


def state(model, optimizer):
    """What this rank holds: weights, buffers, and the optimizer's state."""
    tensors = {name: local(value).tolist() for name, value in model.state_dict().items()}
    return copy.deepcopy((tensors, repr([[local(v) for v in s.values()] for s in optimizer.state.values()])))


def train(model, optimizer, step):
    """Two steps, from the loader's first batch."""
    step.restart()
    for _ in range(2):
        optimizer.zero_grad()
        step()
        optimizer.step()


def run_test(model, batches, **options):
    """The curve, and whether everything is as before, momentum buffers included."""
    optimizer, step = sgd(model), supervised_step(model, LOSS, batches)
    train(model, optimizer, step)
    before = state(model, optimizer)
    found = lr_range_test(model, optimizer, step, progress=False, **options)
    as_before = state(model, optimizer) == before
    return found, as_before


def run_test_and_train(make, batches, evaluate=None, **options):
    """The curve, and whether training after it ends as training without it."""
    ends = []
    for with_test in (False, True):
        model = make()
        optimizer, step = sgd(model), supervised_step(model, LOSS, batches)
        train(model, optimizer, step)
        if with_test:
            validation = None if evaluate is None else lambda model=model: evaluate(model)
            found = lr_range_test(model, optimizer, step, validation=validation, progress=False, **options)
        train(model, optimizer, step)
        ends.append(state(model, optimizer))
    return found, ends[0] == ends[1]


# -- scenarios: each is run on every rank and returns what is compared


def data_parallel(rank, world_size):
    return [
        run_test_and_train(lambda seed=seed: DistributedDataParallel(network(seed)), loader(seed, rank, world_size))
        for seed in SEEDS[world_size]
    ]


def sharded_network():
    from torch.distributed.fsdp import fully_shard

    model = network(0, norm=False)
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    return model


def sharded(rank, world_size):
    batches = loader(0, rank, world_size)
    return [run_test_and_train(sharded_network, batches, keep=keep, num_steps=40) for keep in KEEP[world_size]]


def sharded_and_validated(rank, world_size):
    """An evaluation leaves the root of a sharded model with its whole parameters."""
    held_out = data(1)[:64]

    def evaluate(model):
        with torch.no_grad():
            return LOSS(model(held_out[0]), held_out[1])

    def make():
        from torch.distributed.fsdp import fully_shard

        return fully_shard(network(0, norm=False))

    return run_test_and_train(make, loader(0, rank, world_size), evaluate, num_steps=20)


def without_a_wrapper(rank, world_size):
    """Processes whose models are not coupled: the loss alone is averaged."""
    return run_test(network(rank), loader(rank, 0, 1))


def validated(rank, world_size):
    """Each rank measures another validation loss."""
    return run_test(network(0), loader(0, rank, world_size), validation=lambda: 1.0 + rank, num_steps=5)


def by_itself(rank, world_size):
    """One process opts out; the others take no part."""
    if rank > 0:
        return None
    return run_test(network(0), loader(0, 0, 1), process_group=False)


def in_a_group(rank, world_size):
    """The first two processes test among themselves, and any others among themselves."""
    groups = [dist.new_group(ranks) for ranks in ([0, 1], range(2, world_size)) if len(ranks)]
    mine = groups[0] if rank < 2 else groups[1]
    outside = groups[1] if rank < 2 and len(groups) > 1 else groups[0]
    message = None
    if outside is not mine:
        try:
            run_test(network(0), loader(0, 0, 1), process_group=outside)
        except ValueError as error:
            message = str(error)
    return run_test(network(0), loader(rank, 0, 1), process_group=mine), message


def differing(rank, world_size):
    """Ranks with different arguments, and one whose own argument is wrong."""
    messages = []
    wrong = [{"num_steps": 10 + rank}, {"end_lr": 1.0 + rank}, {"mode": "exponential" if rank else "cubic"}]
    wrong += [{} if rank else {"validation": lambda: 1.0}, {} if rank else {"also": (3,)}, {"smoothing": 7}]
    for options in wrong:
        model = network(0)
        optimizer = sgd(model)
        before = state(model, optimizer)
        try:
            lr_range_test(model, optimizer, supervised_step(model, LOSS, loader(0, 0, 1)), progress=False, **options)
        except (ValueError, TypeError, RuntimeError) as error:
            messages.append((str(error), state(model, optimizer) == before))
    return messages


def running_out(rank, world_size):
    """Iterators that end at different steps."""
    model = DistributedDataParallel(network(0, norm=False))
    batches = [*loader(0, rank, world_size)]
    return run_test(model, iter((batches * 9)[: 12 + rank]))


def not_finite(rank, world_size):
    """The loss of the last rank alone becomes NaN."""
    model, steps = network(0), []

    def train_step():
        steps.append(0)
        return float("nan") if rank == world_size - 1 and len(steps) == 4 else 1.0

    return lr_range_test(model, sgd(model), train_step, progress=False)


SCENARIOS = [data_parallel, sharded, sharded_and_validated, without_a_wrapper, validated, by_itself]
SCENARIOS += [in_a_group, differing, running_out, not_finite]


def _work(rank, world_size, folder):
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=90)  # a rank that is left alone fails instead of hanging
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size, timeout=wait
    )
    seen = {scenario.__name__: scenario(rank, world_size) for scenario in SCENARIOS}
    with open(f"{folder}/{rank}", "wb") as file:
        pickle.dump(seen, file)
    leave()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """What the scenarios returned, by scenario and rank."""
    torch_versions.need_fully_shard_on_cpu()
    folder, world_size = tmp_path_factory.mktemp("ranks"), request.param
    run_processes(_work, world_size, str(folder), nprocs=world_size)
    seen = [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(world_size)]
    return {scenario.__name__: [one[scenario.__name__] for one in seen] for scenario in SCENARIOS}


# -- claims


def check_alike(results):
    """All ranks have one curve, and go on as without the test."""
    assert all(found == results[0][0] for found, _ in results)
    assert all(undisturbed for _, undisturbed in results)


def test_data_parallel_ranks_stop_at_one_step(ranks):
    """Under DDP all ranks return the same curve and suggestion for every seed, and are put back."""
    for results in zip(*ranks["data_parallel"], strict=True):
        check_alike(results)
        assert 0.01 < results[0][0].suggest()[1] < 3


def test_sharded_ranks_stop_at_one_step(ranks):
    """Under fully_shard too, wherever the clones are kept."""
    for results in zip(*ranks["sharded"], strict=True):
        check_alike(results)
        assert list(results) == ranks["sharded"][0][:1] * len(results)


def test_a_sharded_model_that_was_evaluated_is_sharded_again(ranks):
    """After a validation, which leaves whole parameters in the root, the model holds its shards."""
    check_alike(ranks["sharded_and_validated"])


def test_ranks_that_train_different_models_stop_at_one_step(ranks):
    """The average decides, also where nothing but the range test couples the processes."""
    check_alike(ranks["without_a_wrapper"])


def test_validation_losses_are_averaged_too(ranks):
    """The recorded loss is the mean of the ranks' validation losses."""
    check_alike(ranks["validated"])
    world_size = len(ranks["validated"])
    assert ranks["validated"][0][0].losses == [1.0 + (world_size - 1) / 2] * 5


def test_one_process_may_opt_out(ranks):
    """With process_group=False a process tests by itself while the others do something else."""
    found, as_before = ranks["by_itself"][0]
    assert as_before
    assert found.suggest()[1] > 0.01


def test_a_group_of_ranks_may_be_given(ranks):
    """Only the ranks of the given group are averaged over; a process outside of it is refused."""
    results = [found for found, _ in ranks["in_a_group"]]
    for group in (results[:2], results[2:]):
        if group:
            check_alike(group)
    messages = {message for _, message in ranks["in_a_group"] if message is not None}
    assert len(results) == 2 or {re.sub(", got.*", "", message) for message in messages} == {
        "need a process_group that this process belongs to"
    }


def test_ranks_with_different_arguments_are_refused(ranks):
    """Each rank names the argument and all ranks' values, before anything has happened."""
    for messages in ranks["differing"]:
        world_size = len(ranks["differing"])
        steps, ends, modes, validations, things, smoothing = (message for message, _ in messages)
        assert steps.startswith(f"need the same num_steps on all ranks, got {[*range(10, 10 + world_size)]}")
        assert ends.startswith("need the same end_lr on all ranks, got [1.0, 2.0")
        assert modes.startswith("need the same mode on all ranks, got ['cubic', 'exponential'")
        assert validations.startswith("need the same validation (given or not) on all ranks, got [True, False")
        assert smoothing == "need 0 <= smoothing < 1, got smoothing=7"
        assert things.startswith(("need also= to hold modules", "need all ranks to begin the range test, got an error"))
        assert "process_group=False" in steps
        assert all(as_before for _, as_before in messages)


def test_data_that_end_on_one_rank_end_the_test_on_all(ranks):
    """The test ends after as many steps as the rank with the fewest batches can make."""
    check_alike(ranks["running_out"])
    found = ranks["running_out"][0][0]
    # Two batches were used before the test.
    assert found.stopped == f"the data ended after {12 - 2} steps"


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(ranks):
    """A NaN of one rank is the average's, so that no rank makes an update that the others do not."""
    assert [len(found.losses) for found in ranks["not_finite"]] == [4] * len(ranks["not_finite"])
    assert all(found.stopped.startswith("the loss was nan at lr=") for found in ranks["not_finite"])


def test_a_group_needs_torch_distributed():
    """A group that is given where nothing is initialized is refused."""
    model = network(0)
    with pytest.raises(ValueError, match=r"need torch\.distributed to be initialized for a group, got process_group=3"):
        lr_range_test(model, sgd(model), lambda: 1.0, process_group=3, progress=False)
