"""Uses that a type checker must accept, and the types that it must see."""

import functools
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import assert_type

from cyclic_optim import (
    Combined,
    CosineDecay,
    CyclicAdamW,
    CyclicSGD,
    LambdaPolicy,
    LinearRamp,
    LRRangeTest,
    MultiStepDecay,
    NoSuggestionError,
    OneCycle,
    Plateau,
    Policy,
    Product,
    RestoreError,
    Scheduled,
    Sequential,
    Staircase,
    Triangular,
    Values,
    Warmup,
    WarmupStableDecay,
    cyclic,
    lr_range_test,
    plot_policy,
    supervised_step,
)


class Network(torch.nn.Sequential):
    def loss(self, inputs: Tensor, classes: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(self(inputs), classes)


model = Network(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(3, (64,))), batch_size=8)
loss_fn = torch.nn.CrossEntropyLoss()

# Any sequence is taken; policies are values.
warm = Warmup(CosineDecay(900), 100, start_factor=0.1)
Sequential([warm, OneCycle(500, anneal_strategy="linear")], [1000])
Sequential((Triangular(step_size_up=10), warm), (40,), restart=False)
policies: list[CosineDecay] = [CosineDecay(10), CosineDecay(20)]
Product(policies)
MultiStepDecay([10, 20], gamma=0.5)
MultiStepDecay(range(10, 100, 10))
WarmupStableDecay(1000, warmup=50, decay=200, shape="sqrt")
Triangular(10, scale_fn=lambda cycle: 1 / cycle, scale_mode="cycle")
Plateau(mode="max", threshold_mode="abs", factor=0.5)
LambdaPolicy(lambda step: 1 / (1 + step))
Combined(lr=warm, momentum=LinearRamp(300, 0.85, 0.95))
assert_type(hash(warm), int)
assert_type(OneCycle(10).total_steps, int)
assert_type(OneCycle(10).at(3), Values)
assert_type(OneCycle(10).at(3).momentum, float | None)
assert_type(warm.period, int | None)
assert_type(MultiStepDecay([10, 20]).milestones[0], int)
assert_type(Sequential([warm], []).policies[0], Policy)


@dataclass(frozen=True)
class Sawtooth(Policy):
    length: int

    def at(self, step: int) -> Values:
        return Values(lr_factor=1 - (step % self.length) / self.length)


# Whatever torch takes as params, and groups with different keys.
in_epochs = Staircase(Sawtooth(5), len(loader))
optimizer = CyclicSGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, policy=in_epochs)
CyclicSGD(model.named_parameters(), lr=torch.tensor(0.1), weight_decay=5e-4, policy=OneCycle(1000), capturable=True)
CyclicSGD([torch.nn.Parameter(torch.zeros(3))], foreach=True)
CyclicSGD(
    [
        {"params": model[0].parameters(), "lr": 1e-3, "policy": None},
        {"params": model[2].parameters(), "policy": OneCycle(10)},
        {"params": [torch.nn.Parameter(torch.zeros(3))]},
    ],
    policy=Triangular(),
)
adamw = CyclicAdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), policy=OneCycle(1000))
as_sgd: torch.optim.SGD = optimizer
either: Scheduled = adamw
CyclicRMSprop = cyclic(torch.optim.RMSprop)
rmsprop = CyclicRMSprop(model.parameters(), lr=1e-3, alpha=0.9, policy=OneCycle(10, cycle_momentum=False))
for one in (optimizer, adamw, rmsprop):
    assert_type(one.policy, Policy | None)
    assert_type(one.policies, list[Policy | None])
    one.reschedule(policy=OneCycle(100), lr=0.01, step=0)
    one.reschedule(lr=[0.1, 0.2], group=[0, 1])
    one.reschedule(lr=[group["lr"] for group in one.param_groups])
    one.report(0.5)
    one.report(torch.tensor(0.5))
    one.load_state_dict(one.state_dict())
    one.step()
lr_scheduler.LambdaLR(rmsprop, lambda step: 1.0)
scheduler: lr_scheduler.LRScheduler = optimizer.passive_scheduler()


def closure() -> Tensor:
    loss = model.loss(torch.randn(1, 8), torch.tensor([0]))
    loss.backward()
    return loss


assert_type(optimizer.step(closure), Tensor)
assert_type(optimizer.step(lambda: 0.5), float)

sgd = torch.optim.SGD(model.parameters(), lr=0.1)
assert_type(CyclicSGD.from_torch(sgd), CyclicSGD)
assert_type(CyclicSGD.from_torch(sgd, lr_scheduler.StepLR(sgd, 30), steps_per_epoch=10, steps_into_epoch=3), CyclicSGD)
assert_type(CyclicAdamW.from_torch(torch.optim.AdamW(model.parameters())), CyclicAdamW)
CyclicSGD.from_torch(sgd, lr_scheduler.ReduceLROnPlateau(sgd))

# The range test.
step = supervised_step(model, loss_fn, loader)
assert_type(step(), float)
supervised_step(model, None, loader, "cuda", forward=lambda model, batch: model.loss(*batch))
scaler = torch.amp.GradScaler("cuda")
scaled = supervised_step(model, loss_fn, loader, autocast=torch.float16, accumulation_steps=2, scaler=scaler)


@functools.wraps(scaled)
def clipped() -> float:
    loss = scaled()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return loss


found = lr_range_test(model, optimizer, step, start_lr=1e-5, mode="linear", keep="cpu", progress=False)
lr_range_test(model, sgd, clipped, scaler=scaler, also=[sgd], validation=lambda: torch.tensor(0.5), process_group=False)
lr_range_test(model, adamw, closure, also=(loader, step))
assert_type(found, LRRangeTest)
assert_type(found.suggest(), tuple[float, float])
assert_type(found.suggest_lr("steepest"), float)
assert_type(found.lrs, list[float])
assert_type(found.smoothed, list[float])
assert_type(found.plot(), Axes)
assert_type(found.plot(plot_policy(warm, 100, lr=0.1)), Axes)
found.to_csv("losses.csv")
optimizer.reschedule(**found.one_cycle(total_steps=1000), step=0)
CyclicSGD(model.parameters(), **found.triangular(100, cycle_momentum=False))
try:
    found.suggest()
except NoSuggestionError as error:
    print(error)
except RestoreError as error:
    assert_type(error.result, LRRangeTest | None)
