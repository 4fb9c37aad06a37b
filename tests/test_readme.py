"""The README's code runs as it stands."""

import configparser
import re
from dataclasses import dataclass

import matplotlib as mpl
import pytest
import torch
from readme import BLOCKS, README, ROOT, SNIPPETS

import cyclic_optim


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_a_block_runs(block):
    """Each Python block runs after the imports that its reader has made, with a model and a loader of theirs."""
    mpl.use("Agg")
    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    data = torch.utils.data.TensorDataset(inputs, (inputs @ torch.randn(8, 3)).argmax(1))
    namespace = {
        "torch": torch,
        "dataclass": dataclass,
        "model": torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)),
        "loader": torch.utils.data.DataLoader(data, batch_size=16, shuffle=True),
        "loss_fn": torch.nn.CrossEntropyLoss(),
        **{name: getattr(cyclic_optim, name) for name in cyclic_optim.__all__},
    }
    exec(block, namespace)


def test_every_other_block_is_run_by_a_test_of_its_own():
    """A block that needs more than torch names the test file that runs it, and that file does."""
    assert SNIPPETS
    for file in SNIPPETS:
        assert re.search(r"run_snippet\(\s*__file__", (ROOT / file).read_text()), file


def test_the_compatibility_table_names_tests_that_exist():
    """Each row that claims something names the tests that show it."""
    table = README[README.index("| package | version |") :].split("\n\n")[0]
    rows = table.splitlines()[2:]
    assert rows
    for row in rows:
        *_, version, _, tests = map(str.strip, row.strip("|").split("|"))
        if version.startswith("not"):
            continue
        files = re.findall(r"`(tests/\S+\.py)`", tests)
        assert files, row
        assert all((ROOT / file).is_file() for file in files), row


def test_the_compatibility_table_tells_the_pinned_versions():
    """The versions in the table are those of constraints.txt, and all that the ecosystem extra installs is in it."""
    pins = dict(re.findall(r"^([\w-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", README, re.MULTILINE)
    assert {name: pins[name] for name, _ in rows} == dict(rows)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(config["options.extras_require"]["ecosystem"].split()) <= dict(rows).keys()


def test_before_and_after_differ_by_what_is_marked():
    """The example of swapping SGD for CyclicSGD parses, before and after."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = diff.splitlines()
    for sign in "-+":
        kept = [line[2:] for line in lines if not line or line[0] in (" ", sign)]
        compile("\n".join(kept), "README.md", "exec")
    assert "scheduler" not in "\n".join(line for line in lines if not line.startswith("-"))


def test_the_policy_table_names_every_policy():
    """Every policy has a row, and every row a policy."""
    from cyclic_optim.policies import POLICIES

    table = README[README.index("## Policies") : README.index("The triangular ones")]
    assert set(re.findall(r"^\| `(\w+)\(", table, re.MULTILINE)) == set(POLICIES)
