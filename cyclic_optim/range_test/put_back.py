"""Putting training back exactly as it was: everything that a range test may touch is saved, and put back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..rules import one_of
from .containers import Found
from .contents import Place, clone_contents
from .random_states import random_states
from .things import check, save
from .undo import Undo, put_back


def save_all(
    model: torch.nn.Module,
    optimizer: Optimizer,
    *,
    scaler: GradScaler | None = None,
    also: Sequence[Any] = (),
    keep: Place = "device",
    restart: Callable[[], object] = lambda: None,
) -> list[Undo]:
    """Save all that training may write to; returns what puts it back, bit for bit, in the order to do it in.

    Saved are parameters, buffers, gradients and plain attributes of ``model`` and of its parts, among them the
    train/eval mode; state, param groups and attributes of ``optimizer``; ``scaler``; each thing in ``also``; and the
    random states of Python, of NumPy (if it is loaded) and of torch on the CPU and its devices. Tensors and containers
    stay the same objects, and a parameter or buffer that was replaced comes back.

    Args:
        keep: where the clones of tensors are kept: ``"device"`` (where the tensors are), ``"cpu"`` or
            ``"disk"`` (a temporary file).
        restart: called first.

    Raises:
        ValueError, TypeError: something cannot be saved; nothing was changed.
    """
    keep = one_of(Place)["rule"]("keep", keep)
    things = [(f"also[{i}] ({type(thing).__name__})", thing) for i, thing in enumerate(also)]
    check(things)
    undos = [Undo("train_step.restart()", restart)]
    try:
        # Saving one thing may fail after another was changed for the test: extend() keeps what has been saved so far.
        undos.extend(_save(model, optimizer, scaler, things, keep))
    except BaseException:
        put_back(undos)
        raise
    return undos


def _save(
    model: torch.nn.Module, optimizer: Optimizer, scaler: GradScaler | None, things: list[tuple[str, Any]], keep: Place
) -> Iterator[Undo]:
    found = Found()
    found.add("model", model)
    found.add("optimizer", optimizer)
    if scaler is not None:
        found.add("scaler", scaler if isinstance(scaler, GradScaler) else vars(scaler))
    yield from save(things, found)
    yield Undo("model.reshard()", partial(_reshard, model))
    yield from found.undos()
    yield from clone_contents(found.tensors.values(), keep)
    yield from found.leaves()
    # The last: whatever is put back before may draw random numbers.
    yield from random_states()


def _reshard(model: torch.nn.Module) -> None:
    """Let fully_shard'ed modules hold their shards again: after an evaluation the root holds the whole parameters."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules():
        if fsdp is not None and isinstance(module, fsdp.FSDPModule):
            module.reshard()
