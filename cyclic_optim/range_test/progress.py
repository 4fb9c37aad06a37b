"""The progress of a range test: its steps, the current rate and the smoothed loss, in a terminal or a notebook."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

#: Fits 80 columns: tqdm's own format has no room for the loss beside its speed.
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class Progress:
    """The steps ``0, ..., num_steps - 1``, with a bar that shows how far the test is.

    In a notebook with ipywidgets the bar is a widget, elsewhere a line on stderr. It goes away at the end, also after
    an exception or Ctrl-C. Without tqdm there is no bar. A bar that fails, for example because nobody reads stderr any
    more, is given up: its exception does not reach the test.

    Args:
        num_steps: how many steps.
        show: whether to show a bar.

    Example:

        with Progress(num_steps, show=True) as progress:
            for step in progress:
                ...
                progress.show(lr, average)
    """

    def __init__(self, num_steps: int, show: bool) -> None:
        self._num_steps, self._show = num_steps, show
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._show:
            self._bar = _attempt(lambda: _new_bar(self._num_steps))
        return self

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._num_steps))

    def show(self, lr: float, average: float) -> None:
        """Show that one more step was made, at this rate; ``average`` is the smoothed loss."""
        bar = self._bar
        if bar is not None and _attempt(lambda: _advance(bar, lr, average)) is None:
            self._close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            _attempt(lambda: _remove(bar))


def _attempt(act: Callable[[], Any]) -> Any:
    """What ``act`` returns, or None where it fails."""
    try:
        return act()
    except Exception:
        return None


def _new_bar(num_steps: int) -> Any:
    # tqdm warns that its choice is experimental, and that ipywidgets is missing. The user asked for neither.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

        class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
            monitor_interval = 0  # no thread: with miniters=1 it has nothing to do

            def refresh(self, *lock: Any, **options: Any) -> None:
                # tqdm's own holds its lock for ever after an exception or Ctrl-C; bars of other threads then hang.
                if not self.disable:
                    with self.get_lock():
                        self.display()

        # With miniters=1 tqdm looks at the clock after each step, so that the rate shown is at most 0.1 s old.
        return Bar(total=num_steps, desc="lr range test", leave=False, miniters=1, bar_format=FORMAT)


def _advance(bar: Any, lr: float, average: float) -> bool:
    bar.set_postfix_str(f"lr {lr:.1e}, smoothed loss {average:.3g}", refresh=False)
    bar.update()
    return True


def _remove(bar: Any) -> None:
    # In a notebook a bar that is closed before its end stays there in red.
    bar.total = bar.n
    bar.close()
