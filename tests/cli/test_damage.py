"""Every verb on damaged streams of every kind and container: messages, never a traceback."""

from __future__ import annotations

import gzip
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qemu_svm import cli
from tests.source.test_containers import save_image
from tests.stream.test_damage import places, whole
from tests.stream.test_kinds import KINDS

SMALL = [name for name, entry in KINDS.items() if entry["size"] < 2 << 20]
VERBS: dict[str, Callable[[str, str], list[str]]] = {
    "inspect": lambda bad, _: ["inspect", "--ram", "-v", bad],
    "show": lambda bad, _: ["show", bad, "section:timer"],
    "show-json": lambda bad, _: ["show", "--json", bad, "@0x200"],
    "ram": lambda bad, _: ["ram", bad],
    "check": lambda bad, _: ["check", "--kernel", "6.1", bad],
    "diff": lambda bad, good: ["diff", "--ram", bad, good],
    "compat": lambda bad, good: ["compat", bad, "--qemu", f"{good}.json"],
}
DUMP = '{"vmschkmachine": {"Name": "pc"}}'


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """A verb in this process; only what it means to raise becomes a status."""
    monkeypatch.setattr(sys, "argv", ["svmstream", *arguments])
    return cli._run()


def damaged(name: str, rng: random.Random) -> list[bytes]:
    """The stream cut, and with flipped bytes."""
    data = whole(name)
    cut, *flips = places(data, f"{name}{rng.random()}", 4)
    flipped = bytearray(data)
    for at in flips:
        flipped[at] = rng.choice([flipped[at] ^ 1 << rng.randrange(8), 0, 0xFF, 0x7E])
    return [data[:cut], bytes(flipped)]


@pytest.mark.parametrize("name", SMALL)
def test_every_verb(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(whole(name))
    Path(f"{good}.json").write_text(DUMP)
    for number, data in enumerate(damaged(name, random.Random(name))):
        bad.write_bytes(data)
        for verb, arguments in VERBS.items():
            status = run(arguments(str(bad), str(good)), monkeypatch)
            out, err = capsys.readouterr()
            assert status in (0, 1, 2, 3), (verb, number, err)
            assert "Traceback" not in err
            if number == 0 and verb in ("inspect", "ram", "diff"):
                assert status == 3, (verb, err)
                assert "0x" in out + err


@pytest.mark.parametrize("pack", [bytes, gzip.compress, save_image])
def test_containers_cut_and_flipped(
    pack: Callable[[bytes], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = pack(whole("qemu7.2-slirp"))
    rng = random.Random(1)
    path = tmp_path / "bad"
    for at in [*range(0, 140, 20), *rng.sample(range(len(data)), 6)]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        for bad in (data[:at], bytes(flipped)):
            path.write_bytes(bad)
            assert run(["inspect", str(path)], monkeypatch) in (0, 1, 3)
            assert "Traceback" not in capsys.readouterr().err
