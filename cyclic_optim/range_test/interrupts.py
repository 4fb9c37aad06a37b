"""Ctrl-C that waits until everything is put back."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Delays Ctrl-C while :attr:`wait` is True, between :meth:`catch` and :meth:`release`.

    Python may raise KeyboardInterrupt after any call, also when it enters or leaves a ``with`` block and between two
    lines of a ``finally``. These alone therefore cannot make sure that something is completed: the signal handler
    itself must wait, and its flag must be set without a call. Only Python's main thread handles signals. A handler
    that is not a Python function is left in place.
    """

    def __init__(self) -> None:
        self.wait, self._came = True, False
        self._usual: Any = None

    def catch(self) -> None:
        """Replace the signal handler."""
        usual = signal.getsignal(signal.SIGINT)
        if callable(usual) and threading.current_thread() is threading.main_thread():
            self._usual = usual
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wait:
            self._came = True
        else:
            self._usual(number, frame)

    def raise_late(self) -> None:
        """Call the usual handler now for a signal that had to wait."""
        if self._came:
            self._came = False
            self._usual(signal.SIGINT, sys._getframe())

    def release(self) -> None:
        """Put the usual handler back, unless somebody replaced it meanwhile, and call it for a signal that waited."""
        if self._usual is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._usual)
        self.raise_late()
