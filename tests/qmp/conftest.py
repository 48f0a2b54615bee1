"""A QEMU that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.qmp.vm import Vm, running


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    with running(tmp_path_factory.mktemp("vm")) as machine:
        yield machine
