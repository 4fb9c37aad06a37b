"""The code of the README and of docs/ runs as it stands, and what tables and links say is so."""

import configparser
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import matplotlib as mpl
import pytest
import torch
from readme import AFTER, BEFORE, BLOCKS, FOUND, MOVES, PAGES, README, ROOT, SNIPPETS, table
from torch.optim import lr_scheduler

import cyclic_optim
from cyclic_optim.policies import POLICIES


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_a_block_runs(block):
    """Each Python block runs after its reader's imports, with a model, a loader and a number of epochs of theirs."""
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
        "epochs": 3,
        **{name: getattr(cyclic_optim, name) for name in cyclic_optim.__all__},
    }
    exec(block, namespace)


def test_the_tutorial_runs_as_a_script(tmp_path):
    """So it does from anywhere, and says that a run that was stopped ends with the same weights."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "docs" / "start.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "to the bit: True" in done.stdout


def test_every_other_block_is_run_by_a_test_of_its_own():
    """A block that needs more than torch names the test that runs it, and that test does."""
    assert SNIPPETS
    for name in SNIPPETS:
        file, _, test = name.partition("::")
        named = rf',\s*"{test}"' if test else ""
        assert re.search(rf"run_snippet\(\s*__file__{named}", (ROOT / file).read_text()), name
        assert f"def {test}" in (ROOT / file).read_text(), name


def test_the_compatibility_table_names_tests_that_exist():
    """Each row that claims something names the tests that show it."""
    for row in table("docs/frameworks.md", "| package | version |"):
        _, version, _, tests = row
        if version.startswith("not"):
            continue
        files = re.findall(r"`(tests/\S+\.py)`", tests)
        assert files, row
        assert all((ROOT / file).is_file() for file in files), row


def test_the_compatibility_table_tells_the_pinned_versions():
    """The versions in the table are those of constraints.txt, and all that the ecosystem extra installs is in it."""
    pins = dict(re.findall(r"^([\w-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", PAGES["docs/frameworks.md"], re.MULTILINE)
    assert {name: pins[name] for name, _ in rows} == dict(rows)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(config["options.extras_require"]["ecosystem"].split()) <= dict(rows).keys()


def test_before_and_after_differ_by_what_is_marked():
    """The example of swapping SGD for CyclicSGD parses, before and after; no scheduler is left."""
    for code in (BEFORE, AFTER):
        compile(code, "README.md", "exec")
    assert "scheduler" not in AFTER


@pytest.mark.parametrize(("theirs", "ours"), [move for move in MOVES if "LR(" in move[0]], ids=lambda code: code[:40])
def test_what_to_write_instead_is_the_same_schedule(theirs, ours):
    """In the table of schedulers and policies, both sides of a row give the same rates and momenta to the last step."""
    numbers = {"a": 0.01, "b": 0.3, "s": 4, "g": 0.8, "T": 30, "e": 5, "n": 6, "m": 0.002, "t": 7, "w": 5, "lr": 0.2}
    numbers["fn"] = lambda step: 1 / (1 + step)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.2, momentum=0.9)
    scheduler = eval(theirs, vars(lr_scheduler) | numbers | {"opt": sgd})
    arguments = {"lr": 0.2, **eval(f"dict({ours})", {**POLICIES, **numbers})}
    optimizer = cyclic_optim.CyclicSGD([torch.nn.Parameter(torch.ones(1))], momentum=0.9, **arguments)
    assert len(MOVES) == 19
    for _ in range(numbers["T"] - 1):
        for key in ("lr", "momentum"):
            assert math.isclose(optimizer.param_groups[0][key], sgd.param_groups[0][key], rel_tol=1e-10, abs_tol=1e-15)
        for each in (optimizer, sgd, scheduler):
            each.step()


def anchors(text):
    """The places in a page to which a link may lead: its headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "docs/start.py"])
def test_links_lead_somewhere(page):
    """Links go to files that there are, and to headings that there are in them."""
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert page != "README.md" or len(links) > 20
    for link in links:
        if not link.startswith("https://"):
            path, _, heading = link.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.is_file(), link
            assert not heading or heading in anchors(file.read_text()), link


def on_meta():
    return torch.nn.Parameter(torch.ones(2, device="meta"))


def sparse(optimizer):
    param = optimizer.param_groups[0]["params"][0]
    param.grad = torch.ones(2).to_sparse()
    optimizer.step()


def captured(optimizer):
    """What a step says in a capture, which needs a GPU: whether there is one is what this machine is made to say."""
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        optimizer.step()


#: By the first words of a row: other arguments, other parameters, and what to do with the optimizer.
def moved(optimizer):
    (param,) = optimizer.param_groups[0]["params"]
    torch.utils.swap_tensors(param, torch.nn.Parameter(param.to("meta")))
    param.grad = torch.ones(2, device="meta")
    optimizer.step()


NOT_CAPTURABLE = {
    "`policy=None`": ({"policy": None}, [], None),
    "`foreach=True`": ({"foreach": True}, [], None),
    "`weight_decay` as a tensor": ({"weight_decay": torch.tensor(0.1)}, [], None),
    "parameters on several devices": ({}, [on_meta], None),
    "parameters that moved": ({}, [], moved),
    "complex parameters": ({}, [lambda: torch.nn.Parameter(torch.ones(2).cfloat())], None),
    "sparse gradients": ({}, [], sparse),
    "a policy of more than 1,048,576 steps": ({"policy": cyclic_optim.OneCycle(2**21)}, [], None),
    'a number assigned to `group["lr"]`': ({}, [], captured),
}


def test_the_table_of_what_cannot_be_captured_tells_the_errors():
    """Each row that names an error names the one that is raised, in its words."""
    cells = table("docs/cuda_graphs.md", "| not with `CyclicSGD(capturable=True)` |")
    rows = [(what, *error.groups()) for what, then in cells if (error := re.fullmatch(r"`(\w+): (.*)`", then))]
    assert len(rows) == len(NOT_CAPTURABLE)
    for what, error, message in rows:
        ((options, others, act),) = [case for start, case in NOT_CAPTURABLE.items() if what.startswith(start)]
        words = ".*".join(map(re.escape, message.split("...")))
        params = [torch.nn.Parameter(torch.ones(2)), *(other() for other in others)]
        options = {"policy": cyclic_optim.Constant(), "capturable": True, **options}
        with pytest.raises((ValueError, TypeError, RuntimeError), match=words) as raised:
            act(cyclic_optim.CyclicSGD(params, **options))
        assert type(raised.value).__name__ == error


def test_the_policy_table_names_every_policy():
    """Every policy has a row, and every row a policy."""
    first = [row[0] for row in table("docs/policies.md", "| policy | factor of the peak |")]
    assert {name[1] for name in (re.match(r"`(\w+)\(", cell) for cell in first) if name} == {*POLICIES}


#: The lengths of a run in texts: a product of a number of batches and a number of epochs.
_LENGTH = re.compile(r"(?:\w*epochs?|\d+) \* len\(\w*loader\)|\w*epochs \* (?:steps_per_epoch|batches)")


def test_the_length_of_a_run_is_written_in_one_form():
    """It is ``len(loader) * epochs`` on every page and in every docstring: no reader wonders what differs."""
    texts = PAGES | {file.name: file.read_text() for file in ROOT.glob("cyclic_optim/**/*.py")}
    assert {name: found for name, text in texts.items() if (found := _LENGTH.findall(text))} == {}
    assert "total_steps=len(loader) * epochs" in README


def test_every_one_cycle_of_an_example_has_the_length_of_its_run():
    """No block of a page gives a OneCycle a number of steps that fits no reader's data."""
    blocks = [block.code for block in FOUND if block.page != "docs/property_testing.md"]  # which has no data
    calls = re.findall(r"OneCycle\((?:total_steps=)?([^,)]*(?:\([^)]*\))?[^,)]*)", "\n".join(blocks))
    assert calls
    assert [call for call in calls if call.isdigit()] == []


_CODE = re.compile(r"^```.*?^```|`[^`]*`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md"])
def test_no_power_is_taken_for_bold_type(page):
    """2**53 is written as code where a second one follows: what is between them would be bold."""
    text = _CODE.sub("", (ROOT / page).read_text())
    assert [part for part in re.split(r"\n\n|\n\|", text) if len(re.findall(r"\w\*\*\w", part)) > 1] == []
