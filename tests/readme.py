"""The Python blocks of the README and of the pages in docs/, as the tests run them."""

import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
#: The texts of all pages, by their paths.
PAGES = {"README.md": README} | {f"docs/{page.name}": page.read_text() for page in sorted(ROOT.glob("docs/*.md"))}

_BLOCK = re.compile(r"^(?:<!-- run by (?P<test>\S+) -->\n)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)

_FOUND = [(page, block["test"], block["code"]) for page, text in PAGES.items() for block in _BLOCK.finditer(text)]

#: The blocks that run by themselves.
BLOCKS = [code for _, test, code in _FOUND if not test]
#: The blocks that a test of their own runs, with their pages, by that test: its file, or ``file::function``.
SNIPPETS = {test: (page, code) for page, test, code in _FOUND if test}

_MOVE = re.compile(
    r"^\| (?:transformers' )?`(?P<theirs>\w+\(opt, [^`]*\))`(?:, (?:where|which) [^|]*)? \| `(?P<ours>[^|`]*)`[^|]*\|$",
    re.MULTILINE,
)

#: What to write instead of torch's schedulers: calls of ``opt`` and keyword arguments of CyclicSGD, as code.
MOVES = [(row["theirs"], row["ours"]) for row in _MOVE.finditer(README)]


def run_snippet(file, test="", /, **given):
    """Run the block marked ``<!-- run by FILE -->``, or ``FILE::TEST``, with what its reader has; return all that it
    defines."""
    name = Path(file).resolve().relative_to(ROOT).as_posix() + (f"::{test}" if test else "")
    page, code = SNIPPETS[name]
    # A module, so that what the block defines can be pickled.
    module = sys.modules["snippet"] = ModuleType("snippet")
    vars(module).update(given)
    exec(compile(code, f"{page}: {name}", "exec"), vars(module))
    return vars(module)
