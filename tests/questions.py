"""A mode in which the host may not ask the device anything."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

QUESTIONS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "allclose"}


class NoQuestions(TorchDispatchMode):
    """Fails on operations for which the host waits for the device, or that move data between the two."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in QUESTIONS, f"{func} waits for the device"
        out = func(*args, **(kwargs or {}))
        devices = {
            t.device for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)
        }
        assert len(devices) <= 1, f"{func} moves data between {devices}"
        return out
