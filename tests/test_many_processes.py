"""Many processes on torch's own engine: the same schedule on every rank, the same weights as one process.

Each launch starts real gloo processes, which import torch anew, so one launch serves several claims: the scenarios
return what they saw, and the tests compare. Saving, loading and reporting are those of docs/many_processes.md.
"""

import os
import pickle
import re
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch_versions
from processes import forks, leave, run_processes
from torch.optim import SGD

from cyclic_optim import CyclicSGD, LambdaPolicy, Plateau, Triangular

STEPS, CUT = 8, 3
ROWS = 8  # in the batch of one update, over all processes
POLICY = Triangular(step_size_up=3)
LRS = (0.1, 0.05)

_PAGE = (Path(__file__).resolve().parents[1] / "docs" / "many_processes.md").read_text()
_BLOCKS = re.findall(r"^```python\n(.*?)^```", _PAGE, re.MULTILINE | re.DOTALL)


def documented():
    """The functions that the page defines."""
    functions = {"torch": torch}
    for block in _BLOCKS:
        exec(block, functions)
    return functions


# -- what is trained


def make_model(zero_head=False):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()
    if zero_head:
        torch.nn.init.zeros_(model[2].weight)
        torch.nn.init.zeros_(model[2].bias)
    return model


def make_groups(model):
    """Two groups of different peaks, and one with weight decay."""
    named = dict(model.named_parameters())
    return [
        {"params": [param for name, param in named.items() if "weight" in name], "lr": LRS[0], "weight_decay": 0.01},
        {"params": [param for name, param in named.items() if "bias" in name], "lr": LRS[1]},
    ]


def make_optimizer(model, policy=POLICY, **options):
    return CyclicSGD(make_groups(model), momentum=0.9, policy=policy, **options)


def batch(step):
    """The whole batch of one update."""
    return torch.linspace(-1, 1, ROWS * 5, dtype=torch.float64).view(ROWS, 5).roll(step, 0) + 0.1 * step


def loss_of(model, rows):
    return (model(rows) - rows[:, :3].sin()).square().mean()


def values(optimizer):
    keys = ("schedule_step", "max_lr", "lr", "momentum", "policy")
    return [{key: group[key] for key in keys if key in group} for group in optimizer.param_groups]


def train(model, optimizer, steps, parts=1, rank=0, world_size=1):
    """Updates ``steps``, each from this rank's share in ``parts`` accumulated; returns the values in force at each."""
    seen = []
    for step in steps:
        optimizer.zero_grad()
        shares = batch(step).chunk(world_size)[rank].chunk(parts)
        for share in shares[:-1]:
            with model.no_sync():
                (loss_of(model, share) / parts).backward()
        (loss_of(model, shares[-1]) / parts).backward()
        seen.append(values(optimizer))
        optimizer.step()
    return [*seen, values(optimizer)]


def whole(model):
    """The weights, gathered."""
    weights = {name.removeprefix("module."): param.detach() for name, param in model.named_parameters()}
    return {name: getattr(param, "full_tensor", param.clone)() for name, param in weights.items()}


def one_process(policy=POLICY, steps=range(STEPS), **options):
    model = make_model(options.pop("zero_head", False))
    seen = train(model, make_optimizer(model, policy, **options), steps)
    return whole(model), seen


# -- scenarios: each is run on every rank and returns what is compared


def data_parallel(rank, world_size, folder):
    model = torch.nn.parallel.DistributedDataParallel(make_model())
    seen = train(model, make_optimizer(model), range(STEPS), parts=2, rank=rank, world_size=world_size)
    return whole(model), seen


def make_zero(policy, zero_head=False):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = torch.nn.parallel.DistributedDataParallel(make_model(zero_head))
    options = {} if policy is None else {"policy": policy}
    return model, ZeroRedundancyOptimizer(make_groups(model), CyclicSGD, lr=1.0, momentum=0.9, **options)


def zero_redundancy(rank, world_size, folder, policy=POLICY):
    share = {"rank": rank, "world_size": world_size}
    model, optimizer = make_zero(policy)
    seen = train(model, optimizer, range(CUT), **share)
    optimizer.consolidate_state_dict(to=0)
    if rank == 0:
        torch.save((model.module.state_dict(), optimizer.state_dict()), f"{folder}/consolidated.pt")
    dist.barrier()
    seen = seen[:-1] + train(model, optimizer, range(CUT, STEPS), **share)

    resumed_model, resumed = make_zero(policy)
    weights, state = torch.load(f"{folder}/consolidated.pt")
    resumed_model.module.load_state_dict(weights)
    resumed.load_state_dict(state)
    resumed_seen = train(resumed_model, resumed, range(CUT, STEPS), **share)
    owned = [len(group["params"]) for group in optimizer.optim.param_groups]
    return whole(model), seen, whole(resumed_model), resumed_seen, values(optimizer.optim), owned


def zero_redundancy_without_policy(rank, world_size, folder):
    return zero_redundancy(rank, world_size, folder, policy=None)


def warm_up_from_0(step):
    return min(1.0, step / 4)


def zero_redundancy_from_rate_0(rank, world_size, folder):
    """Only the rank that owns the zero-initialized head sees gradients other than 0 at first."""
    model, optimizer = make_zero(LambdaPolicy(warm_up_from_0), zero_head=True)
    seen = train(model, optimizer, range(STEPS), rank=rank, world_size=world_size)
    return whole(model), seen, values(optimizer.optim)


#: Each rank's own validation losses; rank 0's fall all the time, the mean falls twice.
METRICS = [[4.0, 3.0, 2.0, 1.0, 0.5, 0.25], [4.0, 4.0, 5.0, 6.0, 7.0, 8.0]]
PLATEAU = Plateau(factor=0.5, patience=1)


def plateau(rank, world_size, folder):
    reduced, wrapped, local = [], [], []
    model = make_model()
    optimizer, alone = make_optimizer(model, PLATEAU), make_optimizer(make_model(), PLATEAU)
    zero_model, zero = make_zero(PLATEAU)
    functions = documented()
    for step, metric in enumerate(METRICS[rank]):
        functions["report"](optimizer, torch.tensor(metric, dtype=torch.float64))
        functions["report"](zero.optim, torch.tensor(metric, dtype=torch.float64))
        functions["expose"](zero)
        train(zero_model, zero, [step], rank=rank, world_size=world_size)
        alone.report(metric)
        for seen, each in ((reduced, optimizer), (wrapped, zero), (local, alone)):
            seen.append([group["lr"] for group in each.param_groups])
    return reduced, wrapped, local


def shard(model):
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def sharded(rank, world_size, folder, **options):
    """Trains, with a checkpoint before the first update and one at ``CUT``, nested and flattened."""
    share = {"rank": rank, "world_size": world_size}
    model = shard(make_model())
    optimizer = make_optimizer(model, **options)
    save, folder = documented()["save"], f"{folder}/from-{world_size}"
    save(model, optimizer, f"{folder}/at-0")
    seen = train(model, optimizer, range(CUT), **share)
    for flatten in (False, True):
        save(model, optimizer, f"{folder}/at-{CUT}-{flatten}", flatten_optimizer_state_dict=flatten)
    seen = seen[:-1] + train(model, optimizer, range(CUT, STEPS), **share)
    return whole(model), seen


def resumed(rank, world_size, folder):
    """Fresh models go on from the checkpoints of two processes that ran :func:`sharded`."""
    results = {}
    for flatten in (False, True):
        model = shard(make_model())
        optimizer = make_optimizer(model)
        documented()["load"](
            model, optimizer, f"{folder}/from-2/at-{CUT}-{flatten}", flatten_optimizer_state_dict=flatten
        )
        seen = train(model, optimizer, range(CUT, STEPS), rank=rank, world_size=world_size)
        results[flatten] = whole(model), seen
    return results


def sharded_from_rate_0(rank, world_size, folder):
    """One checkpoint before the first update, at which the rate is 0."""
    model = shard(make_model(zero_head=True))
    optimizer = make_optimizer(model, LambdaPolicy(warm_up_from_0))
    documented()["save"](model, optimizer, f"{folder}/from-rate-0")
    seen = train(model, optimizer, range(STEPS), rank=rank, world_size=world_size)
    return whole(model), seen


def from_sgd(rank, world_size, folder):
    """A run of torch's SGD goes on under a policy, through a distributed checkpoint."""
    from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, load
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    share = {"rank": rank, "world_size": world_size}
    functions = documented()
    model = shard(make_model())
    sgd = SGD(make_groups(model), momentum=0.9)
    train(model, sgd, range(CUT), **share)
    functions["save"](model, sgd, f"{folder}/sgd")

    model = shard(make_model())
    optimizer = make_optimizer(model)
    if torch_versions.ERRORS_REACH_OTHER_RANKS:
        with pytest.raises(
            CheckpointException, match=r"Missing key in checkpoint state_dict: optimizer\.param_groups.*max_lr"
        ):
            functions["load"](model, optimizer, f"{folder}/sgd")
    loaded = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    load(loaded, checkpoint_id=f"{folder}/sgd", planner=DefaultLoadPlanner(allow_partial_load=True))
    with pytest.warns(UserWarning, match="another optimizer trained on with it"):
        set_optimizer_state_dict(model, optimizer, loaded["optimizer"])
    partial = values(optimizer)

    optimizer = make_optimizer(model)
    with pytest.warns(UserWarning, match="the schedule starts at step 0"):
        functions["load_sgd"](model, optimizer, SGD(make_groups(model), momentum=0.9), f"{folder}/sgd")
    seen = train(model, optimizer, range(CUT, STEPS), **share)
    return whole(model), seen, partial


# -- launching


def join(rank, world_size, rendezvous):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
    # What torch's own distributed checkpoints use, at least up to 2.8.
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning, r"torch\.")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=world_size, init_method=f"file://{rendezvous}")


def _work(rank, world_size, folder, scenarios):
    join(rank, world_size, f"{folder}/rendezvous-{scenarios[0].__name__}-{world_size}")
    for scenario in scenarios:
        result = scenario(rank, world_size, folder)
        Path(folder, f"{scenario.__name__}-{world_size}-{rank}").write_bytes(pickle.dumps(result))
    leave()


def launch(folder, world_size, *scenarios):
    """Run the scenarios in ``world_size`` processes; returns their results, by scenario a list by rank."""
    run_processes(_work, world_size, str(folder), scenarios, nprocs=world_size)
    return {
        scenario: [
            pickle.loads(Path(folder, f"{scenario.__name__}-{world_size}-{rank}").read_bytes())
            for rank in range(world_size)
        ]
        for scenario in scenarios
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("many_processes")


@pytest.fixture(scope="module")
def two(folder):
    """What two processes saw."""
    torch_versions.need_fully_shard_on_cpu()
    return launch(
        folder,
        2,
        sharded,
        resumed,
        sharded_from_rate_0,
        data_parallel,
        zero_redundancy,
        zero_redundancy_without_policy,
        zero_redundancy_from_rate_0,
        plateau,
        from_sgd,
    )


@pytest.fixture(scope="module")
def four(folder, two):
    """What four processes saw: going on from the checkpoints of two, and from the start."""
    return launch(folder, 4, resumed, data_parallel, sharded, zero_redundancy)


@pytest.fixture(params=["two", "four"])
def many(request):
    """What two processes saw, and four."""
    return request.getfixturevalue(request.param)


def assert_close(weights, expected):
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-10, atol=1e-12)


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


def test_data_parallel_with_accumulation_equals_one_process(many):
    """Under DDP with no_sync, every rank has one process's values at every step, and its weights to rounding."""
    expected, schedule = one_process()
    for weights, seen in many[data_parallel]:
        assert seen == schedule
        assert_close(weights, expected)


def test_fully_shard_equals_one_process(many):
    """Under fully_shard, saved before its first step too, every rank has one process's values and weights."""
    expected, schedule = one_process()
    for weights, seen in many[sharded]:
        assert seen == schedule
        assert_close(weights, expected)


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flattened"])
def test_resumed_on_the_same_layout_equals_uninterrupted(two, flatten):
    """From a distributed checkpoint, two processes go on as the two that saved it did, to the bit."""
    for (expected, schedule), results in zip(two[sharded], two[resumed], strict=True):
        weights, seen = results[flatten]
        assert seen == schedule[CUT:]
        assert_equal(weights, expected)


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flattened"])
def test_resharded_from_two_to_four(two, four, flatten):
    """Four processes, one of them without any row of the last layer, go on where two stopped, to rounding."""
    expected, schedule = two[sharded][0]
    for results in four[resumed]:
        weights, seen = results[flatten]
        assert seen == schedule[CUT:]
        assert_close(weights, expected)


def assert_zero_redundancy(ranks, policy):
    """The values and weights of one process on every rank, which owns some of the parameters."""
    expected, schedule = one_process(policy)
    for weights, seen, _, _, inside, _ in ranks:
        assert seen == schedule
        assert inside == schedule[-1]
        assert_close(weights, expected)
    assert all(sum(owned) < 4 for *_, owned in ranks)


def test_zero_redundancy_equals_one_process(many):
    """Each rank updates some of the parameters; values and weights are one process's, inside and out."""
    assert_zero_redundancy(many[zero_redundancy], POLICY)


def test_zero_redundancy_without_a_policy_equals_one_process(two):
    """The same for plain SGD."""
    assert_zero_redundancy(two[zero_redundancy_without_policy], None)


@pytest.mark.parametrize("scenario", [zero_redundancy, zero_redundancy_without_policy], ids=["policy", "none"])
def test_zero_redundancy_resumes_from_its_consolidated_state(two, scenario):
    """Counter, peaks and policy survive consolidate_state_dict and a file; training goes on to the bit."""
    for weights, seen, resumed_weights, resumed_seen, *_ in two[scenario]:
        assert resumed_seen == seen[CUT:]
        assert_equal(resumed_weights, weights)


def test_plateau_is_told_the_reduced_metric(two):
    """Reduced first, the metric moves the rate on all ranks as in one process, ZeroRedundancyOptimizer's too."""
    optimizer = make_optimizer(make_model(), PLATEAU)
    expected = []
    for metrics in zip(*METRICS, strict=True):
        optimizer.report(sum(metrics) / len(metrics))
        expected.append([group["lr"] for group in optimizer.param_groups])
    assert expected[-1] != expected[0]
    for reduced, wrapped, _ in two[plateau]:
        assert reduced == expected
        assert wrapped == expected
    assert two[plateau][0][2] != two[plateau][1][2]  # told each rank's own, they part


def test_from_a_rate_of_0_all_ranks_count_alike(two):
    """Ranks whose own gradients are all 0 at a first rate of 0 count that update, as the others do."""
    expected, schedule = one_process(LambdaPolicy(warm_up_from_0), zero_head=True)
    for weights, seen, inside in two[zero_redundancy_from_rate_0]:
        assert (seen, inside) == (schedule, schedule[-1])
        assert_close(weights, expected)


def test_from_a_rate_of_0_sharded(two):
    """A checkpoint of a fresh sharded optimizer counts nothing where the policy starts at 0, and all ranks agree."""
    expected, schedule = one_process(LambdaPolicy(warm_up_from_0), zero_head=True)
    for weights, seen in two[sharded_from_rate_0]:
        assert seen == schedule
        assert_close(weights, expected)


def test_from_sgd_through_a_distributed_checkpoint(two):
    """Through an SGD, an SGD run goes on from step 0 of the policy; partly loaded, too, with a warning."""
    model = make_model()
    sgd = SGD(make_groups(model), momentum=0.9)
    train(model, sgd, range(CUT))
    optimizer = make_optimizer(model)
    start = values(make_optimizer(make_model()))
    with pytest.warns(UserWarning, match="the schedule starts at step 0"):
        optimizer.load_state_dict(sgd.state_dict())
    schedule = train(model, optimizer, range(CUT, STEPS))
    for weights, seen, partial in two[from_sgd]:
        assert seen == schedule
        assert_close(weights, whole(model))
        assert partial == start


# -- killing


def _train_with_checkpoints(rank, world_size, folder, moment):
    """Trains from the newest checkpoint on, with one after every other update; rank 1 dies at ``moment``."""
    join(rank, world_size, f"{folder}/rendezvous-{moment}")
    functions = documented()
    model = shard(make_model())
    optimizer = make_optimizer(model)
    if newest := functions["latest"](folder):
        functions["load"](model, optimizer, newest)
    start = optimizer.param_groups[0]["schedule_step"]
    seen = []
    for step in range(start, STEPS):
        if rank == 1 and step == 4 and moment == "updating":
            # All gradients are there, and rank 0 applies its own.
            optimizer.register_step_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        seen += train(model, optimizer, [step], rank=rank, world_size=world_size)[:-1]
        if rank == 1 and step == 5 and moment == "saving":
            torch.distributed.checkpoint.FileSystemWriter.write_data = lambda *_: _die_after(f"{folder}/6/__0_0.distcp")
        if step % 2 == 1:
            functions["save"](model, optimizer, f"{folder}/{step + 1}")
    result = start, whole(model), [*seen, values(optimizer)]
    Path(folder, f"result-{rank}").write_bytes(pickle.dumps(result))
    leave()


def _die_after(file):
    """The death of a process whose peers have written a part of the checkpoint."""
    for _ in range(1000):
        if Path(file).exists():
            break
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["updating", "saving"])
def test_killed_and_restarted_equals_undisturbed(two, tmp_path, moment):
    """One process is killed, all start again from the last whole checkpoint: weights and values are the same bits."""
    arguments = [(rank, 2, str(tmp_path), moment) for rank in range(2)]
    survivor, victim = (forks().Process(target=_train_with_checkpoints, args=each) for each in arguments)
    survivor.start()
    victim.start()
    victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    survivor.join(20)  # it fails by itself, as it hears from its peer no more, or is ended as a launcher would
    survivor.kill()
    survivor.join()
    assert survivor.exitcode != 0
    assert not (tmp_path / "6" / ".metadata").exists()
    assert (tmp_path / "6").exists() == (moment == "saving")

    run_processes(_train_with_checkpoints, 2, str(tmp_path), "never", nprocs=2)
    for rank, (expected, schedule) in enumerate(two[sharded]):
        start, weights, seen = pickle.loads((tmp_path / f"result-{rank}").read_bytes())
        assert start == 4
        assert seen == schedule[start:]
        assert_equal(weights, expected)
