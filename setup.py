"""The extension module, which setup.cfg cannot hold; all else is there."""

import os
import sysconfig

from setuptools import Extension, setup

#: "optional": without a C compiler the package installs all the same. "required": it does not. "none": no extension,
#: so that a wheel is for every Python and platform.
EXTENSION = os.environ.get("CYCLIC_OPTIM_EXTENSION", "optional")
if EXTENSION not in ("optional", "required", "none"):
    raise ValueError(f"need CYCLIC_OPTIM_EXTENSION to be optional, required or none, got {EXTENSION!r}")

#: The extension relies on the GIL. On a free-threaded Python importing it would switch the GIL on for the whole
#: process, so there Python does the same.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
if FREE_THREADED and EXTENSION == "required":
    raise ValueError("need a Python with a GIL for CYCLIC_OPTIM_EXTENSION=required, got a free-threaded one")

native = Extension(
    "cyclic_optim._native",
    ["cyclic_optim/_native.c"],
    # No contraction to fused multiply-adds: the same bits on every machine.
    extra_compile_args=["-O3", "-ffp-contract=off"],
    optional=EXTENSION == "optional",
)
setup(ext_modules=[] if EXTENSION == "none" or FREE_THREADED else [native])
