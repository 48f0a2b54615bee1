"""``svmstream diff`` as a user has it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import STREAMS, Run
from tests.support import builders
from tests.support.builders import PAGE, counted, page

A = STREAMS / "qemu5.2-linux5.10-nested.mig.zst"
B = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"
AGAIN = STREAMS / "qemu5.2-linux5.10-nested.resaved.mig.zst"


def test_the_same(command: Run) -> None:
    done = command("diff", A, A)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"no differences" in done.stdout


def test_text(command: Run) -> None:
    done = command("diff", A, B)
    assert (done.returncode, done.stderr) == (1, b"")
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert "+PF" in text
    assert "0x6 at 0x9168c" in text
    for heading in ("configuration", "vcpu0", "vcpu0 nested", "devices"):
        assert f"\n{heading}\n" in text
    assert text.count("vmload-group") == 1
    assert "l1_save.dr6 " not in text


def test_all_and_no_masks(command: Run) -> None:
    shown = command("diff", A, B, "--all").stdout.decode()
    assert "masked: vmload-group" in shown
    bare = command("diff", A, B, "--no-masks").stdout.decode()
    assert "masked" not in bare
    assert "vcpu0.nested.l1_save.dr6" in bare


def test_masks_can_make_it_the_same(command: Run) -> None:
    assert command("diff", A, AGAIN).returncode == 1
    done = command("diff", A, AGAIN, "--mask", "*.rcx", "--mask", "*.rflags")
    assert done.returncode == 0
    assert b"user-1: 1, requested with --mask" in done.stdout


def test_json(command: Run) -> None:
    done = command("diff", A, B, "--json")
    made = json.loads(done.stdout)
    assert made["schema_version"] == 1
    assert made["same"] is False
    by_path = {one["path"]: one for one in made["differences"]}
    flags = by_path["vcpu0.registers.rflags"]
    assert flags["mask"] is None
    assert (flags["a"]["value"], flags["b"]["value"]) == ("0x2", "0x6")
    assert flags["b"]["names"] == ["1", "PF"]
    assert flags["b"]["offset"] == 0x9168C
    assert by_path["vcpu0.nested.l1_save.dr6"]["mask"] == "l1-save-leftovers"
    counts = {mask["id"]: mask["count"] for mask in made["masks"]}
    masked = [one for one in made["differences"] if one["mask"]]
    assert sum(counts.values()) == len(masked)
    assert by_path["section:pckbd.kbd.pckbd/extended_state"]["change"] == "only_b"
    assert made["renamed"][0] == {"path": "section:ps2kbd.common", "name": "parent_obj"}


def test_list_masks(command: Run) -> None:
    text = command("diff", "--list-masks").stdout.decode()
    assert "vmload-group" in text
    made = json.loads(command("diff", "--list-masks", "--json").stdout)
    assert {"id", "pattern", "reason", "source", "type", "ignore"} == made["masks"][0].keys()


def test_usage(command: Run) -> None:
    assert command("diff").returncode == 2
    assert command("diff", A).returncode == 2
    assert command("diff", "-", "-", input=b"").returncode == 2
    assert command("diff", A, A, "--nothing").returncode == 2


def test_one_of_them_from_a_pipe(command: Run) -> None:
    assert command("diff", A, "-", input=A.read_bytes()).returncode == 0


def test_unreadable(command: Run, sample: bytes, tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(sample[:0x98D00])
    done = command("diff", A, cut)
    assert done.returncode == 3
    assert b"0x98d00" in done.stderr
    assert b"NOT COMPLETE" in done.stdout
    assert command("diff", A, tmp_path / "none").returncode == 3


def test_a_postcopy_that_was_resumed(command: Run, tmp_path: Path) -> None:
    # Its first connection broke off; the second brought the rest, and the end.
    whole = builders.stream([], [page(0, b"kept", "m") + page(PAGE, b"lost")], {"m": 4 * PAGE})
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(whole[: whole.index(b"lost")])
    rest = builders.referring(2, 2, page(PAGE, b"again", "m") + builders.EOS)
    end = builders.referring(3, 2, builders.EOS) + b"\0"
    second.write_bytes(builders.command(10, counted("m")) + builders.command(9) + rest + end)
    both = ["--channel-a", second, "--channel-b", second]
    done = command("diff", "--ram", *both, first, first)
    assert (done.returncode, done.stderr) == (0, b"")
    done = command("diff", "--ram", *both[:2], first, first)
    assert done.returncode == 3
    assert b"the input ends" in done.stderr
