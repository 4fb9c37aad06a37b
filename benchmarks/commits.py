"""Which commit a result is of. Imports neither torch nor the package, so that ``tests/mutate.py`` can use it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments: str) -> str:
    """What git prints, in the repository's root."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def commit_named(revision: str) -> str:
    """The hash and the subject of a commit, on one line."""
    return git("log", "-1", "--format=%H (%s)", revision)


def working_tree(*paths: str) -> str:
    """The commit that is checked out, and whether tracked files below ``paths`` differ from it."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    return commit_named("HEAD") + (" with uncommitted changes" if changed else "")
