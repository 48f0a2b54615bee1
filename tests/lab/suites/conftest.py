"""A cache that is empty, and a mirror in small."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .mirror import Key, Mirror


@pytest.fixture(scope="package")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Key]:
    """What the mirror signs with."""
    made = Key(tmp_path_factory.mktemp("key"))
    yield made
    made.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Key) -> Path:
    """An empty cache, and the mirror's key instead of Debian's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SVMSTREAM_KEYRING", str(key.public))
    return tmp_path / "cache/qemu-svm"


@pytest.fixture
def mirror(tmp_path: Path, key: Key, home: Path) -> Iterator[Mirror]:
    """A mirror with nothing in it yet."""
    with Mirror(tmp_path / "mirror", key).served() as made:
        yield made
