"""A QEMU that the tests of a module share, and QEMUs of known versions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qemu_svm.lab.box.emulator import program
from qemu_svm.lab.suites.build import using
from qemu_svm.lab.suites.catalogue import of_qemu
from tests.qmp.vm import Vm, running


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """The host's QEMU with the counting guest."""
    with running(tmp_path_factory.mktemp("vm")) as machine:
        yield machine


@pytest.fixture(scope="session")
def qemu_7_2() -> Iterator[tuple[str, ...]]:
    """Start of the command line of Debian 12's QEMU, out of the lab's cache."""
    with using(of_qemu("7.2")) as built:
        yield tuple(program(built))


@pytest.fixture(scope="session")
def qemu_10_0() -> Iterator[tuple[str, ...]]:
    """The same of Debian 13."""
    with using(of_qemu("10.0")) as built:
        yield tuple(program(built))
