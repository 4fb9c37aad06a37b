"""What updates parameters where the schedules are on the device: the base class itself, or SGD's own update."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..slots import BETA1, Group, Slot
from ..torch_private import SUPPORTS_AMP_SCALING, innermost
from .clock import Part

State = dict[Any, dict[str, Any]]


class BaseUpdate:
    """The update of the base class, which must be capturable."""

    #: Whether it divides gradients by the loss scale and skips steps itself; the base class does so if fused.
    unscales = False
    #: Whether it reads weight decay from a tensor. torch's updates ask ``weight_decay != 0``, which synchronizes.
    moves_decay = False

    def __init__(self, base: type[Any]) -> None:
        self._base = base
        self._takes_tensor_betas = _takes_tensor_betas(base)
        self._betas: dict[int, tuple[Tensor, ...]] = {}  # of each group that shows them

    def claim_scaling(self, optimizer: Any) -> None:
        """Tell GradScaler to leave unscaling and skipping to the step, where this update does both."""
        if self.unscales:
            setattr(optimizer, SUPPORTS_AMP_SCALING, True)

    @property
    def tensors(self) -> list[Tensor]:
        """What groups show beside the clock's tensors."""
        return [beta for betas in self._betas.values() for beta in betas[1:]]

    def check(self, group: Group, device: torch.device) -> None:
        """Refuse a group of plain numbers that cannot be updated on the device."""
        for param in group["params"]:
            if param.device != device:
                raise ValueError(
                    f"need all parameters on one device with capturable=True, got {device} and {param.device}"
                )

    def check_part(self, group: Group, part: Part) -> None:
        """Refuse a policy whose momentum, or weight decay, the update of this group cannot read from a tensor."""
        if part.highest_decay_factor is not None and not self.moves_decay:
            raise ValueError(
                f"need a policy that leaves weight decay alone with capturable=True and {self._base.__name__}, which "
                f"takes weight decay as a number only, got {part.policy!r}: leave weight decay out of the policy, or "
                "capturable=False"
            )
        if self.shows_momentum(part) and group.get("fused"):
            raise ValueError(
                "need fused unset with capturable=True beside a policy that cycles momentum, as the fused update takes "
                f"momentum as a number only, got fused=True and {part.policy!r}: pass cycle_momentum=False to the "
                "policy, or leave fused out"
            )

    def shows_momentum(self, part: Part) -> bool:
        """Whether a group shows its momentum as a tensor.

        Raises:
            ValueError: the policy cycles momentum, and the base class takes no tensor for it.
        """
        if part.cycles_momentum and not self._takes_tensor_betas:
            raise ValueError(
                f"need cycle_momentum=False with capturable=True and {self._base.__name__}, which takes momentum as a "
                f"number only, got {part.policy!r}"
            )
        return part.cycles_momentum

    def stored_momentum(self, slot: Slot, i: int, group: Group, momentum: Tensor) -> Any:
        """What group i stores to show this tensor: Adam takes all betas as tensors, or none."""
        if slot.key != BETA1.key:
            return momentum
        shown, betas = self._betas.get(i, ()), group["betas"]
        is_same = len(shown) == len(betas) and shown[0] is momentum  # no bool(shown): torch 2.8 cannot trace it
        if is_same and is_object(betas, shown):
            return shown
        if not is_same:
            shown = self._betas[i] = (momentum, *(torch.empty_like(momentum) for _ in betas[1:]))
        for beta, value in zip(shown[1:], betas[1:], strict=True):
            beta.copy_(value.reshape(())) if isinstance(value, Tensor) else beta.fill_(value)
        return shown

    def create(self, schedules: Any, i: int, group: Group, state: State) -> None:
        """Create the state of a group; the base class does so in its first step."""

    def apply(self, schedules: Any, optimizer: Any, closure: Any, grad_scale: Any, found_inf: Any) -> Any:
        """Make one update; returns the closure's loss."""
        if not torch.compiler.is_compiling():
            return optimizer._base_step(closure)
        # Without torch's wrappers, which would break the graph.
        return innermost(self._base.step)(optimizer, closure)

    def saved(self, state: State) -> None:
        """Remove from a state dict what is not to be saved."""

    def load(self, schedules: Any, groups: list[Group], state: State, previous: State) -> None:
        """Copy the loaded state into the tensors of the previous one, which captured graphs read."""
        for param, entries in state.items():
            before = previous.get(param, {})
            for key, value in entries.items():
                old = before.get(key)
                if isinstance(old, Tensor) and isinstance(value, Tensor) and old.shape == value.shape:
                    entries[key] = old.copy_(value)


def is_object(value: Any, shown: Any) -> bool:
    """``value is shown``, item by item in tuples, between which torch.compile cannot trace ``is``."""
    if isinstance(shown, tuple):
        return len(value) == len(shown) and all(is_object(*pair) for pair in zip(value, shown, strict=True))
    return value is shown


def _takes_tensor_betas(base: type) -> bool:
    """Whether the class says that it takes betas as tensors, as Adam and AdamW do."""
    betas = inspect.signature(base).parameters.get("betas")
    return betas is not None and "Tensor" in str(betas.annotation)
