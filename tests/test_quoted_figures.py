"""The figures of measurements in README.md and docs/ are those of the records in benchmarks/results."""

import re

import pytest
from readme import PAGES, ROOT, rows_of

RESULTS = ROOT / "benchmarks" / "results"


def quoted(page, first="| times as long |"):
    """The table on a page: by row and column what its cells say."""
    return by_name(PAGES[page], first)


def recorded(record, first="| times as long "):
    """The same of a record, without the quartiles."""
    cells = by_name((RESULTS / f"{record}.md").read_text(), first)
    return {row: {column: cell.split(" [")[0] for column, cell in columns.items()} for row, columns in cells.items()}


def by_name(text, first):
    head, *rows = rows_of(text, first)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.mark.parametrize("page", ["README.md", "docs/speed.md"])
def test_the_steps_times_are_the_records(page):
    """Each cell of the table is the median of the same row and column in step_cost.md."""
    record = recorded("step_cost")
    for row, columns in quoted(page).items():
        for column, cell in columns.items():
            (name,) = (name for name in record[row] if name.startswith(column))
            assert (row, column, cell) == (row, column, record[row][name])


def test_the_floors_times_are_the_records():
    """The text below the table of docs/speed.md has the row of the floor."""
    *small, groups, resnet, gpt = re.search(
        r"takes (\S+) and (\S+) times as long on the first two,\s+"
        r"(\S+) and (\S+) times on the last two \(and (\S+) times on the 200 groups",
        PAGES["docs/speed.md"],
    ).group(1, 2, 5, 3, 4)
    record = recorded("step_cost")["floor: small tensors serially, large ones in parallel"]
    assert [*small, groups, resnet, gpt] == [f"{float(cell):.2f}" for cell in record.values()]


def test_the_schedules_and_the_imports_times_are_the_records():
    """What docs/speed.md says of the schedule and of importing, from schedule_cost.md."""

    def numbers(first, column):
        return {
            row: float(cells[column].replace(",", ""))
            for row, cells in recorded("schedule_cost", first).items()
            if cells[column]
        }

    one, many = (numbers("| policy ", f"added to a step, {groups}") for groups in ("1 group", "200 groups"))
    imports = numbers("| module ", "milliseconds")
    ours, theirs = imports["CyclicSGD and OneCycle, after torch"], imports["torch"]
    policies, torchs = [row for row in one if not row.startswith("torch's")], "torch's OneCycleLR"
    lowest, highest = (end(one[row] for row in policies) / 1000 for end in (min, max))
    text = " ".join(PAGES["docs/speed.md"].split())
    for words in (
        f"takes [{lowest:.1f} to {highest:.1f} microseconds]",
        f"({one['OneCycle'] / 1000:.1f} for `OneCycle`; `OneCycleLR.step()`: {one[torchs] / 1000:.1f})",
        f"with 200 groups {many['OneCycle'] / 1000:.0f} ({many[torchs] / 1000:.0f})",
        f"about {ours / theirs:.0%} of the time of `import torch` ([{ours:.0f} ms beside {theirs:.0f}]",
    ):
        assert words in text


def test_the_training_steps_times_are_the_records():
    """What docs/speed.md says of whole training steps is the row of SGD(fused=True) in training_step.md."""
    words = re.search(r"takes (\S+) times as long for a small MLP,\s+(\S+) times for\s+100", PAGES["docs/speed.md"])
    assert words.groups() == (*recorded("training_step")["SGD(fused=True), OneCycleLR"].values(),)[:2]


def test_the_gpus_ratios_are_the_records():
    """What README and docs/speed.md say of a captured training is the range in the record of the H200."""
    shares = recorded("gpu_nvidia_h200", "| share ")["CyclicSGD(capturable=True), captured"].values()
    fastest, slowest = (1 / end(map(float, shares)) for end in (min, max))
    for page in ("README.md", "docs/speed.md"):
        assert f"{slowest:.1f} to {fastest:.1f} times as fast" in PAGES[page]


def test_every_record_is_quoted():
    """Each table and picture in benchmarks/results is linked from the README or docs/; the numbers behind have them."""
    pages = "\n".join(PAGES.values())
    for file in RESULTS.iterdir():
        if file.suffix == ".json":
            assert file.with_suffix(".md").exists() or file.with_suffix(".png").exists(), file
        else:
            assert f"benchmarks/results/{file.name}" in pages, file
