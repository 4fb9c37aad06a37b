"""The extension module, which setup.cfg cannot hold; all else is there."""

import sysconfig

from setuptools import Extension, setup

# The extension relies on the GIL. On a free-threaded Python importing it would switch the GIL on for the whole process,
# so there Python does the same.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    ext_modules=[]
    if FREE_THREADED
    else [
        Extension(
            "cyclic_optim._native",
            ["cyclic_optim/_native.c"],
            # No contraction to fused multiply-adds: the same bits on every machine.
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,  # without a C compiler the package installs all the same
        )
    ]
)
