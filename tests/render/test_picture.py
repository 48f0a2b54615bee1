"""Pictures of RAM: every cell has the colour of what became of its pages."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

import qemu_svm as svm
from qemu_svm.render.html import picture
from qemu_svm.stream.ram.rounds import rounds
from tests.conftest import STREAMS, Run
from tests.support.builders import PAGE, page, stream, zero

RESENT = STREAMS / "kinds" / "qemu10.0-resent.mig.zst"
COLOURS = {state: tuple(bytes.fromhex(c[1:])) for state, c in picture._COLOURS.items()}


def test_every_cell_has_its_colour(tmp_path: Path) -> None:
    parts = [
        page(0, b"a", "pc.ram") + page(PAGE, b"b") + zero(2 * PAGE),
        page(PAGE, b"c", "pc.ram"),
    ]
    path = tmp_path / "dump.bin"
    path.write_bytes(stream((), parts, {"pc.ram": 4 * PAGE}))
    states = ("most", "again", "zero", "never")
    with svm.open(path) as dump:
        report = dump.pages()
        image = Image.open(io.BytesIO(picture.png(report)))
        top = picture._placed(report)[0][0].top
        drawn = [image.getpixel((12 + 6 * at + 3, top + 3)) for at in range(4)]
        assert drawn == [COLOURS[state] for state in states]
        root = ET.fromstring(picture.svg(report))
        fills = [one.get("fill") for one in root.iter("{http://www.w3.org/2000/svg}rect")]
        assert fills[-3:] == [picture._COLOURS[state] for state in states[:3]]
        assert [(one.sent, one.data, one.zero) for one in rounds(report.ram.runs)] == [
            (3, 2, 1), (1, 1, 0),
        ]  # fmt: skip


def test_a_range_of_a_real_capture_is_drawn() -> None:
    with svm.open(RESENT) as dump:
        whole, part = dump.pages(), dump.pages(["pc.ram"], span=(0, 1 << 20))
        (one,), _ = picture._placed(part)
        assert (one.map.columns, one.map.rows) == (128, 2)
        assert len(picture._placed(whole)[0]) == len(whole.coverage)
        found = rounds(whole.ram.runs)
        assert sum(one.sent for one in found) == whole.ram.runs.records
        assert len(found) >= 2


def test_the_file(command: Run, tmp_path: Path) -> None:
    for name, magic in (("map.png", b"\x89PNG"), ("map.svg", b"<?xml")):
        out = tmp_path / name
        assert command("ram", RESENT, "--image", out, "-q").returncode == 0
        assert out.read_bytes().startswith(magic)
        assert out.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("package", "distribution", "words"),
    [
        ("PIL", "pillow", ["ram", str(RESENT), "--image", "map.png"]),
        ("jinja2", "jinja2", ["report", str(RESENT), "-o", "page.html"]),
    ],
)
def test_what_is_missing_is_said(
    package: str, distribution: str, words: list[str], tmp_path: Path
) -> None:
    code = f"import sys; sys.modules['{package}'] = None; "
    code += "from qemu_svm.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 4
    assert f"pip install {distribution}".encode() in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 20; exec "$@"', "sh", Path(sys.executable).with_name("svmstream"),
         "report", RESENT, "-o", "page.html", "--to", "6.1"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert b"cannot write 'page.html'" in done.stderr
    assert list(tmp_path.iterdir()) == []
