"""Property tests for policies, optimizers and schedulers of your own: ``pip install '.[testing]'`` in a checkout.

:func:`check_policy`, :func:`check_optimizer` and :func:`check_schedule` run named checks; :func:`policy_checks`,
:func:`optimizer_checks` and :func:`schedule_checks` parametrize a test by them. :func:`policies`, :func:`param_groups`
and :func:`training_runs` are hypothesis strategies.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "need hypothesis for property tests: pip install hypothesis, or in a checkout pip install '.[testing]' "
        f"({error})"
    ) from error

if TYPE_CHECKING:
    from .optimizer import check_optimizer as check_optimizer
    from .optimizer import optimizer_checks as optimizer_checks
    from .policy import check_policy as check_policy
    from .policy import policy_checks as policy_checks
    from .scheduler import check_schedule as check_schedule
    from .scheduler import schedule_checks as schedule_checks
    from .strategies import TrainingRun as TrainingRun
    from .strategies import param_groups as param_groups
    from .strategies import policies as policies
    from .strategies import training_runs as training_runs

#: The file of each name. All but those in ``policy`` need torch.
_FILES = {
    "check_policy": "policy",
    "policy_checks": "policy",
    "check_optimizer": "optimizer",
    "optimizer_checks": "optimizer",
    "check_schedule": "scheduler",
    "schedule_checks": "scheduler",
    "policies": "strategies",
    "param_groups": "strategies",
    "training_runs": "strategies",
    "TrainingRun": "strategies",
}
__all__ = [*_FILES]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_FILES[name]}", __name__), name)
