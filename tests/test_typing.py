"""Type checkers, on scripts as a user writes them: the code of README.md and docs/, right uses, and wrong ones.

Each checker runs once for all of them.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from readme import FOUND, ROOT

import cyclic_optim
from cyclic_optim.policies.decay import _COOLDOWNS, Shape
from cyclic_optim.range_test.rates import RULES, SuggestionRule
from cyclic_optim.range_test.result import RampMode
from cyclic_optim.range_test.run import RAMPS

TYPED = ROOT / "tests" / "typed"

checked = pytest.mark.typing

#: Tensor.backward has no types, and the functions of the checkpoint package are not exported as a checker reads it.
#: The blocks' own functions and classes need no annotations, and the frameworks are Any.
MYPY = """
[mypy]
strict = True
untyped_calls_exclude = torch

[mypy-torch.distributed.checkpoint]
implicit_reexport = True

[mypy-blocks.*]
disallow_untyped_defs = False
disallow_untyped_calls = False
disallow_any_generics = False
disallow_subclassing_any = False

[mypy-sklearn.*]
ignore_missing_imports = True
"""
TORCHS_OWN = 'is not exported from module "torch.distributed.checkpoint"'


# -- the scripts


def offered():
    """The names that a reader has."""
    for node in ast.parse((TYPED / "reader.py").read_text()).body:
        if isinstance(node, ast.AnnAssign):
            yield node.target.id
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield from (alias.asname for alias in node.names if alias.asname)


def given(code):
    """The names that a block uses before it defines them, if it does, in their order; and all that it defines."""
    used, defined = [], set()
    for statement in ast.parse(code).body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        used += [node.id for node in names if isinstance(node.ctx, ast.Load) and node.id not in defined]
        defined |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
    return list(dict.fromkeys(used)), defined


def script(block):
    """A block on the lines that it has on its page, after what its reader has: what it redefines is of any type."""
    names, defined = given(block.code)
    has = [name for name in names if name in OFFERED]
    first = ["import typing, reader", *(f"from reader import {name}" for name in has if name not in defined)]
    first += [f"{name}: typing.Any = reader.{name}" for name in has if name in defined]
    return "; ".join(first) + "\n" * (block.line - 1) + block.code


OFFERED = {*offered()}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A folder with all scripts."""
    folder = tmp_path_factory.mktemp("scripts")
    for name in ("reader", "right", "wrong"):
        (folder / f"{name}.py").write_text((TYPED / f"{name}.py").read_text())
    (folder / "blocks").mkdir()
    (folder / "blocks" / "__init__.py").touch()
    for i, block in enumerate(FOUND):
        (folder / "blocks" / f"block_{i}.py").write_text(script(block))
    (folder / "blocks" / "start.py").write_text((ROOT / "docs" / "start.py").read_text())
    (folder / "mypy.ini").write_text(MYPY)
    return folder


# -- the checkers


def output_of(folder, *command):
    """What a checker prints, for which this checkout is an installed package."""
    pytest.importorskip(command[0], reason=f"{command[0]} is not installed (the lint extra)")
    # pyright's report on types takes the first Python of the path.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": programs}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True)
    assert done.returncode in (0, 1), done.stderr.decode()
    return done.stdout.decode()


def by_mypy(folder):
    for line in output_of(folder, "mypy", "--output", "json", ".").splitlines():
        found = json.loads(line)
        if found["severity"] == "error":
            yield folder / found["file"], found["line"], found["message"]


def by_pyright(folder):
    found = json.loads(output_of(folder, "pyright", "--pythonpath", sys.executable, "--outputjson"))
    assert found["summary"]["filesAnalyzed"] == len(FOUND) + 5
    for one in found["generalDiagnostics"]:
        if one["severity"] == "error" and TORCHS_OWN not in one["message"]:
            yield folder / one["file"], one["range"]["start"]["line"] + 1, one["message"]


@pytest.fixture(scope="module", params=[by_mypy, by_pyright], ids=["mypy", "pyright"])
def errors(request, scripts):
    """The errors of each script: pairs of line and message, by its name in the folder."""
    errors = {path.relative_to(scripts).as_posix(): [] for path in scripts.rglob("*.py")}
    for path, line, message in request.param(scripts):
        errors[path.relative_to(scripts).as_posix()].append((line, message))
    return errors


# -- the claims


@checked
@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in FOUND))
def test_the_blocks_of_a_page_pass(errors, page):
    """Every Python block of the page passes. The lines are the page's."""
    names = [f"blocks/block_{i}.py" for i, block in enumerate(FOUND) if block.page == page]
    assert [error for name in names for error in errors[name]] == []


@checked
def test_the_tutorial_passes(errors):
    """docs/start.py passes, as a script."""
    assert errors["blocks/start.py"] == []


@checked
@pytest.mark.parametrize("name", ["reader.py", "right.py"])
def test_right_uses_pass(errors, name):
    """Whatever the package takes has a type that takes it, and what it returns has the type that it is."""
    assert errors[name] == []


@checked
def test_wrong_uses_do_not(errors):
    """What the package refuses when it runs, a checker refuses before: on each line that is marked, and no other."""
    lines = (TYPED / "wrong.py").read_text().splitlines()
    marked = {i: line for i, line in enumerate(lines, start=1) if line.endswith("# error")}
    assert len(marked) > 50
    found = dict(errors["wrong.py"])
    assert {marked[i] for i in marked.keys() - found.keys()} == set()
    assert {i: found[i] for i in found.keys() - marked.keys()} == {}


@checked
def test_every_public_name_has_a_type_of_its_own(scripts):
    """Nothing public, and no attribute of it, has a type that a checker would have to infer, or cannot know."""
    public = {f"{value.__module__}.{value.__qualname__}" for value in map(of_the_package, cyclic_optim.__all__)}
    # What public functions and methods return.
    public |= {"cyclic_optim.range_test.train_step.SupervisedStep", "cyclic_optim.passive.PassiveScheduler"}
    public.add("cyclic_optim.wrap.CyclicOptimizer")
    options = ["--verifytypes", "cyclic_optim", "--ignoreexternal", "--outputjson"]
    symbols = json.loads(output_of(scripts, "pyright", "--pythonpath", sys.executable, *options))["typeCompleteness"]
    known = {one["name"]: one["isTypeKnown"] and not one["isTypeAmbiguous"] for one in symbols["symbols"]}
    assert public <= known.keys()
    assert [name for name in known if name in public or name.rpartition(".")[0] in public if not known[name]] == []


def of_the_package(name):
    return getattr(cyclic_optim, name)


def test_a_checker_knows_every_public_name():
    """To a checker, that is public which is imported "as" itself: all names of ``__all__``, and no other."""
    nodes = ast.walk(ast.parse((ROOT / "cyclic_optim" / "__init__.py").read_text()))
    aliases = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert {alias.name for alias in aliases if alias.asname == alias.name} == {*cyclic_optim.__all__}


@pytest.mark.parametrize(
    ("words", "table"), [(Shape, _COOLDOWNS), (SuggestionRule, RULES), (RampMode, RAMPS)], ids=["shape", "rule", "mode"]
)
def test_a_table_has_every_word(words, table):
    """A word that a Literal allows has its entry where the word is looked up."""
    assert {*get_args(words)} == {*table}


def test_the_reader_has_nothing_that_no_block_uses():
    """Each name that the blocks' reader has is used by one of them."""
    used = {name for block in FOUND for name in given(block.code)[0]}
    assert used >= OFFERED
