"""Schedules whose values are numbers in the param groups, and the fused update of SGD."""
