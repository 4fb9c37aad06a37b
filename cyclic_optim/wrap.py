"""Any optimizer with a schedule of its own: ``cyclic(cls)``, and the ready-made CyclicAdamW."""

from __future__ import annotations

import copyreg
import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from .groups import Params, check_named, check_one_lr
from .policies import Policy
from .rules import shown
from .scheduled import Scheduled
from .sgd import CyclicSGD


class CyclicAdamW(Scheduled, AdamW):
    """:class:`torch.optim.AdamW` that owns its schedule.

    A drop-in replacement: the same arguments and updates, with

        lr = max_lr * lr_factor
        betas[0] = momentum            where the policy cycles momentum
        weight_decay = max_weight_decay * weight_decay_factor    where the policy moves it

    and ``lr_factor`` and ``momentum`` from ``policy.at(t)``, t counting the updates applied so far. Everything that
    :class:`CyclicSGD` does with its schedule holds here: one policy, or one per param group; ``reschedule``,
    ``report``, ``from_torch``, ``passive_scheduler``; one checkpoint. With ``policy=None`` it is AdamW.

    Args:
        params: parameters, named parameters or param groups to optimize.
        lr: the peak learning rate (default: 1e-3).
        betas: decay of the running averages of the gradient and its square; the policy may cycle the first.
        eps, weight_decay, amsgrad, maximize, foreach, differentiable, fused: as for AdamW.
        policy: the schedule of learning rate and beta1 for groups that name none; None for no schedule.
        capturable: as for AdamW; with a policy, rate, peak and clock (and betas, where the policy cycles momentum) are
            then tensors on the device, and go on cycling in a CUDA graph and in a compiled step. Leave ``fused`` unset
            beside a policy that cycles momentum: the fused update takes betas as numbers only. A policy that moves
            weight decay is refused: AdamW asks ``weight_decay != 0`` on the host. A policy that neither
            ends nor repeats is tabulated for 100,000 steps from where the optimizer was built, loaded or rescheduled;
            afterwards the last values stay.

    Raises:
        ValueError, TypeError: an argument breaks its rule; nothing is built then.

    Example:
        >>> import torch
        >>> from cyclic_optim import CyclicAdamW, OneCycle
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = CyclicAdamW([weight], lr=0.01, policy=OneCycle(total_steps=1000))
        >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]
        (0.0004, (0.95, 0.999))

    Source: :class:`torch.optim.AdamW`; Loshchilov & Hutter 2019 (arXiv 1711.05101).
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        policy: Policy | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_named(lr, betas, eps, weight_decay, amsgrad)
        check_one_lr(lr)
        self._begin(policy)
        super().__init__(
            params,  # type: ignore[arg-type]
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._ready(capturable)


if TYPE_CHECKING:

    class CyclicOptimizer(Scheduled):
        """What :func:`cyclic` makes, to a type checker, which has no type for "a Scheduled and a ``cls``"."""

        # The arguments of ``cls`` cannot be named beside the keyword ``policy``.
        def __init__(self, params: Params, *args: Any, policy: Policy | None = None, **options: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...  # what only ``cls`` has


_CLASSES: dict[type[Optimizer], type[Any]] = {SGD: CyclicSGD, AdamW: CyclicAdamW}


def cyclic(cls: type[Optimizer]) -> type[CyclicOptimizer]:
    """The class that owns its schedule: ``cls`` with the keyword ``policy``.

    Its instances are instances of ``cls``; they are built, printed, saved and stepped like those of ``cls``, and moved
    along a policy as :class:`CyclicSGD` is: one policy or one per param group, ``reschedule``, ``report``,
    ``from_torch``, ``passive_scheduler``, one checkpoint. A policy's momentum is ``group["betas"][0]`` where there are
    betas, else ``group["momentum"]``; its weight decay is ``group["weight_decay"]``. The update is that of ``cls``.
    With ``policy=None`` it is ``cls``.

    Equal classes give the same class: ``cyclic(RMSprop) is cyclic(RMSprop)``; ``cyclic(SGD)`` is
    :class:`CyclicSGD`.

    Args:
        cls: a subclass of ``torch.optim.Optimizer`` whose param groups have an ``lr``.

    Raises:
        TypeError: ``cls`` is no optimizer class, owns a schedule already, or has an argument ``policy``.

    Example:
        >>> import torch
        >>> from cyclic_optim import OneCycle, cyclic
        >>> CyclicRMSprop = cyclic(torch.optim.RMSprop)
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = CyclicRMSprop([weight], lr=0.01, policy=OneCycle(1000, cycle_momentum=False))
        >>> optimizer.param_groups[0]["lr"]
        0.0004
    """
    if not isinstance(cls, type) or not issubclass(cls, Optimizer) or cls is Optimizer:
        raise TypeError(f"need cls to be an optimizer class, a subclass of torch.optim.Optimizer, got {shown(cls)}")
    if issubclass(cls, Scheduled):
        raise TypeError(f"need cls to be a class without a schedule of its own, got {shown(cls)}: use it as it is")
    if "policy" in inspect.signature(cls).parameters:
        raise TypeError(f"need cls to be a class without an argument 'policy', which is the schedule, got {shown(cls)}")
    if cls not in _CLASSES:
        _CLASSES[cls] = _make(cls)
    return _CLASSES[cls]


class _Cyclic(type):
    """The metaclass of the classes that ``cyclic`` makes: they are pickled as the call that makes them."""


def _reduced(cls: type[Any]) -> Any:
    return (cyclic, (cls._base(),)) if cls in _CLASSES.values() else cls.__qualname__  # a subclass: by its name


copyreg.pickle(_Cyclic, _reduced)


def _metaclass(cls: type[Any]) -> type[Any]:
    """``_Cyclic``, beside the metaclass of ``cls`` if it has one."""
    if issubclass(_Cyclic, type(cls)):
        return _Cyclic
    both: type[Any] = type("_Cyclic", (_Cyclic, type(cls)), {})
    copyreg.pickle(both, _reduced)
    return both


def _make(cls: type[Optimizer]) -> type[Scheduled]:
    arguments = inspect.signature(cls).parameters

    def __init__(self: Any, *args: Any, policy: Policy | None = None, **options: Any) -> None:
        check_named(*args, *(value for name, value in options.items() if name in arguments))
        check_one_lr(options.get("lr"))
        self._begin(policy)
        super(made, self).__init__(*args, **options)
        self._ready(bool(self.defaults.get("capturable", False)))

    name = f"Cyclic{cls.__name__}"
    __init__.__signature__ = _with_policy(inspect.signature(cls.__init__))  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{name}.__init__"
    text = f":class:`{cls.__module__}.{cls.__qualname__}` that owns its schedule; see :func:`cyclic`."
    names = {"__module__": __name__, "__qualname__": name, "__doc__": text, "__init__": __init__}
    made: type[Any] = _metaclass(cls)(name, (Scheduled, cls), names)
    return made


def _with_policy(signature: inspect.Signature) -> inspect.Signature:
    """The signature with the keyword ``policy``, before any ``**options``."""
    parameters = list(signature.parameters.values())
    policy = inspect.Parameter("policy", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Policy | None")
    has_options = parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - bool(has_options), policy)
    return signature.replace(parameters=parameters)
