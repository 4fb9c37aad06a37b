"""The table of torch's bugs in docs/promises.md: what it says of torch.optim.SGD is so on the versions that it names,
and only there."""

import re

import pytest
import torch
from readme import table
from torch_bugs import BUGS, RIGHT, observed


def version(text):
    return tuple(map(int, text.split(".")[:2]))


def rows():
    """The rows of the table: the case, what happens, and the first and last torch on which it was seen."""
    for case, what, seen, _ in table("docs/promises.md", "| case | `SGD(fused=True)` |"):
        first, last = re.fullmatch(r"(2\.\d+) to (2\.\d+)", seen).groups()
        yield case, what, version(first), version(last)


ROWS = {case: row for case, *row in rows()}
NEWEST = max(last for *_, last in ROWS.values())
PRESENT = version(torch.__version__)


def test_every_row_is_checked():
    """The cases that are tried are those of the table."""
    assert list(ROWS) == list(BUGS)


@pytest.mark.filterwarnings("ignore")  # torch's own, of versions that differ
@pytest.mark.parametrize("case", BUGS)
def test_a_bug_is_seen_where_the_table_says_so(case):
    """On the versions named torch does what the row says; on the others, as far as they were tried, it is right."""
    what, first, last = ROWS[case]
    if PRESENT > NEWEST:
        pytest.skip(f"the table ends with torch {NEWEST}: python tests/torch_bugs.py shows what this one does")
    found = observed(case)
    if first <= PRESENT <= last:
        assert found in what.replace("`", "")
    else:
        assert found == RIGHT
