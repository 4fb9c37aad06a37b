"""What the supported versions of torch do differently, as marks: where it was otherwise, a test has to fail.

A test of what torch does since a version is expected to fail before it, and only there (``xfail_strict``).
"""

import traceback

import pytest
import torch

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


def since(*version, reason):
    """A mark for what torch does since this version, and what it did before."""
    return pytest.mark.xfail(version > TORCH, reason=f"torch before {'.'.join(map(str, version))}: {reason}")


def need_fully_shard_on_cpu():
    """For a fixture, where every test that uses it is expected to fail."""
    if TORCH < (2, 8):
        pytest.xfail("torch before 2.8: fully_shard cannot run on a CPU")


#: Whether SequentialLR with a milestone at 0 begins with the part after it. Before 2.13 it begins with the first part.
FIRST_PART_BY_MILESTONE = TORCH >= (2, 13)

#: Whether ranks tell each other of an error in a distributed checkpoint. Before 2.13 they hang on the Pythons whose
#: tracebacks, which they send, cannot be pickled: from 3.13.1 on.
ERRORS_REACH_OTHER_RANKS = TORCH >= (2, 13) or "_code" not in traceback.FrameSummary.__slots__


differentiable_numbers = since(2, 7, reason="SGD(differentiable=True) takes no tensors that require a gradient")
rates_of_a_dimension = since(2, 7, reason="torch's updates take no rate of one element in a tensor with a dimension")
muon = since(2, 9, reason="there is no Muon")
flattened_missing_state = since(2, 10, reason="a flattened state dict without a parameter's state cannot be loaded")
loops_before_dispatch = since(2, 10, reason="make_fx(pre_dispatch=True) cannot trace the loops over parameters, SGD's")
ranges_are_operations = since(
    2, 13, reason="FlopCounterMode and make_fx do not see the range of a step, not SGD's either"
)
first_part_by_milestone = since(2, 13, reason="SequentialLR begins with its first part, though a milestone is 0")
compiles_edits = since(2, 8, reason="torch.compile cannot follow assigned betas and many reports")
