"""``svmstream ram`` as a user has it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qemu_svm.stream.ram.files import BlockFiles, file_name
from tests.conftest import CAPTURES, STREAMS, Run
from tests.support import builders
from tests.support.builders import PAGE, Section, page, zero

BLOCKS = {"pc.ram": 64 * PAGE, "../../evil": 2 * PAGE, "/rom@etc/x": PAGE, "\x1b[2J": PAGE}


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    part = b"".join(
        [
            page(0, b"old", "pc.ram"),
            *(page(n * PAGE, bytes((n,)) * PAGE) for n in range(1, 20)),
            *(zero(n * PAGE) for n in range(20, 64)),
            page(PAGE, b"evil", "../../evil"),
            page(0, b"rom", "/rom@etc/x"),
            page(0, b"new", "pc.ram"),
            zero(2 * PAGE),
        ]
    )
    path = tmp_path / "dump.bin"
    path.write_bytes(builders.stream([], [part], BLOCKS))
    return path


def test_the_report(dump: Path, command: Run) -> None:
    done = command("ram", dump)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "sent         68 (23 normal, 45 zero)" in text
    assert "2 copies of 2 pages; one 2 times" in text
    assert "            0 ##.#################" in text


def test_the_document(dump: Path, command: Run) -> None:
    made = json.loads(command("ram", "--json", "--block", "pc.ram", dump).stdout)
    assert made["schema_version"] == 1
    assert made["pages"] == {"normal": 23, "zero": 45, "xbzrle": 0, "compressed": 0, "again": 2}
    (block,) = made["blocks"]
    assert block["pages"] == {
        "all": 64, "data": 19, "zero": 45, "never": 0, "sent": 66,
        "again": 2, "repeated": 2, "most": 2,
    }  # fmt: skip
    assert made["complete"] is True


@pytest.mark.parametrize("entry", CAPTURES[:3], ids=lambda entry: entry["file"])
def test_real_captures(entry: dict[str, str], command: Run, tmp_path: Path) -> None:
    done = command("ram", "--json", "--extract", tmp_path / "out", STREAMS / entry["file"])
    assert (done.returncode, done.stderr) == (0, b"")
    for block in json.loads(done.stdout)["blocks"]:
        assert (tmp_path / "out" / block["file"]).stat().st_size == block["size"]


# A small process starts the command: the memory of a large one that forks is counted too.
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10, flush=True)
sys.stdout.buffer.write(done.stdout)
"""


def measured(*args: str | Path) -> tuple[int, bytes, int]:
    """Run the command; status, output and the most memory that it had, in MiB."""
    program = Path(sys.executable).with_name("svmstream")
    command = [sys.executable, "-S", "-c", MEASURED, program, *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    numbers, output = done.stdout.split(b"\n", 1)
    status, most = map(int, numbers.split())
    return status, output, most


@pytest.mark.parametrize("bits", [40, 44, 62])
def test_memory_follows_what_was_sent(bits: int, tmp_path: Path) -> None:
    size, paths = 1 << bits, [tmp_path / "a", tmp_path / "b"]
    for path, at in zip(paths, (0, size - PAGE), strict=True):
        path.write_bytes(builders.stream([], [zero(0, "m") + page(at, b"x")], {"m": size}))
    status, output, most = measured("ram", "--json", paths[1])
    assert (status, json.loads(output)["blocks"][0]["pages"]["never"]) == (0, size // PAGE - 2)
    assert most <= 120
    status, output, most = measured("diff", "--ram", "--json", *paths)
    assert (status, json.loads(output)["ram"][0]["pages"]["never"]) == (1, size // PAGE - 2)
    assert most <= 120
    status, output, most = measured("ram", "--extract", tmp_path / "out", paths[1])
    assert most <= 120
    if status:  # the file system decides
        assert status == 4
        assert f"holds no file of {size:#x} bytes, the length of RAM block 'm'" in output.decode()
        assert not (tmp_path / "out").exists()
    else:
        with (tmp_path / "out" / "m").open("rb") as file:
            assert file.seek(0, os.SEEK_END) == size
            file.seek(size - PAGE)
            assert file.read() == b"x".ljust(PAGE, b"\0")
        assert (tmp_path / "out" / "m").stat().st_blocks * 512 <= 4 * PAGE
        (tmp_path / "out" / "m").unlink()


def test_memory_of_large_buffers_and_arrays(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for kind, size, megabytes in (("buffer", 1, 24), ("uint16", 2, 24), ("buffer", 1, 50)):
        count = (megabytes << 20) // size
        field = {"name": "f", "type": kind, "size": size}
        field |= {"size": count} if kind == "buffer" else {"array_len": count}
        for path, fill in zip(paths, (b"\0\7", b"\1\7"), strict=True):
            content = fill * (megabytes << 19)
            path.write_bytes(builders.stream([Section("dev", content, [field])]))
        del content
        for verb in ("diff", "show"):
            words = paths if verb == "diff" else (paths[0], "section:dev")
            status, output, most = measured(verb, "--json", *words)
            assert most <= 120
            if verb == "diff":
                assert status == 1
                last = json.loads(output[: output.rindex(b"}") + 1])["differences"][-1]
                assert last["path"].endswith(f"..{(megabytes << 20) - 2}]")
                assert len(last["a"]["value"]) == 2 << 20
            else:
                whole = kind == "buffer" and megabytes == 24
                assert status == (0 if whole else 3)
                assert whole or b"--limit section_" in output


def test_extracted_files(dump: Path, command: Run, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    out.parent.mkdir()
    done = command("ram", "--extract", out, dump)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(os.listdir(out)) == ["%1B%5B2J", "%2E.%2F..%2Fevil", "%2From@etc%2Fx", "pc.ram"]
    assert sorted(os.listdir(tmp_path)) == ["a", "dump.bin"]
    expected = b"new".ljust(PAGE, b"\0") + b"\1" * PAGE + bytes(PAGE)
    ram = (out / "pc.ram").read_bytes()
    assert ram[: 3 * PAGE] == expected
    assert ram[3 * PAGE : 20 * PAGE] == b"".join(bytes((n,)) * PAGE for n in range(3, 20))
    assert ram[20 * PAGE :] == bytes(44 * PAGE)
    assert (out / "pc.ram").stat().st_blocks * 512 <= 24 * PAGE  # sparse
    assert (out / "%2E.%2F..%2Fevil").read_bytes() == bytes(PAGE) + b"evil".ljust(PAGE, b"\0")


def test_a_range(dump: Path, command: Run, tmp_path: Path) -> None:
    args = ("--range", "0x1000:0x4000", "--block", "pc.ram", "--extract", tmp_path / "out")
    assert command("ram", *args, dump).returncode == 0
    expected = b"\1" * PAGE + bytes(PAGE) + b"\3" * PAGE
    assert (tmp_path / "out" / "pc.ram").read_bytes() == expected
    for bad in ("1", "5:3", "x:y", "0:77"):
        assert command("ram", "--range", bad, dump).returncode == 2


def test_nothing_is_overwritten(dump: Path, command: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (out / "pc.ram").symlink_to(victim)
    done = command("ram", "--extract", out, dump)
    assert done.returncode == 2
    assert b"-f replaces it" in done.stderr
    assert os.listdir(out) == ["pc.ram"]
    assert command("ram", "-f", "--extract", out, dump).returncode == 0
    assert victim.read_text() == "precious"
    assert not (out / "pc.ram").is_symlink()
    assert len(os.listdir(out)) == len(BLOCKS)


@pytest.mark.parametrize("force", [(), ("-f",)])
def test_a_folder_with_the_name_of_a_block(
    force: tuple[str, ...], dump: Path, command: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "%1B%5B2J").mkdir(parents=True)  # of the last block
    (out / "pc.ram").write_text("precious")
    done = command("ram", *force, "--extract", out, dump)
    assert done.returncode == (4 if force else 2)
    assert (b"%1B%5B2J': Is a directory" if force else b"exists already") in done.stderr
    assert sorted(os.listdir(out)) == ["%1B%5B2J", "pc.ram"]
    assert (out / "pc.ram").read_text() == "precious"


def test_what_is_no_file_is_not_replaced(dump: Path, command: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / "pc.ram")
    done = command("ram", "-f", "--extract", out, dump)
    assert done.returncode in (2, 4), done.stderr
    assert stat.S_ISFIFO((out / "pc.ram").stat().st_mode)
    assert os.listdir(out) == ["pc.ram"]


def test_no_folder_is_called_minus(dump: Path, command: Run, tmp_path: Path) -> None:
    done = command("ram", "--extract", "-", dump, cwd=tmp_path)
    assert done.returncode == 2
    assert b"directory" in done.stderr
    assert os.listdir(tmp_path) == ["dump.bin"]


def two_blocks(*names: bytes) -> bytes:
    """A stream with blocks of these names, each with a page that has its number."""
    head, tail = builders.stream([], [b"<pages>"], {"m": PAGE}).split(b"<pages>")
    at = head.index(builders.word(PAGE | 4))
    sizes = b"".join(bytes((len(name),)) + name + builders.word(PAGE) for name in names)
    pages = b"".join(
        builders.word(0x08) + bytes((len(name),)) + name + bytes((number + 1,)) * PAGE
        for number, name in enumerate(names)
    )
    listed = len(builders.word(PAGE | 4)) + 2 + 8
    head = head[:at] + builders.word(len(names) * PAGE | 4) + sizes + head[at + listed :]
    return head + pages + tail


def test_names_that_look_alike(command: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "dump.bin", tmp_path / "out"
    path.write_bytes(two_blocks(b"\xff", b"\\xff", b"\\x5cxff"))
    assert command("ram", "--extract", out, path).returncode == 0
    assert sorted(file.read_bytes()[:1] for file in out.iterdir()) == [b"\1", b"\2", b"\3"]


def test_two_blocks_of_one_name(command: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "dump.bin", tmp_path / "out"
    path.write_bytes(two_blocks(b"same", b"same"))
    done = command("ram", "--extract", out, path)
    assert done.returncode == 3
    assert b"two RAM blocks have the same name" in done.stderr
    assert not out.exists()


def test_nothing_stays_after_an_error(dump: Path, command: Run, tmp_path: Path) -> None:
    data = dump.read_bytes()
    bad = builders.word(0x40) + builders.counted("pc.ram") + b"\1\0\2\0\0"
    at = data.index(builders.referring(builders.RecordType.END, 2, builders.EOS))
    part = builders.referring(builders.RecordType.PART, 2, bad + builders.EOS)
    dump.write_bytes(data[:at] + part + data[at:])
    done = command("ram", "--extract", tmp_path / "out", dump)
    assert done.returncode == 3
    assert b"XBZRLE" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be(dump: Path, command: Run, tmp_path: Path) -> None:
    assert command("ram", "--extract", tmp_path / "no" / "such", dump).returncode == 4
    assert command("ram", "--extract", dump, dump).returncode == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(number: signal.Signals, dump: Path, tmp_path: Path) -> None:
    # Ended while files are open and half written: none of them stays.
    out = tmp_path / "out"
    program = (
        "import os, sys, time\n"
        "from qemu_svm.cli import main\n"
        "from qemu_svm.stream.ram import extract as ram_extract\n"
        "def extract(ram, files, *rest):\n"
        "    os.write(next(iter(files.values())), b'half')\n"
        "    print('ready', flush=True); time.sleep(60)\n"
        "ram_extract.extract = extract\n"
        f"sys.argv[1:] = ['ram', '--extract', {str(out)!r}, {str(dump)!r}]\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert any(out.iterdir())
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.strip() == b"svmstream: interrupted"
    assert not out.exists()


def test_file_names() -> None:
    names = ["pc.ram", "..", ".", "a/b", "a%2Fb", "", "\0", "é", "x" * 255, "x" * 254 + "y", "A\\b"]
    made = [file_name(name) for name in names]
    assert len(set(made)) == len(names)
    for name in made:
        assert name
        assert not name.startswith(".")
        assert "/" not in name
        assert len(name) <= 200
    assert made[0] == "pc.ram"


def test_a_name_taken_meanwhile(tmp_path: Path) -> None:
    with BlockFiles(str(tmp_path), ["a"], replace=False) as files:
        (tmp_path / "a").write_text("mine")
        with pytest.raises(FileExistsError):
            files.commit()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "mine"


def test_a_name_that_cannot_be_given(tmp_path: Path) -> None:
    # Some had theirs already: they get back what they were.
    (tmp_path / "a").write_text("mine")
    with BlockFiles(str(tmp_path), ["a", "b", "c"], replace=True) as files:
        for number, descriptor in enumerate(files.descriptors):
            os.write(descriptor, b"%d" % number)
        (tmp_path / "c").mkdir()
        with pytest.raises(OSError, match=r"directory|permitted"):
            files.commit()
    assert sorted(os.listdir(tmp_path)) == ["a", "c"]
    assert (tmp_path / "a").read_text() == "mine"
    with BlockFiles(str(tmp_path), ["a", "b"], replace=True) as files:
        os.write(files.descriptors[0], b"new")
        files.commit()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]
    assert (tmp_path / "a").read_text() == "new"


def test_damage_is_reported_once(dump: Path, command: Run) -> None:
    dump.write_bytes(dump.read_bytes()[:30000])
    done = command("ram", "--json", dump)
    assert done.returncode == 3
    assert done.stderr.count(b"ends inside") == 1
    made = json.loads(done.stdout)
    assert [problem["rule"] for problem in made["problems"]] == ["truncated"]
    assert made["complete"] is False


def test_damage_and_unknown_names(dump: Path, command: Run) -> None:
    done = command("ram", "--block", "pc.rom", dump)
    assert done.returncode == 2
    assert b"pc.ram" in done.stderr
    dump.write_bytes(dump.read_bytes()[:9000])
    done = command("ram", dump)
    assert done.returncode == 3
    assert b"the input ends" in done.stderr
    assert b"1 normal" in done.stdout or b"2 normal" in done.stdout
