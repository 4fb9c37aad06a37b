"""The tutorial: ``docs/start.py`` as a notebook, run in a kernel of its own, and as a page with what it showed."""

import os
from pathlib import Path
from typing import Any

import figures
import jupytext
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "docs" / "start.py"

#: What the kernel runs before the notebook: pictures in the style of the site.
_SETUP = f"""
import matplotlib
from cycler import cycler
matplotlib.rcParams.update({figures.STYLE!r})
matplotlib.rcParams["figure.figsize"] = (6.4, 3.6)
get_ipython().run_line_magic("config", "InlineBackend.figure_formats = ['svg']")
get_ipython().run_line_magic("config", "InlineBackend.print_figure_kwargs = {{'bbox_inches': None}}")
"""


_PLACE = {"metadata": {"path": ROOT}}


def notebook() -> str:
    """The tutorial as a notebook, not run yet."""
    written: str = jupytext.writes(jupytext.read(SOURCE), fmt="ipynb")
    return written


def page() -> str:
    """The tutorial as a page, run."""
    cells = jupytext.read(SOURCE)
    cells.cells.insert(0, jupytext.reads(_SETUP, fmt="py:percent").cells[0])
    # One thread: such small tensors gain nothing from more, and the numbers are then the same everywhere.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    client = NotebookClient(cells, timeout=600, kernel_name="python3", coalesce_streams=True, resources=_PLACE)
    client.create_kernel_manager().transport = "ipc"
    client.execute()
    first, *rest = [_shown(cell) for cell in cells.cells[1:]]
    return "\n\n".join([first, "[This page as a notebook](start.ipynb){ download }", *rest])


def _shown(cell: Any) -> str:
    if cell.cell_type == "markdown":
        return str(cell.source)
    parts = [f"```python\n{cell.source}\n```", *filter(None, map(_output, cell.outputs))]
    return "\n\n".join(parts)


def _output(output: Any) -> str:
    """What a cell showed: its text, its pictures, and no progress bars."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    if "image/svg+xml" in output.data:
        return figures.themed(output.data["image/svg+xml"], "The picture that this cell draws")
    return f"```text\n{output.data['text/plain']}\n```" if output.output_type == "execute_result" else ""
