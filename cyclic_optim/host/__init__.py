"""Schedules as numbers in the param groups, and the fused update of ordinary memory."""
