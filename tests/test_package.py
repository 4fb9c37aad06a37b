"""What is installed, and what importing it costs."""

import ast
import functools
import inspect
import pydoc
import re
import subprocess
import sys
import types
from graphlib import TopologicalSorter
from importlib import metadata, resources
from importlib.util import resolve_name
from pathlib import Path

import pytest

import cyclic_optim
from cyclic_optim.policies import POLICIES

ROOT = Path(__file__).resolve().parents[1]


def python(code):
    """What this code prints in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_brings_torch_alone():
    """Importing the package imports none of the extras' packages, and not triton."""
    code = (
        "import sys, torch; before = set(sys.modules); import cyclic_optim; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    third_party = set(python(code).split()) - {"cyclic_optim", *sys.stdlib_module_names}
    assert third_party <= {"torch"}


def test_import_waits_with_what_it_may_not_need():
    """Importing the package imports no file of a policy, and neither does the optimizer; a name imports its own."""
    code = (
        "import sys, torch, cyclic_optim; loaded = lambda: sorted(name.removeprefix('cyclic_optim.') for name in "
        "sys.modules if name.startswith('cyclic_optim.') and name.split('.')[-1] in "
        "('sgd', 'range_test', 'plotting', 'compose', 'cyclic', 'decay', 'onecycle', 'plateau')); "
        "print(loaded()); cyclic_optim.CyclicSGD; print(loaded()); cyclic_optim.OneCycle; print(loaded()); "
        "print(hasattr(cyclic_optim, 'TwoCycle'))"
    )
    assert python(code).splitlines() == [
        "[]",
        "['sgd']",
        "['policies.onecycle', 'sgd']",
        "False",
    ]


def test_no_torch_is_imported_before_it_is_needed():
    """Without torch the package can be imported, every policy used, and what needs torch says that torch is missing."""
    code = (
        "import sys; sys.modules['torch'] = None; import cyclic_optim; from cyclic_optim.policies import POLICIES; "
        "[*POLICIES.values()]; print(cyclic_optim.OneCycle(10).at(9), cyclic_optim.plot_policy.__name__)\n"
        "for name in ('CyclicSGD', 'lr_range_test', 'supervised_step', 'LRRangeTest', 'NoSuggestionError'):\n"
        "    try: getattr(cyclic_optim, name)\n"
        "    except ImportError as error: print(name, error.name)"
    )
    first, *others = python(code).splitlines()
    assert first == "Values(lr_factor=4e-06, momentum=0.95, weight_decay_factor=None) plot_policy"
    needing = ("CyclicSGD", "lr_range_test", "supervised_step", "LRRangeTest", "NoSuggestionError")
    assert others == [f"{name} torch" for name in needing]


def test_dir_names_everything_public():
    """``dir(cyclic_optim)`` has every public name, also before it was used."""
    assert python("import cyclic_optim; print(sorted({*cyclic_optim.__all__} - {*dir(cyclic_optim)}))") == "[]"


def test_dir_names_nothing_else():
    """Beside the public names ``dir`` has modules of the package and what begins with an underscore."""
    assert "OneCycle" in dir(cyclic_optim)
    others = {name for name in dir(cyclic_optim) if not name.startswith("_")} - {*cyclic_optim.__all__}
    assert others == {name for name in others if isinstance(getattr(cyclic_optim, name), types.ModuleType)}


def test_help_documents_what_is_public():
    """``help(cyclic_optim)`` has a section for every public function, and for no other."""
    text = pydoc.plain(pydoc.render_doc(cyclic_optim))
    section = text.partition("\nFUNCTIONS\n")[2].partition("\nDATA\n")[0]
    functions = {name for name in cyclic_optim.__all__ if inspect.isfunction(getattr(cyclic_optim, name))}
    assert set(re.findall(r"^ {4}(\w+)\(", section, re.MULTILINE)) == functions


@pytest.mark.parametrize(("misspelt", "name"), [("OneCyle", "OneCycle"), ("CyclicSDG", "CyclicSGD"), ("Ani", None)])
def test_a_misspelt_name_is_suggested(misspelt, name):
    """Python says which public name was meant, also one that was never used before; none that is no part of it."""
    code = f"import cyclic_optim; cyclic_optim.{misspelt}"
    error = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.splitlines()[-1]
    suggestion = f". Did you mean: {name!r}?" if name else ""
    assert error == f"AttributeError: module 'cyclic_optim' has no attribute {misspelt!r}{suggestion}"


def modules():
    """Every Python module of the package: its name and its file."""
    for file in sorted((ROOT / "cyclic_optim").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


MODULES = dict(modules())
COMPILED = {"cyclic_optim._native"}


TREES = {module: ast.parse(file.read_text()) for module, file in MODULES.items()}


def statements(node, in_function=False):
    """The import statements below a node that run, and whether they are in a function."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, in_function
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        below = node.orelse
    else:
        below = ast.iter_child_nodes(node)
    for child in below:
        yield from statements(child, in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def imported(module):
    """The modules of the package that a module imports, and whether in a function."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for statement, in_function in statements(TREES[module]):
        if isinstance(statement, ast.Import):
            targets = [alias.name for alias in statement.names]
        else:
            home = resolve_name("." * statement.level + (statement.module or ""), package)
            names = [f"{home}.{alias.name}" for alias in statement.names]
            targets = [name if name in MODULES or name in COMPILED else home for name in names]
        yield from ((target, in_function) for target in targets if target in MODULES)


@functools.cache
def imports():
    """Of each module, the modules of the package that it imports sooner or later."""
    graph = {module: {target for target, _ in imported(module)} for module in MODULES}
    graph["cyclic_optim.policies.table"] |= {policy.__module__ for policy in POLICIES.values()}  # imports by name
    for module, target in TO_DRAW:
        graph[module].remove(target)
    return graph


TO_DRAW = {  # a policy can draw itself: only these methods of its base look up, and import when they are called
    ("cyclic_optim.policies.base", "cyclic_optim.plotting"),
    ("cyclic_optim.policies.base", "cyclic_optim.svg"),
}


def test_no_modules_import_each_other():
    """The imports among the package's modules, those in functions included, have no circle."""
    assert "cyclic_optim.rules" in imports()["cyclic_optim.policies.onecycle"]
    TopologicalSorter(imports()).prepare()  # raises a CycleError that names the circle


IMPORTED_ON_USE = {
    *TO_DRAW,
    ("cyclic_optim", "cyclic_optim.plotting"),  # public names are imported on first use, so that importing is quick
    ("cyclic_optim", "cyclic_optim.range_test"),
    ("cyclic_optim", "cyclic_optim.wrap"),
    ("cyclic_optim.range_test.result", "cyclic_optim.plotting"),  # few range tests are plotted
    ("cyclic_optim.range_test.result", "cyclic_optim.svg"),  # for notebooks alone
    ("cyclic_optim.scheduled", "cyclic_optim.svg"),
    ("cyclic_optim", "cyclic_optim.sgd"),
    ("cyclic_optim.scheduled", "cyclic_optim.interop"),  # it imports every policy, for from_torch alone
    ("cyclic_optim.scheduled", "cyclic_optim.device"),  # a third of all there is to import, for capturable=True alone
    ("cyclic_optim.sgd", "cyclic_optim.device.sgd"),
    ("cyclic_optim.scheduled", "cyclic_optim.checkpoint"),  # for loading alone
    ("cyclic_optim.host.schedules", "cyclic_optim.checkpoint"),
    ("cyclic_optim.unscheduled", "cyclic_optim.host.schedules"),  # when the first group gets a policy
    ("cyclic_optim.scheduled", "cyclic_optim.passive"),  # for frameworks alone
    ("cyclic_optim.scheduled", "cyclic_optim.pickling"),
    ("cyclic_optim.testing.policy", "cyclic_optim.device.clock"),  # policies can be checked without torch
}


def test_modules_import_at_their_head():
    """The package's modules import each other at their head, where a reader looks; every exception has a reason."""
    assert {(module, target) for module in MODULES for target, inside in imported(module) if inside} == IMPORTED_ON_USE


def test_policies_import_the_standard_library_alone():
    """The policies are pure: of the package they import each other and the rules, and else the standard library.

    What draws them is imported when they are drawn.
    """
    pure = [
        module for module in MODULES if module.startswith("cyclic_optim.policies") or module == "cyclic_optim.rules"
    ]
    for module in pure:
        assert imports()[module] <= {*pure}, module
        for statement, _ in statements(TREES[module]):
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            else:
                names = [] if statement.level else [statement.module]
            assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names, (module, names)


TORCHS = "cyclic_optim.torch_private"


@functools.cache
def defined(module):
    """Every name that a module gives to something."""
    names = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias) and node.asname:
            names.add(node.asname)
    return names


def used(module):
    """Every name that a module may use: attributes, strings (of getattr), and what it imports from elsewhere."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            yield from (part for name in names for part in name.split("."))


def of_torch(module):
    """The names that a module reads from torch's modules and classes: ``torch.name``, ``Tensor.name``."""
    roots = {"torch"}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch") and not node.level:
            roots |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and ast.unparse(node).split(".")[0] in roots:
            yield node.attr


def private(names):
    return {name for name in names if name.isidentifier() and name.startswith("_") and name[1:2] != "_"} - {"_"}


def foreign(module):
    """The private names that a module uses and no module of the package defines, or that it takes from torch."""
    # What PassiveScheduler defines are the private names of torch's schedulers: defined there, foreign elsewhere.
    of_the_package = {name for other in {*MODULES} - {TORCHS, "cyclic_optim.passive"} for name in defined(other)}
    return private(used(module)) - of_the_package - defined(module) | private(of_torch(module))


NOT_TORCHS = {
    "_getframe",  # of sys: a documented function
    "_ArgumentGroup",  # of argparse, in an annotation alone
    "_guard",  # a key in a pickled optimizer
}


def test_private_names_of_torch_are_in_one_file():
    """No private name of torch is used outside of ``torch_private``, where each says what it is for."""
    known = {"_fused_sgd_", "_foreach_add", "_version", "_C", "_wrapped_by_lr_sched", "_last_lr", "_init_group"}
    assert known | {"_foreach_utils", "_device_dtype_check_for_fused"} <= foreign(TORCHS)
    assert {(module, name) for module in MODULES if module != TORCHS for name in foreign(module) - NOT_TORCHS} == set()


def test_every_public_name_is_exported():
    """``__all__`` names what the package offers, each with a docstring, and every policy of the table is there."""
    others = {"LRRangeTest", "NoSuggestionError", "RestoreError", "TrainStep"}
    others |= {"lr_range_test", "plot_policy", "supervised_step"}
    assert sorted(cyclic_optim.__all__) == sorted(
        {"CyclicSGD", "CyclicAdamW", "cyclic", "Scheduled", "Policy", "Values", *POLICIES, *others}
    )
    assert all(getattr(cyclic_optim, name).__doc__ for name in cyclic_optim.__all__)


def test_metadata():
    """The version is told once, the package is typed, and torch is its one requirement."""
    assert metadata.version("cyclic_optim") == cyclic_optim.__version__
    assert f"\nversion: {cyclic_optim.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert resources.files("cyclic_optim").joinpath("py.typed").is_file()
    required = [line for line in metadata.requires("cyclic_optim") if "extra" not in line]
    assert required == ["torch>=2.6"]


TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("cyclic_optim/**/*.py")]


def test_what_is_said_to_be_installed_can_be():
    """No text says to install this package by its name, which no index has; each extra that one names is there."""
    extras = metadata.metadata("cyclic_optim").get_all("Provides-Extra")
    named = []
    for text in (file.read_text() for file in TEXTS):
        assert not re.search(r"pip install [^\n]*cyclic[-_]optim\b", text)
        named += re.findall(r"pip install [^\n`]*'\.\[([\w,]+)\]'", text)
    assert {"plot", "bench"} <= {extra for names in named for extra in names.split(",")} <= {*extras}
