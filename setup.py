"""The extension module, which setup.cfg cannot hold; all else is there."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "cyclic_optim._native",
            ["cyclic_optim/_native.c"],
            # No contraction to fused multiply-adds: the same bits on every machine.
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,  # without a C compiler the package installs all the same
        )
    ]
)
