"""The learning rate range test: train while the rate climbs, and read the range of a cycle off the loss.

Source: L. N. Smith 2017, "Cyclical learning rates for training neural networks" (arXiv 1506.01186),
section 3.3.
"""

from .result import LRRangeTest, NoSuggestionError
from .run import lr_range_test
from .train_step import TrainStep, supervised_step
from .undo import RestoreError

__all__ = ["LRRangeTest", "NoSuggestionError", "RestoreError", "TrainStep", "lr_range_test", "supervised_step"]
