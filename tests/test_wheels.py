"""What is distributed: the source distribution, and the wheels that are built from it, installed on their own."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import FREE_THREADED
from readme import AFTER, README, ROOT

MODULES = {str(file.relative_to(ROOT)) for file in (ROOT / "cyclic_optim").rglob("*.py")}
HAS_COMPILER = shutil.which("cc") is not None
BUILDS = HAS_COMPILER and not FREE_THREADED
with_extension = pytest.mark.skipif(FREE_THREADED, reason="a free-threaded Python does not build the extension")


def run(*command, cwd, check=True, **variables):
    """What a command prints, or how it fails. PYTHONPATH, which may name this checkout, is not passed on."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CYCLIC_OPTIM_EXTENSION")}
    done = subprocess.run(command, cwd=cwd, env={**kept, **variables}, capture_output=True, encoding="utf-8")
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def pip(*arguments, cwd, **variables):
    """The pip of this environment, without any index and without a cache."""
    options = ("--quiet", "--no-deps", "--no-index", "--no-cache-dir")
    return run(sys.executable, "-m", "pip", *arguments, *options, cwd=cwd, **variables)


def wheel_of(source, out, **variables):
    pip("wheel", "--no-build-isolation", "--wheel-dir", out, source, cwd=out.parent, **variables)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout as far as a distribution could hold it, with an extension module that was built in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for file in ROOT.iterdir():
        if file.is_file() and file.name != ".git":
            shutil.copy(file, folder)
    for name in ("cyclic_optim", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "cyclic_optim" / "_native.built-in-place.so").touch()
    return folder


@pytest.fixture(scope="module")
def sdist(checkout):
    """The source distribution."""
    run(sys.executable, "setup.py", "--quiet", "sdist", cwd=checkout)
    (file,) = (checkout / "dist").glob("*.tar.gz")
    return file


@pytest.fixture(scope="module")
def wheels(checkout, sdist, tmp_path_factory):
    """With the compiled part, from the source distribution alone; and without, from the checkout."""
    folder = tmp_path_factory.mktemp("wheels")
    compiled, pure = folder / "compiled", folder / "pure"
    extension = "required" if BUILDS else "optional"
    return {
        "compiled": wheel_of(sdist, compiled, CYCLIC_OPTIM_EXTENSION=extension),
        "pure": wheel_of(checkout, pure, CYCLIC_OPTIM_EXTENSION="none"),
    }


def test_the_source_distribution_holds_what_builds_the_package(sdist):
    """The package's sources, the files that setuptools reads, licence and changelog; no tests, nothing compiled."""
    top = sdist.name.removesuffix(".tar.gz") + "/"
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(top) for member in archive if member.isfile()}
    metadata = {"MANIFEST.in", "PKG-INFO", "pyproject.toml", "setup.cfg", "setup.py"}
    texts = {"CHANGELOG.md", "LICENSE", "README.md"}
    expected = {*MODULES, "cyclic_optim/_native.c", "cyclic_optim/py.typed"} | metadata | texts
    assert {name for name in names if not name.startswith("cyclic_optim.egg-info/")} == expected


@pytest.mark.parametrize("kind", ["compiled", "pure"])
def test_a_wheel_holds_the_package_alone(wheels, kind):
    """Its modules, py.typed, the licence and metadata; the extension module where it says so: no tests, no C."""
    names = {name for name in zipfile.ZipFile(wheels[kind]).namelist() if ".dist-info/" not in name}
    extensions = {name for name in names if Path(name).suffix in {".so", ".pyd"}}
    assert names - extensions == {*MODULES, "cyclic_optim/py.typed"}
    assert len(extensions) == (kind == "compiled" and BUILDS)


@with_extension
def test_a_wheel_is_tagged_for_what_runs_it(wheels):
    """With the extension module for this Python on this platform, without for every Python 3 on all of them."""
    python, abi, platform = wheels["compiled"].stem.split("-")[-3:]
    assert python == f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert abi.startswith(python)
    assert platform != "any"
    assert wheels["pure"].stem.split("-")[-3:] == ["py3", "none", "any"]


@pytest.mark.parametrize("kind", ["compiled", "pure"])
def test_a_wheel_says_what_it_is(wheels, kind):
    """The README as its description, with its type; a summary of one line, the licence and its file."""
    (name,) = {name.split("/")[0] for name in zipfile.ZipFile(wheels[kind]).namelist() if ".dist-info/" in name}
    distribution = importlib.metadata.PathDistribution(zipfile.Path(wheels[kind], name + "/"))
    metadata = distribution.metadata
    assert metadata.get_payload().strip() == README.strip()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert len(metadata["Summary"].splitlines()) == 1
    assert metadata["License-Expression"] == "MIT"
    assert distribution.read_text("licenses/LICENSE") == (ROOT / "LICENSE").read_text()


GIVEN = """
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
inputs = torch.randn(64, 8)
loader = DataLoader(TensorDataset(inputs, inputs.sum(1).gt(0).long()), batch_size=16)
model, loss_fn, epochs, path = torch.nn.Linear(8, 2), torch.nn.CrossEntropyLoss(), 1, "checkpoint.pt"
"""
REPORT = """
import cyclic_optim
from cyclic_optim import native
torch.save([cyclic_optim.__file__, native.compiled is not None, *model.parameters()], "report.pt")
"""


@pytest.fixture(scope="module")
def reports(wheels, tmp_path_factory):
    """What the README's example comes to with each wheel, in an environment that has torch and nothing else of ours."""
    found = {}
    for kind, wheel in wheels.items():
        folder = tmp_path_factory.mktemp(kind)
        venv.create(folder, symlinks=True)
        python = folder / "bin" / "python"
        pip("--python", python, "install", "--no-compile", wheel, cwd=folder)
        assert (folder / "bin" / "cyclic-optim").is_file()
        (site,) = folder.glob("lib/python*/site-packages")
        # Only now, as pip would find this checkout, too, where it is installed beside torch.
        (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
        run(python, "-I", "-c", GIVEN + AFTER + REPORT, cwd=folder)
        found[kind] = folder, torch.load(folder / "report.pt")
    return found


def test_the_readmes_example_runs_from_a_wheel(reports):
    """Each wheel is what is imported, with its compiled part and without; both train alike, to rounding."""
    for folder, (file, *_) in reports.values():
        assert folder in Path(file).parents
    (_, (_, has_part, *compiled)), (_, (_, pure_has_part, *pure)) = reports["compiled"], reports["pure"]
    assert has_part == (BUILDS and hasattr(torch.Tensor, "__dlpack_c_exchange_api__"))
    assert not pure_has_part
    torch.testing.assert_close(compiled, pure)


def test_the_command_line_comes_with_a_wheel(reports):
    """``cyclic-optim`` is installed and lists the policies."""
    folder, _ = reports["pure"]
    assert "one-cycle" in run(folder / "bin" / "cyclic-optim", "list", cwd=folder).stdout


@with_extension
@pytest.mark.parametrize(("extension", "builds"), [("optional", True), ("required", False), ("none", True)])
def test_without_a_compiler_it_is_said_whether_that_is_an_error(checkout, tmp_path, extension, builds):
    """CYCLIC_OPTIM_EXTENSION decides whether a package without its extension is built."""
    command = [sys.executable, "setup.py", "build", "--build-base", tmp_path]
    done = run(*command, cwd=checkout, check=False, CC="false", CYCLIC_OPTIM_EXTENSION=extension)
    assert (done.returncode == 0) == builds, done.stderr
    assert ("false" in done.stdout + done.stderr) == (extension != "none")


def test_a_switch_that_is_none_of_the_three_is_refused(checkout):
    """The error names the variable, the values and what was given."""
    done = run(sys.executable, "setup.py", "--version", cwd=checkout, check=False, CYCLIC_OPTIM_EXTENSION="no")
    assert done.returncode
    expected = "need CYCLIC_OPTIM_EXTENSION to be optional, required or none, got 'no'"
    assert done.stderr.splitlines()[-1] == f"ValueError: {expected}"
