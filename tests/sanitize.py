"""The tests of the compiled part, with AddressSanitizer and UndefinedBehaviorSanitizer.

Run it with::

    python tests/sanitize.py                              # the test files below, some minutes
    python tests/sanitize.py tests/test_fused_update.py   # others; everything is passed on to pytest

The package is copied to ``build/sanitized``, its C part compiled there with GCC's or Clang's sanitizers, and pytest
run on that copy in a process that loads the sanitizer first. The first report ends the run. Needs Linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "sanitized"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
#: Loaded before Python. The C++ library too, since torch's exceptions pass through the sanitizer.
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so.6")
TESTS = (
    "test_memory_safety.py",
    "test_native_helpers.py",
    "test_native_layout.py",
    "test_compiled.py",
    "test_fused_update.py",
    "test_threads.py",
    "test_modes.py",
    "test_nothing_goes_stale.py",
    "test_optimizer_corners.py",
    "test_interruption.py",
)


def build() -> None:
    """A copy of the package with its C part compiled for the sanitizers."""
    shutil.rmtree(COPY, ignore_errors=True)
    command = ["setup.py", "-q", "build", "--build-base", COPY / "build", "--build-lib", COPY]
    flags = {name: f"{os.environ.get(name, '')} {FLAGS}".strip() for name in ("CFLAGS", "LDFLAGS")}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | flags, check=True)
    if not list((COPY / "cyclic_optim").glob("_native*.so")):
        sys.exit("the compiled part could not be built: see above")


def library(name: str) -> str:
    compiler = os.environ.get("CC", sysconfig.get_config_var("CC") or "cc").split()[0]
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def run(arguments: list[str]) -> int:
    """pytest's exit code. From the copy's folder, since Python looks for packages there first."""
    environment = os.environ | {
        "LD_PRELOAD": " ".join(map(library, LIBRARIES)),
        "PYTHONPATH": str(COPY),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:" + os.environ.get("ASAN_OPTIONS", ""),
        "UBSAN_OPTIONS": "print_stacktrace=1:" + os.environ.get("UBSAN_OPTIONS", ""),
        "PYTHONMALLOC": "malloc",  # so that the sanitizer sees Python's own blocks, too
    }
    script = (
        "import sys, pytest\n"
        "from cyclic_optim import native\n"
        f"assert native.compiled.__file__.startswith({str(COPY)!r}), native.compiled\n"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "-c", ROOT / "setup.cfg", "--rootdir", ROOT, *arguments]
    return subprocess.run(command, cwd=COPY, env=environment, check=False).returncode


def from_root(argument: str) -> str:
    """A path seen from the root, where pytest does not run."""
    return str(ROOT / argument) if (ROOT / argument.split("::")[0]).exists() else argument


def main() -> int:
    build()
    return run(["-q", *map(from_root, sys.argv[1:] or [f"tests/{name}" for name in TESTS])])


if __name__ == "__main__":
    sys.exit(main())
