"""What is installed, and what importing it costs."""

import subprocess
import sys
import zipfile
from importlib import metadata, resources
from pathlib import Path

import cyclic_optim

ROOT = Path(__file__).resolve().parents[1]


def test_import_brings_torch_alone():
    """Importing the package imports none of the extras' packages, and not triton."""
    code = (
        "import sys, torch; before = set(sys.modules); import cyclic_optim; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    third_party = set(printed.split()) - {"cyclic_optim", *sys.stdlib_module_names}
    assert third_party <= {"torch"}


def test_import_waits_with_what_it_may_not_need():
    """Importing the package imports none of its modules but the one that finds names; asking for a name does."""
    code = (
        "import sys, torch, cyclic_optim; "
        "before = [name for name in sys.modules if name.startswith('cyclic_optim.')]; "
        "cyclic_optim.OneCycle; print(before, 'cyclic_optim.policies.onecycle' in sys.modules, "
        "'cyclic_optim.policies.decay' in sys.modules, hasattr(cyclic_optim, 'TwoCycle'))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "['cyclic_optim._on_demand'] True False False"


def test_policies_import_the_standard_library_alone():
    """The policies are pure: their modules import nothing but the standard library and each other."""
    for module in (ROOT / "cyclic_optim" / "policies").glob("*.py"):
        for line in module.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                name = line.split()[1]
                assert name.startswith(".") or name.split(".")[0] in sys.stdlib_module_names, (module.name, line)


def test_every_public_name_is_exported():
    """``__all__`` names what the package offers, each with a docstring, and every policy of the table is there."""
    from cyclic_optim.policies import POLICIES

    others = {"LRRangeTest", "NoSuggestionError", "lr_range_test", "plot_policy", "supervised_step"}
    assert sorted(cyclic_optim.__all__) == sorted({"CyclicSGD", "CyclicAdamW", "cyclic", "Policy", "Values", *POLICIES, *others})
    assert all(getattr(cyclic_optim, name).__doc__ for name in cyclic_optim.__all__)


def test_metadata():
    """The version is told once, the package is typed, and torch is its one requirement."""
    assert metadata.version("cyclic_optim") == cyclic_optim.__version__
    assert resources.files("cyclic_optim").joinpath("py.typed").is_file()
    required = [line for line in metadata.requires("cyclic_optim") if "extra" not in line]
    assert required == ["torch>=2.6"]


def test_a_built_wheel_holds_only_the_package(tmp_path):
    """A wheel has the package's modules, py.typed and its metadata: no tests, no benchmarks."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("cyclic_optim", "tests", "benchmarks"):
        for file in (ROOT / name).rglob("*.*"):
            if file.suffix in {".py", ".c", ".typed"}:
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "cyclic_optim/py.typed" in names
    assert all(name.startswith("cyclic_optim/") or ".dist-info/" in name for name in names)
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "cyclic_optim").rglob("*.py")}
    assert modules <= set(names)
