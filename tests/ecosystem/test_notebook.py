"""A Jupyter notebook shows policies, optimizers and range tests as pictures, and a test that runs as a widget."""

import pytest
from frameworks import framework
from readme import ROOT

nbclient, nbformat = framework("nbclient"), framework("nbformat")
framework("ipykernel")
framework("ipywidgets")
pytestmark = pytest.mark.ecosystem

SETUP = """
import math, warnings
import torch
from cyclic_optim import CyclicSGD, OneCycle, Policy, lr_range_test
warnings.simplefilter("always")
model = torch.nn.Linear(1, 1)
optimizer = CyclicSGD(model.parameters(), lr=0.1)
class Broken(Policy):
    def at(self, step):
        raise RuntimeError("no such step")
def test(losses):
    return lr_range_test(model, optimizer, iter(losses).__next__, num_steps=38, divergence_factor=math.inf)
"""
FALLING = "[2.0] * 20 + [2.0 - i / 10 for i in range(16)] + [3.0, 5.0]"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The outputs of some cells that a real kernel has run, and its widgets."""
    cells = [SETUP, f"found = test({FALLING})", "found", "test([1.0, math.nan]).stopped", "found.plot();"]
    cells += ["OneCycle(100)", "optimizer", "CyclicSGD(model.parameters(), lr=0.1, policy=OneCycle(100))", "Broken()"]
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), kernel_name="python3")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # nothing is written to the user's
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        ran = client.execute(cwd=str(ROOT))
    return [cell.outputs for cell in ran.cells], client.widget_state


def test_the_progress_is_a_widget_that_goes_away(notebook):
    """The bar is displayed as a widget, with the rate and the loss; at the end and at an early stop it is hidden."""
    (_, full, _, early, *_), widgets = notebook
    for outputs in (full, early):
        (shown,) = [output.data for output in outputs if "application/vnd.jupyter.widget-view+json" in output.data]
        container = widgets[shown["application/vnd.jupyter.widget-view+json"]["model_id"]]
        assert widgets[container["layout"].removeprefix("IPY_MODEL_")]["visibility"] == "hidden"
        bar, right = (widgets[child.removeprefix("IPY_MODEL_")] for child in container["children"][1:])
        assert bar["bar_style"] != "danger"
        assert "left" in right["value"]


def test_nothing_else_is_written(notebook):
    """No warnings, and no bar as text."""
    outputs, _ = notebook
    assert not [output for cell in outputs for output in cell if output.output_type in ("stream", "error")]


def test_a_result_is_shown_as_a_picture_and_as_text(notebook):
    """The last line of a cell becomes an inline picture, with the text beside it for those who cannot show one."""
    (_, _, (shown,), *_), _ = notebook
    assert shown.data["text/plain"].startswith("LRRangeTest(base_lr=")
    assert "<svg" in shown.data["text/html"]


def test_a_plot_is_shown_once(notebook):
    """found.plot() draws through pyplot, whose figure the notebook shows."""
    plotted = notebook[0][4]
    assert [[*output.data] for output in plotted if "image/png" in output.data] == [["text/plain", "image/png"]]


def test_policies_and_optimizers_are_shown_as_pictures(notebook):
    """A policy and an optimizer with one are; without a policy, or with a broken one, there is the text alone."""
    (policy,), (plain,), (optimizer,), (broken,) = notebook[0][5:]
    assert "<svg" in policy.data["text/html"]
    assert "<svg" in optimizer.data["text/html"]
    assert [[*shown.data] for shown in (plain, broken)] == [["text/plain"]] * 2
