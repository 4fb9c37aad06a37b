"""What to write instead of what was given as a policy and is none: the ends of error messages."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import partial
from inspect import signature

from torch.optim.lr_scheduler import LRScheduler

from .policies import POLICIES
from .policies.base import class_hint, written


def policy_hint(value: object) -> str:
    """What to write where a class, a scheduler, a name or a function was given; empty where that is not known."""
    return class_hint(value, "policy=") or _scheduler_hint(value) or _name_hint(value) or _function_hint(value)


#: The policy for each of torch's schedulers, in hints.
POLICY_OF = {
    "ChainedScheduler": "Product",
    "ConstantLR": "Sequential",
    "CosineAnnealingLR": "CosineDecay",
    "CosineAnnealingWarmRestarts": "CosineRestarts",
    "CyclicLR": "Triangular",
    "ExponentialLR": "ExponentialDecay",
    "LambdaLR": "LambdaPolicy",
    "LinearLR": "LinearRamp",
    "MultiStepLR": "MultiStepDecay",
    "OneCycleLR": "OneCycle",
    "PolynomialLR": "PolynomialDecay",
    "ReduceLROnPlateau": "Plateau",
    "SequentialLR": "Sequential",
    "StepLR": "StepDecay",
}


#: from_torch refuses this one, so no hint names it.
_NOT_TAKEN_OVER = {"ChainedScheduler"}


def _scheduler_hint(value: object) -> str:
    """The way out where a torch scheduler, its class, or a partial of that was given as policy."""
    made = value.func if isinstance(value, partial) else value
    kind = made if isinstance(made, type) else type(made)
    if not issubclass(kind, LRScheduler):
        return ""
    name = POLICY_OF.get(kind.__name__)
    instead = f"write policy={written(POLICIES[name])}, with the peak as lr" if name else "write a policy"
    if name is None or kind.__name__ in _NOT_TAKEN_OVER:
        return f": {instead}"
    return f": {instead}; from_torch(optimizer, scheduler) takes over a run that is under way"


#: What others call a policy, beside the names of torch's schedulers; in small letters without a sign between them.
_ALSO = {
    "1cycle": "OneCycle",
    "clr": "Triangular",
    "cosine": "CosineDecay",
    "cosineannealing": "CosineDecay",
    "cosinewithrestarts": "CosineRestarts",
    "cyclic": "Triangular",
    "exponential": "ExponentialDecay",
    "lambda": "LambdaPolicy",
    "linear": "LinearDecay",
    "multistep": "MultiStepDecay",
    "poly": "PolynomialDecay",
    "polynomial": "PolynomialDecay",
    "sgdr": "CosineRestarts",
    "step": "StepDecay",
    "wsd": "WarmupStableDecay",
}


def _name_hint(value: object) -> str:
    """The way out where a policy's name, or the text of its code, was given as policy."""
    if not isinstance(value, str):
        return ""
    name = value.partition("(")[0].strip()
    if "(" in value and name in POLICIES and len(value) < _LONG:
        return f": write it without quotes, policy={value.strip()}"
    known = {_plain(one): one for one in POLICIES} | {_plain(one): name for one, name in POLICY_OF.items()} | _ALSO
    meant = get_close_matches(_plain(name[:_LONG]), known, n=1, cutoff=0.75)
    example = POLICIES[known[meant[0]] if meant else "OneCycle"]
    return f": pass the policy itself, {'' if meant else 'for example '}policy={written(example)}"


_LONG = 200


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _function_hint(value: object) -> str:
    if not callable(value):
        return ""
    name = getattr(value, "__name__", "")
    name = name if name.isidentifier() else "fn"
    try:
        signature(value).bind()
    except (TypeError, ValueError):
        return f": wrap a function of the step in LambdaPolicy, policy=LambdaPolicy({name})"
    return f": call a function that makes a policy, policy={name}()"
