"""The README's code runs as it stands."""

import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

import cyclic_optim

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


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
