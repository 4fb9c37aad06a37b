"""Schedules in tensors on the device, and SGD's updates beside them: for CUDA graphs and torch.compile."""

from .schedules import DeviceSchedules
from .update import BaseUpdate

__all__ = ["BaseUpdate", "DeviceSchedules"]
