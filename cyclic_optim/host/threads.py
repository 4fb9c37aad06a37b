"""One thread for a short while, for the calling thread and nobody else.

``torch.set_num_threads`` is no help here: it also writes a number that every new thread of the process takes
over, and one born in the meantime would keep it for good. OpenMP's own setting belongs to the calling thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from ..torch_private import EXTENSION


def _openmps_setting() -> Callable[[int], None] | None:
    """OpenMP's ``omp_set_num_threads``, where torch turns out to go by it."""
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


#: How many threads the calling thread's torch operations run on; None where that cannot be said for it alone.
set_own_threads = _openmps_setting()


def on_one_thread(run: Callable[[], None]) -> None:
    """Run the calling thread's torch operations on one thread, if that is possible."""
    if set_own_threads is None:
        run()
        return
    threads = torch.get_num_threads()
    # No context manager: an interrupt on the way into its block would leave the number as it is there.
    try:
        set_own_threads(1)
        run()
    finally:
        set_own_threads(threads)
