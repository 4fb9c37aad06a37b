"""Schedules in numbers in the param groups, and SGD's updates beside them."""

from .schedules import HostSchedules

__all__ = ["HostSchedules"]
