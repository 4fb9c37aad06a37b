"""Run one call single-threaded without affecting other threads.

``torch.set_num_threads`` cannot do that: it also sets the number for every new thread of the process, and a thread
that starts in the meantime keeps it. OpenMP's own setting belongs to the calling thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from ..torch_private import EXTENSION


def _omp_set_num_threads() -> Callable[[int], None] | None:
    """OpenMP's ``omp_set_num_threads``, if torch follows it."""
    try:
        set_threads: Callable[[int], None] = ctypes.PyDLL(EXTENSION).omp_set_num_threads
        set_threads.argtypes, set_threads.restype = [ctypes.c_int], None  # type: ignore[attr-defined]
    except (AttributeError, OSError):  # torch was built with another library, or with none
        return None
    before = torch.get_num_threads()
    try:
        set_threads(before + 1)
        return set_threads if torch.get_num_threads() == before + 1 else None
    finally:
        set_threads(before)


#: Sets the number of threads of the calling thread's torch operations; None where that would affect others, too.
set_own_threads = _omp_set_num_threads()


def on_one_thread(run: Callable[[], None]) -> None:
    """Run a call's torch operations on one thread, where that is possible."""
    if set_own_threads is None:
        run()
        return
    threads = torch.get_num_threads()
    # No context manager: an interrupt while its block is entered would leave the number at 1.
    try:
        set_own_threads(1)
        run()
    finally:
        set_own_threads(threads)
