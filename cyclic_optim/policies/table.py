"""All policies of the library by name. Checkpoints and the command line can name these, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from .base import Policy
from .hints import with_hints

#: The file of each policy, in the order of the reference.
_FILES = {
    "Constant": "decay",
    "Triangular": "cyclic",
    "Triangular2": "cyclic",
    "ExpRange": "cyclic",
    "OneCycle": "onecycle",
    "CosineRestarts": "cyclic",
    "CosineDecay": "decay",
    "CosineWave": "cyclic",
    "PolynomialDecay": "decay",
    "ExponentialDecay": "decay",
    "StepDecay": "decay",
    "MultiStepDecay": "decay",
    "InverseTimeDecay": "decay",
    "LinearDecay": "decay",
    "WarmupStableDecay": "decay",
    "LinearRamp": "decay",
    "ExponentialRamp": "decay",
    "Sequential": "compose",
    "Warmup": "combine",
    "Product": "combine",
    "Combined": "combine",
    "Staircase": "compose",
    "Scaled": "compose",
    "Plateau": "plateau",
    "LambdaPolicy": "compose",
}


class _Policies(Mapping[str, type[Policy]]):
    """The policies by name. A policy's file is imported when the policy is looked up.

    To create all these dataclasses takes twice as long as to import everything else in the package.
    """

    def __getitem__(self, name: str) -> type[Policy]:
        return with_hints(getattr(import_module(f".{_FILES[name]}", __package__), name))

    def __contains__(self, name: object) -> bool:
        return name in _FILES

    def __iter__(self) -> Iterator[str]:
        return iter(_FILES)

    def __len__(self) -> int:
        return len(_FILES)


POLICIES = _Policies()
