"""Captures as guests whose RAM lies in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qemu_svm.lab import Box
from qemu_svm.lab.kvm import InBox
from qemu_svm.machine import read_machine
from qemu_svm.model.saved import from_vcpu
from qemu_svm.replay.conform import Guest
from qemu_svm.replay.memory import extract_ram
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS

PLAIN = "qemu7.2-linux6.1-nested.mig.zst"
PAGED = "qemu7.2-linux6.1-nested-npt.mig.zst"


@contextmanager
def guest(name: str, folder: Path) -> Iterator[Guest]:
    """A capture with its RAM in a file of ``folder``."""
    path = str(STREAMS / name)
    with open_source(path) as source:
        machine = read_machine(read_stream(source))
        ram = extract_ram(machine, str(folder / f"{Path(name).name}.ram"))
        try:
            saved = from_vcpu(machine.vcpus[0])
            yield Guest(Path(name).name.partition(".mig")[0], path, saved, ram)
        finally:
            os.close(ram.fd)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """L2 without nested paging."""
    with guest(PLAIN, tmp_path_factory.mktemp("plain")) as made:
        yield made


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """L2 with nested paging."""
    with guest(PAGED, tmp_path_factory.mktemp("paged")) as made:
        yield made


@pytest.fixture(scope="module")
def in_box(box: Box) -> Iterator[InBox]:
    """The KVM of the shared box."""
    with InBox(box) as made:
        yield made
