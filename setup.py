"""What pyproject.toml cannot say: the compiled part, files from beside the package, and pages.

The wheel has the source of svmtrace and the documentation inside the package, below
``_data``, and manual pages and completion for shells below ``share``. The source
distribution has everything that a checkout has.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

DATA = {"qemu_svm._data.svmtrace": "plugins/svmtrace", "qemu_svm._data.docs": "docs"}
"""Packages without code: where the wheel has a directory of the checkout."""

WHEEL = "bdist_wheel" in sys.argv
"""The compiled part of a wheel works with every later Python (abi3)."""

TREES = ("docs", "examples", "plugins", "qemu_svm", "streams", "tests", "tools", ".ci", ".github")
FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")


class Build(build_py):
    """Makes the files of ``share`` too."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        share = Path(self.get_finalized_command("build").build_base) / "shell"
        subprocess.run([sys.executable, "tools/shell_files.py", share], check=True)
        files = defaultdict(list)
        for path in sorted(share.rglob("*")):
            if path.is_file():
                files[str(path.parent.relative_to(share))].append(str(path))
        self.distribution.data_files = list(files.items())


class Source(sdist):
    """Takes all of a checkout but what was made in it."""

    def make_distribution(self) -> None:
        self.filelist.extend(FILES)
        for tree in TREES:
            for path in Path(tree).rglob("*"):
                made = {"__pycache__", ".pytest_cache"} & set(path.parts) or path.suffix == ".so"
                if path.is_file() and not made:
                    self.filelist.append(str(path))
        self.filelist.remove_duplicates()
        super().make_distribution()


setup(
    packages=[*find_packages(include=["qemu_svm*"]), *DATA],
    package_dir=DATA,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if WHEEL else {},
    cmdclass={"build_py": Build, "sdist": Source},
    ext_modules=[
        Extension(
            "qemu_svm.stream.ram._ram",
            [
                f"qemu_svm/stream/ram/_ram{part}.c"
                for part in ("", "_ahead", "_copy", "_help", "_settle")
            ],
            depends=["qemu_svm/stream/ram/_ram.h", "qemu_svm/stream/ram/_ram_file.h"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if WHEEL else [],
            py_limited_api=WHEEL,
            optional=True,
        ),
    ],
)
