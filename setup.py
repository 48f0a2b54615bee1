"""The part that is compiled; everything works without it, only slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "qemu_svm.stream._ram",
            ["qemu_svm/stream/_ram.c", "qemu_svm/stream/_ram_file.c"],
            depends=["qemu_svm/stream/_ram.h"],
            optional=True,
        ),
    ]
)
