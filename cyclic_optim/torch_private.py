"""Every private name of torch that is used: what it buys, and what happens without it.

A name that a torch version may lack has a fallback here. The others exist in every supported torch (2.6 and newer); if
a new version lacks one, importing the package fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _device_dtype_check_for_fused,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)
from torch.overrides import _get_current_function_mode_stack
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

if TYPE_CHECKING:
    from .policies.onecycle import AnnealStrategy

# -- operations ---------------------------------------------------------------------------------------------------


#: torch's fused SGD: one pass over memory. Without it: torch's loops, with several passes.
#: Looked up in each call, because tests and profilers replace it.
def fused_sgd(*args: Any, **options: Any) -> None:
    torch._fused_sgd_(*args, **options)


#: The device types of the fused update. Without it: torch's loops on every device.
fused_devices: Callable[[], list[str]] = _get_fused_kernels_supported_devices

#: torch's error for parameters that fused=True cannot take. Without it: the op's error, in the middle of an update.
check_fused_param: Callable[[Tensor], None] = _device_dtype_check_for_fused

#: Lets autograd detect that a saved tensor was overwritten. Without it: silently wrong gradients.
increment_version: Callable[[Any], None] = torch._C._increment_version


def is_zero_tensor(tensor: Tensor) -> bool:
    """Whether it is torch's symbolic zero, which has no memory. Without it: a crash in the fused op."""
    return bool(tensor._is_zerotensor())


def is_functional(tensor: Tensor) -> bool:
    """Whether it is a functional tensor, which records operations. Without it: the fused op's error."""
    return torch._is_functional_tensor(tensor)


def is_readable(tensor: Tensor) -> bool:
    """Whether its number can be read at no cost: a plain tensor on the CPU, while no mode or transform is active."""
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"
    return is_plain and not (is_functional(tensor) or modes_active() or transforms_active())


#: Operations on whole lists of tensors: few launches on a device, few nodes in a graph. Without them: loops.
foreach_add = torch._foreach_add
foreach_sub = torch._foreach_sub
foreach_mul = torch._foreach_mul
foreach_div = torch._foreach_div
foreach_neg = torch._foreach_neg
foreach_copy_ = torch._foreach_copy_

# -- tensors ------------------------------------------------------------------------------------------------------

#: How often a tensor was written to in place. Without it edits inside a peak on the device could not be detected, nor
#: from_torch find out how often a scheduler was stepped.
version_of: Callable[[Tensor], int] = attrgetter("_version")

#: The address of a tensor's TensorImpl, for reading its "negative" bit. Without it: a call of ``is_neg`` per tensor and
#: step, which takes as long as half of a small tensor's update.
impl_address: Callable[[Tensor], int] = attrgetter("_cdata")

#: The bytes of a tensor object among which that address is found. Without it: the same call.
TENSOR_BYTES: int = torch._C.TensorBase.__basicsize__


def negated_view(tensor: Tensor) -> Tensor:
    """A lazily negated view, which has that bit set. Without it: the same call."""
    return torch._neg_view(tensor)


#: torch's extension module, to find its OpenMP. Without it: small updates start a team of threads.
EXTENSION: str = torch._C.__file__

# -- the step -----------------------------------------------------------------------------------------------------

#: Half the cost of ``with torch.no_grad()``, on every step. Without it: that context manager.
set_grad_enabled: Callable[[bool], Any] = torch._C._set_grad_enabled

#: Whether a profiler records, so that torch's wrapper of ``step`` must run. Without it: that wrapper on every step.
profiler_enabled: Callable[[], bool] = torch._C._autograd._profiler_enabled

#: The number of active modes of either kind, cheap enough for every step: mostly 0. Without them: see below.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
function_modes: Callable[[], int] = torch._C._len_torch_function_stack
_function_mode_stack: Callable[[], list[Any]] = _get_current_function_mode_stack


def modes_active() -> bool:
    """Whether a mode watches operations: make_fx, FLOP counters. Without it they would miss the native update's work.

    The default device is a mode, too, and watches nothing. make_fx before dispatch shows as a function mode alone.
    """
    return dispatch_modes() > 0 or (function_modes() > 0 and not _is_default_device_alone())


def tangents_active() -> bool:
    """Whether tensors may have a tangent: forward-mode AD, jvp. Without it: it is lost silently in an update."""
    return bool(forward_ad._current_level >= 0)


def transforms_active() -> bool:
    """Whether a function is being transformed: by vmap, grad, jvp, functionalize. Without it: the fused op's error."""
    return tangents_active() or torch._C._functorch.peek_interpreter_stack() is not None


def _is_default_device_alone() -> bool:
    from torch.utils._device import DeviceContext  # takes long to import, and is needed only beside such a mode

    return all(type(mode) is DeviceContext for mode in _function_mode_stack())


#: Makes torch.compile skip a function. Without it: a recompile per step for a float that changes every step.
uncompiled: Callable[[Callable[..., Any]], Callable[..., Any]] = torch._disable_dynamo  # type: ignore[attr-defined]

_eval_frame_callback = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: "unknown")


def compiler_is_near() -> bool:
    """Whether torch.compile traces this call, or watches which functions are called.

    Without the callback (an older torch) the answer is always yes: torch's wrapper then runs on every step.
    """
    return torch.compiler.is_compiling() or _eval_frame_callback() is not None


def hooks_of_step(optimizer: Any) -> bool:
    """Whether any step hook is registered, here or globally. Without it: torch's wrapper on every step."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def step_is_watched(optimizer: Any) -> Any:
    """Whether torch's wrapper of a step has anything to do: hooks, a profiler, a dispatch mode, torch.compile.

    One function, as it is called on every step. Without it torch's wrapper would run on every step, at some 10 us.
    """
    return (
        torch.compiler.is_compiling()
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or _eval_frame_callback() is not None
        or profiler_enabled()
        or ((dispatch_modes() or function_modes()) and modes_active())
    )


def without_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """The function that torch wrapped in hooks and profiling. Without it: hooks run twice in one step."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]


def innermost(step: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside all of torch's wrappers, which break a compiled graph. Without it: three graphs per step."""
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step


# -- an optimizer ----------------------------------------------------------------------------------------

#: The dicts of hooks, which from_torch does not take over. Without them: hooks are lost silently.
HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def state_dict_hooks(optimizer: Any) -> tuple[Iterable[Any], Iterable[Any]]:
    """The hooks before and after ``state_dict()``. Without them: hooks run while another thread may be stepping."""
    pre, post = optimizer._optimizer_state_dict_pre_hooks, optimizer._optimizer_state_dict_post_hooks
    return list(pre.values()), list(post.values())


#: Attributes for a twin whose ``state_dict()`` is torch's without hooks. Without them: hooks run twice.
NO_STATE_DICT_HOOKS: dict[str, Any] = {"_optimizer_state_dict_pre_hooks": {}, "_optimizer_state_dict_post_hooks": {}}


def load_is_hooked(optimizer: Any) -> bool:
    """Whether a hook may replace the state dict before it is loaded. Without it: such dicts are refused too early."""
    return bool(optimizer._optimizer_load_state_dict_pre_hooks)


#: Tells GradScaler that the step unscales and skips by itself. Without it: one more pass over all gradients.
SUPPORTS_AMP_SCALING = "_step_supports_amp_scaling"
#: torch's flag for its check of fused parameters, which SGD reads and writes. Without it: a check on every step.
NEEDS_FUSED_CHECK = "_need_device_dtype_check_for_fused"


def wrapped_by_scheduler(optimizer: Any) -> bool:
    """Whether an LR scheduler counts this optimizer's steps. Without it: both write lr, without a warning."""
    return bool(getattr(optimizer.__dict__.get("step"), "_wrapped_by_lr_sched", False))


def sgd_tensors(optimizer: Any, group: dict[str, Any]) -> tuple[list[Any], list[Any], list[Any], bool]:
    """A group's parameters with gradients, the gradients, the buffers, and whether a gradient is sparse.

    Without it: a copy of that loop here.
    """
    params: list[Any] = []
    grads: list[Any] = []
    buffers: list[Any] = []
    return params, grads, buffers, optimizer._init_group(group, params, grads, buffers)


def was_stepped(optimizer: Optimizer) -> bool:
    """Whether a scheduler saw a step. Without it: a first step before ``scheduler.step()`` is not detected."""
    return bool(getattr(optimizer, "_opt_called", False))


# -- schedulers, for from_torch; without each of these it would have to refuse the scheduler -------------------------


def last_rates(scheduler: Any) -> list[Any]:
    """The rates of its last step: how many groups it knows, and a plateau's peaks."""
    rates: list[Any] = scheduler._last_lr
    return rates


def sequence_of(scheduler: Any) -> tuple[list[Any], list[int]]:
    """The parts and milestones of a SequentialLR."""
    return scheduler._schedulers, scheduler._milestones


def phases_of(scheduler: Any) -> tuple[list[dict[str, Any]], AnnealStrategy]:
    """The phases and the annealing of a OneCycleLR."""
    return scheduler._schedule_phases, scheduler._anneal_func_type


def scale_function_of(scheduler: Any) -> Callable[[int], float] | None:
    """The function that a CyclicLR was given; None for its built-in modes."""
    function: Callable[[int], float] | None = scheduler._scale_fn_custom
    return function


# -- modules and loaders, for the range test ------------------------------------------------------------------------

#: A module's dicts of what has names. Without them: ``model._modules.0._parameters.weight`` in errors.
MODULE_DICTS = ("_parameters", "_buffers", "_modules")


def loader_iterator(loader: Any) -> Any:
    """The iterator with the workers that a DataLoader keeps. Without it: other batches follow a range test."""
    return getattr(loader, "_iterator", None)


def set_loader_iterator(loader: Any, iterator: Any) -> None:
    """Make a DataLoader go on with these workers, or start new ones at its next iteration."""
    loader._iterator = iterator
