"""The README's Python blocks, as the tests run them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()

_BLOCK = re.compile(r"^(?:<!-- run by (?P<test>\S+) -->\n)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)

#: The blocks that run by themselves.
BLOCKS = [block["code"] for block in _BLOCK.finditer(README) if not block["test"]]
#: The blocks that a test of their own runs, by the file of that test.
SNIPPETS = {block["test"]: block["code"] for block in _BLOCK.finditer(README) if block["test"]}

_MOVE = re.compile(
    r"^\| (?:transformers' )?`(?P<theirs>\w+\(opt, [^`]*\))`(?:, (?:where|which) [^|]*)? \| `(?P<ours>[^|`]*)`[^|]*\|$",
    re.MULTILINE,
)

#: What to write instead of torch's schedulers: calls of ``opt`` and keyword arguments of CyclicSGD, as code.
MOVES = [(row["theirs"], row["ours"]) for row in _MOVE.finditer(README)]


def run_snippet(file, **given):
    """Run the README's block marked ``<!-- run by FILE -->`` with what its reader has; return all that it defines."""
    name = Path(file).resolve().relative_to(ROOT).as_posix()
    namespace = {"__name__": "readme", **given}
    exec(compile(SNIPPETS[name], f"README.md: {name}", "exec"), namespace)
    return namespace
