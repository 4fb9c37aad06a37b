# %% [markdown]
# # Start here
#
# A small network learns scikit-learn's handwritten digits. We find its learning rate, train with one cycle, stop and
# resume, and change the schedule during training. This page is a notebook that was run when the site was built. Its
# source, `docs/start.py`, also runs as a script, in a checkout with `pip install '.[bench]'`.

# %% [markdown]
# ## Data and a model
#
# Everything here is plain PyTorch.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

images, digits = load_digits(return_X_y=True)
split = train_test_split(images / 16, digits, random_state=0, stratify=digits)
train_x, test_x, train_y, test_y = map(torch.as_tensor, split)
train_set = TensorDataset(train_x.float(), train_y)
loss_fn = torch.nn.CrossEntropyLoss()


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    hidden, last = torch.nn.Linear(64, 128), torch.nn.Linear(128, 10)
    return torch.nn.Sequential(hidden, torch.nn.ReLU(), last)


def make_loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(train_set, batch_size=32, shuffle=True, generator=generator)


def accuracy(model: torch.nn.Module) -> float:
    with torch.no_grad():
        return float((model(test_x.float()).argmax(1) == test_y).double().mean())


# %% [markdown]
# ## Find the rate
#
# A range test trains for at most 100 steps while it raises the rate, and records the loss. Then it restores the model,
# the optimizer and the random states. `CyclicSGD` without a policy is `torch.optim.SGD`.

# %%
from cyclic_optim import CosineDecay, CyclicSGD
from cyclic_optim import lr_range_test, plot_policy, supervised_step

model, loader = make_model(), make_loader()
optimizer = CyclicSGD(model.parameters(), lr=1e-3, momentum=0.9)
found = lr_range_test(model, optimizer, supervised_step(model, loss_fn, loader))
base_lr, max_lr = found.suggest()
print(f"cycle between {base_lr:.3g} and {max_lr:.3g}")

# %%
found.plot()
plt.show()

# %% [markdown]
# ## Cycle
#
# `found.one_cycle(total_steps)` returns the `lr` and the `policy` of one cycle in that range: up to `max_lr`, then down
# to far below `base_lr`. Momentum moves in the opposite direction. All lengths are optimizer steps.

# %%
epochs = 10
total_steps = len(loader) * epochs
settings = found.one_cycle(total_steps)
ax = plot_policy(settings["policy"], total_steps, lr=settings["lr"])
ax.set_title("")
plt.show()

# %% [markdown]
# The training loop has no scheduler. The param groups always contain the values of the next step.


# %%
def train(model, optimizer, loader, epochs, rates=None):
    """The test accuracy after each epoch; each step's rate is appended to ``rates``."""
    accuracies = []
    for _ in range(epochs):
        for x, y in loader:
            if rates is not None:
                rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
        accuracies.append(accuracy(model))
    return accuracies


model = make_model()
optimizer = CyclicSGD(model.parameters(), lr=1e-3, momentum=0.9)
at_default = train(model, optimizer, make_loader(), epochs)

model = make_model()
optimizer = CyclicSGD(model.parameters(), momentum=0.9, **settings)
in_a_cycle = train(model, optimizer, make_loader(), epochs)
print(f"test accuracy at the default rate: {at_default[-1]:.1%}")
print(f"test accuracy in one cycle: {in_a_cycle[-1]:.1%}")

# %%
figure, ax = plt.subplots(layout="constrained")
ax.plot(range(1, epochs + 1), at_default, "--", label="lr=1e-3")
ax.plot(range(1, epochs + 1), in_a_cycle, label="one cycle")
ax.set_xlabel("epoch")
ax.set_ylabel("test accuracy")
ax.legend()
plt.show()

# %% [markdown]
# One seed of one small task shows how it is done, but proves nothing. [Does it help?](../README.md#does-it-help) has
# measurements on more tasks.
#
# ## Stop and resume
#
# The clock, the peak and the policy are in `optimizer.state_dict()`, so there is nothing else to save. We stop the same
# run after 4 epochs and continue with a new model and a new optimizer.

# %%
first, loader = make_model(), make_loader()
optimizer = CyclicSGD(first.parameters(), momentum=0.9, **settings)
train(first, optimizer, loader, epochs=4)
checkpoint = {"model": first.state_dict(), "optimizer": optimizer.state_dict()}
checkpoint = copy.deepcopy(checkpoint)  # as if saved to a file

second = make_model()
second.load_state_dict(checkpoint["model"])
optimizer = CyclicSGD(second.parameters(), momentum=0.9, **settings)
optimizer.load_state_dict(checkpoint["optimizer"])
print(f"continues at step {optimizer.param_groups[0]['schedule_step']} of {total_steps}")
train(second, optimizer, loader, epochs - 4)
pairs = zip(model.parameters(), second.parameters(), strict=True)
same = all(torch.equal(one, other) for one, other in pairs)
print(f"the same weights as without the interruption, to the bit: {same}")
assert same

# %% [markdown]
# ## Steer
#
# `reschedule` changes the policy, the peak or the clock during training. Here a run of unknown length follows the
# cycles of `found.triangular`. To end it, the rate decays from its current value.

# %%
model, loader = make_model(), make_loader()
rates: list[float] = []
settings = found.triangular(step_size_up=len(loader) * 2)
optimizer = CyclicSGD(model.parameters(), momentum=0.9, **settings)
train(model, optimizer, loader, 6, rates)
rate = optimizer.param_groups[0]["lr"]
optimizer.reschedule(policy=CosineDecay(len(loader) * 2), lr=rate, step=0)
train(model, optimizer, loader, 2, rates)

figure, ax = plt.subplots(layout="constrained")
ax.plot(rates)
ax.axvline(len(loader) * 6, linestyle=":", color="gray")
ax.set_xlabel("optimizer step")
ax.set_ylabel("learning rate")
plt.show()
print(f"test accuracy: {accuracy(model):.1%}")

# %% [markdown]
# ## Next steps
#
# - [Find your rate](find_your_rate.md): the range test in detail, for your own kind of training
# - [Which policy?](which_policy.md) and the [gallery](gallery.md) of all policies
# - [Steer it](steer.md), [Groups](groups.md), [Save and resume](resume.md)
# - [Moving over](moving_over.md) from torch's schedulers, also during training
