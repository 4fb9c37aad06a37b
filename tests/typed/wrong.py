"""Uses that a type checker must refuse: each line that ends in ``# error``, and no other."""

import torch
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import cyclic_optim
from cyclic_optim import (
    Combined,
    CyclicAdamW,
    CyclicSGD,
    ExpRange,
    LambdaPolicy,
    MultiStepDecay,
    OneCycle,
    Plateau,
    Product,
    Sequential,
    Staircase,
    Triangular,
    Warmup,
    WarmupStableDecay,
    cyclic,
    lr_range_test,
    plot_policy,
    supervised_step,
)

model = torch.nn.Linear(8, 3)
loader = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(3, (64,))), batch_size=8)
loss_fn = torch.nn.CrossEntropyLoss()
sgd = torch.optim.SGD(model.parameters(), lr=0.1)

# Policies: words, numbers, names of arguments.
policy = OneCycle(10)
OneCycle(10, anneal_strategy="cosine")  # error
OneCycle("10")  # error
OneCycle(total=10)  # error
OneCycle()  # error
OneCycle(10, max_lr=0.1)  # error
OneCycle(10, three_phase="yes")  # error
Triangular(10, scale_mode="epochs")  # error
Triangular(10, scale_fn=0.5)  # error
ExpRange(10)  # error
WarmupStableDecay(1000, 50, 200, shape="exponential")  # error
Plateau(mode="least")  # error
Plateau(threshold_mode="relative")  # error
MultiStepDecay(10)  # error
MultiStepDecay(["10"])  # error
Sequential([OneCycle], [])  # error
Sequential([policy, 0.1], [5])  # error
Sequential([policy, policy], 5)  # error
Product(policy)  # error
Warmup(100, policy)  # error
Staircase(policy)  # error
Combined(lr=0.1)  # error
LambdaPolicy(0.1)  # error
policy.at("3")  # error
print(policy.at(3).learning_rate)  # error
policy.total_steps = 20  # error
cyclic_optim.OneCyle(10)  # error


def of_any_word(word: str) -> OneCycle:
    return OneCycle(10, anneal_strategy=word)  # error


# Optimizers.
optimizer = CyclicSGD(model.parameters(), lr=0.1, policy=policy)
CyclicSGD(model, lr=0.1)  # error
CyclicSGD(["weight"], lr=0.1)  # error
CyclicSGD(model.parameters(), 0.1, 0.9, OneCycle(100))  # error
CyclicSGD(model.parameters(), policy=OneCycle)  # error
CyclicSGD(model.parameters(), policy="one-cycle")  # error
CyclicSGD(model.parameters(), polcy=policy)  # error
CyclicSGD(model.parameters(), betas=(0.9, 0.999))  # error
CyclicAdamW(model.parameters(), momentum=0.9)  # error
CyclicSGD.from_torch(sgd, lr_scheduler.StepLR)  # error
CyclicSGD.from_torch(model)  # error
optimizer.policy = policy  # error
optimizer.report("0.5")  # error
optimizer.report()  # error
optimizer.reschedule(OneCycle)  # error
optimizer.reschedule(polcy=policy)  # error
optimizer.reschedule(step="0")  # error
optimizer.reshedule(step=0)  # error
optimizer.step(0.5)  # error
optimizer.step() + 1  # error
cyclic(sgd)  # error
cyclic(torch.nn.Linear)  # error
cyclic(torch.optim.RMSprop)(model.parameters(), lr=0.1, policy=OneCycle)  # error
cyclic(torch.optim.RMSprop)(model.parameters(), policy=policy).reschedule(OneCycle)  # error

# The range test.
step = supervised_step(model, loss_fn, loader)
found = lr_range_test(model, optimizer, step)
supervised_step(loss_fn, model)  # error
supervised_step(model, None, loader, forward=lambda model, batch: model.no_such_thing + 1)  # error
supervised_step(model, loss_fn, loader, autocast="float16")  # error
lr_range_test(model, optimizer, loader)  # error
lr_range_test(model, optimizer, step, 1e-5)  # error
lr_range_test(model, optimizer, step, mode="log")  # error
lr_range_test(model, optimizer, step, keep="gpu")  # error
lr_range_test(model, optimizer, step, also=loader)  # error
lr_range_test(model, optimizer, step, scaler=True)  # error
lr_range_test(model, optimizer, step, process_group=True)  # error
found.suggest_lr("best")  # error
print(found.suggest().max_lr)  # error
found.one_cycle()  # error
found.plot("losses.png")  # error
found.losses = []  # error
plot_policy(policy)  # error
plot_policy(OneCycle, 100)  # error
