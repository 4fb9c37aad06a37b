"""Whether a CUDA graph is captured, and what must not happen then."""

from __future__ import annotations

import torch


def is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def refuse_in_capture(why: str) -> None:
    # What is done here would be done again, with the same numbers, in every replay.
    if is_capturing():
        raise RuntimeError(
            f"need nothing to be set up while a CUDA graph is captured, but {why}: call step() once before"
        )
