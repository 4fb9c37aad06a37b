"""The README and the pages in docs/, and their Python blocks as the tests run them."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
#: The texts of all pages, by their paths.
PAGES = {"README.md": README} | {f"docs/{page.name}": page.read_text() for page in sorted(ROOT.glob("docs/*.md"))}

_BLOCK = re.compile(r"^(?:<!-- run by (?P<test>\S+) -->\n)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A Python block: where it is, the test that runs it if it has one of its own, and the code."""

    page: str
    line: int
    test: str | None
    code: str


FOUND = [
    Block(page, text.count("\n", 0, block.start("code")) + 1, block["test"], block["code"])
    for page, text in PAGES.items()
    for block in _BLOCK.finditer(text)
]

#: The blocks that run by themselves.
BLOCKS = [block.code for block in FOUND if not block.test]
#: The blocks that a test of their own runs, with their pages, by that test: its file, or ``file::function``.
SNIPPETS = {block.test: (block.page, block.code) for block in FOUND if block.test}

(_DIFF,) = re.findall(r"^```diff\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

#: The example of swapping SGD for CyclicSGD, before and after, as code.
BEFORE, AFTER = (
    "\n".join(line[2:] for line in _DIFF.splitlines() if not line or line[0] in (" ", sign)) for sign in "-+"
)

_MOVE = re.compile(
    r"^\| (?:transformers' )?`(?P<theirs>\w+\(opt, [^`]*\))`(?:, (?:where|which) [^|]*)? \| `(?P<ours>[^|`]*)`[^|]*\|$",
    re.MULTILINE,
)

#: What to write instead of torch's schedulers: calls of ``opt`` and keyword arguments of CyclicSGD, as code.
MOVES = [(row["theirs"], row["ours"]) for row in _MOVE.finditer(PAGES["docs/moving_over.md"])]


def table(page, first):
    """The rows of the table on a page whose head begins with this, each as the texts of its cells."""
    return rows_of(PAGES[page], first)[1:]


def rows_of(text, first):
    """The same of any text, with the head."""
    head, _, *rows = text[text.index(first) :].split("\n\n")[0].splitlines()
    assert rows
    return [[cell.strip() for cell in re.split(r" \|(?= |$)", row)[:-1]] for row in (row[1:] for row in (head, *rows))]


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
