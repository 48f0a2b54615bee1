"""The part that is compiled; everything works without it, only slower."""

from setuptools import Extension, setup

PARTS = ("", "_ahead", "_copy", "_help", "_settle")

setup(
    ext_modules=[
        Extension(
            "qemu_svm.stream.ram._ram",
            [
                f"qemu_svm/stream/ram/_ram{part}.c"
                for part in ("", "_ahead", "_copy", "_help", "_settle")
            ],
            depends=["qemu_svm/stream/ram/_ram.h", "qemu_svm/stream/ram/_ram_file.h"],
            optional=True,
        ),
    ]
)
