"""Schedules as pure values: whole numbers in, ``(lr_factor, momentum)`` out. Standard library only.

Each policy is in the file that :mod:`.table` names; :data:`POLICIES` has them all.
"""

from .base import Policy, Values
from .spec import describe, rebuild
from .table import POLICIES

__all__ = ["POLICIES", "Policy", "Values", "describe", "rebuild"]
