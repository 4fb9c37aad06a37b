"""Whether a CUDA graph is being captured, and refusing setup while it is."""

from __future__ import annotations

import torch


def is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def refuse_in_capture(why: str) -> None:
    # Every replay would repeat the setup, with the same numbers.
    if is_capturing():
        raise RuntimeError(
            f"need nothing to be set up while a CUDA graph is captured, but {why}: call step() once before"
        )
