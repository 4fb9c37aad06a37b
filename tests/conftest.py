"""Hypothesis profiles: "quick" by default, "deep" with HYPOTHESIS_PROFILE=deep.

"mutants" is for mutate.py, "matrix" for matrix.py.
"""

import os
import signal

import pytest
import torch
from hypothesis import Phase, settings

from cyclic_optim import native

# In the background of a shell Ctrl-C is ignored; the tests of interruptions raise it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Of pytest-xdist's workers each has one core: with more threads they would wait for each other's. The tests that are
# about threads set a number of their own. The variable is for the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# With as few as 10 examples the tests notice 96 % of the mutants of mutate.py. Deep runs look for rare cases.
settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=2000, deadline=None)
# A mutant is killed by any example, be it the smallest or not.
settings.register_profile(
    "mutants", max_examples=10, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
)
# The suite under every torch and Python, matrix.py: what differs between them shows in the first cases drawn.
settings.register_profile(
    "matrix", max_examples=10, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_modifyitems(items):
    """An address in the name of a test differs in each process, so pytest-xdist could not share the tests out."""
    assert [item.nodeid for item in items if " at 0x" in item.nodeid] == []


def pytest_runtest_setup(item):
    """What a test draws from torch's own generator does not depend on the tests that its process ran before.

    A test that needs a GPU is skipped where there is none.
    """
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU; torch finds none here")
    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="module", params=["compiled", "python"])
def part(request):
    """For a module's ``pytestmark``: its tests run with the compiled part of a step, and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setattr(native, "compiled", None)
        elif native.compiled is None:
            pytest.skip("the compiled part is not there; test_compiled.py says whether it should be")
        yield request.param


@pytest.fixture(scope="module")
def short_tables():
    """Tables and the room for them a hundredth of what they are: to fill one of 100,000 steps takes half a second."""
    from cyclic_optim.device import clock  # which most tests need not import

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HORIZON", "LEAST_ROWS"):
            patch.setattr(clock, name, getattr(clock, name) // 100)
        yield


@pytest.fixture
def threads():
    """A number of threads that nothing sets by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def triton_language_put_back():
    """Triton before 3.3 leaves its language as its interpreter needs it, which its compiler does not understand."""
    from triton import language  # which most tests need not import

    owners = language, language.core, language.math, language.tensor
    before = [dict(vars(owner)) for owner in owners]
    yield
    for owner, names in zip(owners, before, strict=True):
        for name in {*vars(owner)} - {*names}:
            delattr(owner, name)
        for name, value in names.items():
            if vars(owner)[name] is not value:
                setattr(owner, name, value)
