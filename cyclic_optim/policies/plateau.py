"""The one policy that depends on a reported metric: it decays when the metric stops improving."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..rules import MOST_STEPS, UNIT, one_of, real, shown, step_index, whole
from .base import Policy, Values

Mode: TypeAlias = Literal["min", "max"]
ThresholdMode: TypeAlias = Literal["rel", "abs"]

_NOT_NEGATIVE = real("0 <= {}", lambda value: value >= 0)


@dataclass(frozen=True)
class Plateau(Policy):
    """Times ``factor`` when the metric given to ``optimizer.report(metric)`` stops improving.

    A report improves on the best one so far if it is below ``best * (1 - threshold)`` (``"rel"``) or
    ``best - threshold`` (``"abs"``), for ``mode="max"`` above ``best * (1 + threshold)`` or
    ``best + threshold``; NaN never does. After more than ``patience`` reports without improvement,

        lr_factor = max(lr_factor * factor, min_factor)        if that lowers it by more than eps

    and bad reports are not counted during the next ``cooldown`` reports. Reports are counted in calls, commonly one per
    epoch. The step does not matter: between two reports the values are the same at every step (``period`` is 1), and
    the policy never ends. ``at`` returns the values before any report. It does not change momentum.

    Args:
        mode: ``"min"`` or ``"max"``: which metrics are better.
        factor: a reduction multiplies by this, 0 < factor < 1.
        patience: reports without improvement that are tolerated before a reduction.
        threshold, threshold_mode: what counts as an improvement.
        cooldown: reports after a reduction during which no bad report is counted.
        min_factor: lower bound, as a fraction of the peak; torch's ``min_lr / lr``.
        eps: the least reduction worth making, as a fraction of the peak; torch's ``eps / lr``.

    Raises:
        ValueError, TypeError: an argument breaks its rule.

    Source: ``torch.optim.lr_scheduler.ReduceLROnPlateau``.
    """

    mode: Mode = field(default="min", metadata=one_of(Mode))
    factor: float = field(default=0.1, metadata=real("0 < {} < 1", lambda value: 0 < value < 1))
    patience: int = field(default=10, metadata=whole(0))
    threshold: float = field(default=1e-4, metadata=_NOT_NEGATIVE)
    threshold_mode: ThresholdMode = field(default="rel", metadata=one_of(ThresholdMode))
    cooldown: int = field(default=0, metadata=whole(0))
    min_factor: float = field(default=0.0, metadata=UNIT)
    eps: float = field(default=1e-8, metadata=_NOT_NEGATIVE)

    def at(self, step: int) -> Values:
        step_index(step)
        return Values(1.0)

    @property
    def period(self) -> int:
        return 1

    def initial_state(self) -> dict[str, Any]:
        worst = math.inf if self.mode == "min" else -math.inf
        return {"mode": self.mode, "best": worst, "num_bad_reports": 0, "cooldown_counter": 0, "lr_factor": 1.0}

    def after(self, state: dict[str, Any], step: int) -> Values:
        return Values(state["lr_factor"])

    def report(self, state: dict[str, Any] | None, metric: float) -> dict[str, Any]:
        metric = float(metric)
        state = dict(state or self.initial_state())
        if self._improves(metric, state["best"]):
            state.update(best=metric, num_bad_reports=0)
        else:
            state["num_bad_reports"] += 1
        if state["cooldown_counter"] > 0:
            state["cooldown_counter"] -= 1
            state["num_bad_reports"] = 0
        if state["num_bad_reports"] > self.patience:
            state.update(cooldown_counter=self.cooldown, num_bad_reports=0)
            lower = max(state["lr_factor"] * self.factor, self.min_factor)
            if state["lr_factor"] - lower > self.eps:
                state["lr_factor"] = lower
        return state

    def _improves(self, metric: float, best: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        margin = self.threshold
        if self.threshold_mode == "rel":
            # As in torch: the margin has the sign of the best value.
            return sign * metric < sign * (best * (1 - sign * margin))
        return sign * metric < sign * best - margin

    def check_state(self, state: object) -> None:
        expected = self.initial_state()
        if not isinstance(state, dict) or state.keys() != expected.keys():
            raise ValueError(f"need the state of Plateau to have the keys {sorted(expected)}, got {shown(state)}")
        if type(state["mode"]) is not str or state["mode"] != self.mode:
            raise ValueError(f"need reports to be compared by mode={self.mode!r}, got mode={shown(state['mode'])}")
        for key in ("num_bad_reports", "cooldown_counter"):
            if type(state[key]) is not int or not 0 <= state[key] < MOST_STEPS:
                raise ValueError(f"need {key} to be an int >= 0 and < 2**63, got {key}={shown(state[key])}")
        for key in ("best", "lr_factor"):
            if not isinstance(state[key], float) or math.isnan(state[key]):
                raise ValueError(f"need {key} to be a float, and not NaN, got {key}={shown(state[key])}")
        if not 0 <= state["lr_factor"] <= 1:
            raise ValueError(f"need 0 <= lr_factor <= 1, got lr_factor={state['lr_factor']!r}")
