"""The page of ``report``: what it says, and what it must not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import qemu_svm as svm
from qemu_svm.nested import bits, layout
from tests.conftest import STREAMS, Run
from tests.support.builders import Section, configuration, page, stream, zero

CAPTURE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
AGAIN = STREAMS / "qemu10.0-linux6.12-nested-npt.resaved.mig.zst"
LOG = STREAMS / "qemu10.0-linux6.12-nested-npt.restore-ioctls.log.zst"
VOID = {"meta", "link", "rect", "path"}


class Page(HTMLParser):
    """A page with its elements; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID or (self.get_starttag_text()[-2:] != "/>" and tag in ("rect", "path")):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        """All text but the style."""
        return " ".join(self.texts)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        """Attributes of the elements of a kind."""
        return (attributes for name, attributes in self.elements if name == tag)


def the_page(path: Path, **options: Any) -> Page:
    with svm.open(path) as dump:
        return Page(dump.overview(**options).to_html())


@pytest.fixture(scope="module")
def full() -> Page:
    """A capture with its second stream and its log."""
    with svm.open(CAPTURE) as dump, svm.open(AGAIN) as other:
        return Page(dump.overview(other=other, log=LOG).to_html())


def test_it_loads_nothing(full: Page) -> None:
    (policy,) = (one for one in full.all("meta") if "http-equiv" in one)
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert (policy["content"] or "").startswith("default-src 'none'; style-src 'unsafe-inline';")
    names = {tag for tag, _ in full.elements}
    assert not names & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "use",
        "image",
    }
    for _, attributes in full.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data"):
            if name in attributes:
                assert re.fullmatch(r"#[\w-]+|data:,", attributes[name] or "")
    assert "url(" not in "".join(full.texts)
    assert "@import" not in "".join(full.texts)


def test_it_can_be_walked_without_eyes(full: Page) -> None:
    ids = [str(one["id"]) for _, one in full.elements if "id" in one]
    assert len(ids) == len(set(ids))
    targets = {(one["href"] or "")[1:] for one in full.all("a")}
    assert targets <= set(ids)
    for _, attributes in full.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
    assert [tag for tag, _ in full.elements].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in full.elements if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all("scope" in one for one in full.all("th"))
    for one in full.all("svg"):
        assert one.get("aria-hidden") or (
            one["role"] == "img" and (one.get("aria-label") or one.get("aria-labelledby"))
        )
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in full.elements}
    assert next(full.all("html"))["lang"] == "en"


def test_every_field_and_every_bit_is_there(full: Page) -> None:
    rows = {(row[0], row[2]): row for row in full.rows if len(row) == 5}
    for area, base in ((layout.CONTROL, 0), (layout.SAVE, layout.SAVE_OFFSET)):
        for member in area.members:
            assert (f"{base + member.offset:#05x}", member.name) in rows, member.name
    with svm.open(CAPTURE) as dump:
        control = dump["vcpu0.nested.control"]
        for child in control.children:
            assert rows[f"{child.offset - control.offset:#05x}", child.name][1] == hex(child.offset)
    for name, table in bits.NAMED.items():
        value = next(row[3] for (_, field), row in rows.items() if field == name)
        for bit, words in table.items():
            assert f"{bit} {words}" in value
    intercepts = rows["0x000", "intercepts"][3]
    assert "114 CPUID set" in re.sub(r"\s+", " ", intercepts)
    assert "97 NMI" in intercepts


def test_it_says_what_the_other_verbs_say(full: Page) -> None:
    text = re.sub(r"\s+", " ", full.text)
    with svm.open(CAPTURE) as dump:
        report = dump.check()
        assert {one.rule for one in report.findings} <= set(re.findall(r"[A-Z]+-\d+", text))
        for one in report.findings:
            assert re.sub(r"\s+", " ", one.message) in text
        pages = dump.pages()
        for number, block in enumerate(pages.coverage):
            name = pages.ram.blocks[number].name
            (row,) = (row for row in full.rows if row[0] == name)
            assert row[2:6] == [str(n) for n in (block.data, block.zero, block.never, block.again)]
        assert sum(
            row[2] in ("full", "part", "start", "end") for row in full.rows if len(row) == 6
        ) >= (len(list(dump.machine.stream.sections())))
    for difference in svm.diff(CAPTURE, AGAIN).differences:
        assert any(row[0] == difference.path for row in full.rows)
    trace = svm.judge_trace(LOG)
    for vcpu in trace.vcpus:
        for put in vcpu.puts:
            assert f"line {put.line}," in text


def test_what_is_wrong_is_marked(tmp_path: Path) -> None:
    """A stream whose L2 has long mode without PAE: refused, or wrong, by the kernel."""
    with svm.open(CAPTURE) as dump:
        data = bytearray(dump.machine.stream.source.read_at(0, dump.machine.stream.source.size()))
        place = dump["vcpu0.nested.l1_save.cr4"]
    data[place.offset] &= ~0x20
    path = tmp_path / "no-pae.bin"
    path.write_bytes(data)
    with svm.open(path) as dump:
        made = dump.overview()
        found = Page(made.to_html())
    verdicts = {one.verdict.value for one in made.check.verdicts[0].values()}
    assert verdicts - {"right"}
    (row,) = (row for row in found.rows if row[0] == "cr4" and len(row) == 3 and "✗" in row[2])
    assert "✗" not in row[1]
    for verdict in verdicts:
        assert any(row[2] == verdict for row in found.rows if len(row) == 4)


HOSTILE = '<b onload="x">&\'"\u202e\x1b[31m</b>'


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    device = Section("</td><script>alert(1)</script>", b"\0" * 4,
                     [{"name": "<img src=x>", "type": "uint32", "size": 4}])  # fmt: skip
    data = stream(
        [device],
        [page(0, b"x", HOSTILE) + zero(4096)],
        {HOSTILE: 2 * 4096, "pc.ram": 4096},
        config=configuration("</title><svg onload=alert(1)>"),
    )
    path = tmp_path / "\"><img src=x onerror=alert(1)>'.bin"
    path.write_bytes(data)
    for redact in ((), ("names",)):
        with svm.open(path) as dump:
            text = dump.overview(kernel="6.1", other=dump).to_html(redact)
        found = Page(text)
        assert not {"script", "img", "b"} & {tag for tag, _ in found.elements}
        assert not [name for _, one in found.elements for name in one if name.startswith("on")]
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert ("<img src=x onerror=alert(1)>" in found.text) is not bool(redact)


def test_every_kind_of_input_has_a_page(tmp_path: Path) -> None:
    for path in (
        STREAMS / "guests" / "qemu10.0-linux6.12-smm.mig.zst",
        STREAMS / "kinds" / "qemu10.0-mapped-ram.mig.zst",
        STREAMS / "kinds" / "qemu7.2-s390x.mig.zst",
        STREAMS / "kinds" / "qemu10.0-resent.mig.zst",
    ):
        the_page(path, kernel="6.1")


def test_a_guest_of_64_gib_has_a_small_page(tmp_path: Path) -> None:
    """As many cells as a map has, each unlike the one before, and as many rounds as are shown."""
    cell = (64 << 30) // 2048
    pages = b"".join(page(at * cell, b"x") for at in range(1, 2048, 2))
    again = [page(cell, b"y", "pc.ram") for _ in range(100)]
    path = tmp_path / "large.bin"
    path.write_bytes(
        stream((), [zero(0, "pc.ram") + pages, *again], {"pc.ram": 64 << 30, "vga.vram": 16 << 20})
    )
    with svm.open(path) as dump:
        text = dump.overview().to_html()
    assert len(text) < 1 << 20
    found = Page(text)
    assert sum("s-" in (one.get("class") or "") for one in found.all("rect")) > 1000
    assert any(row[0] == "13-89" for row in found.rows)


def test_the_file_and_what_is_printed(command: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = command(
        "report", CAPTURE, "-o", out, "--to", "6.1", "--json", "--redact", "--keep", "msrs"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["size"] == out.stat().st_size < 1 << 20
    assert document["redacted"] == ["addresses", "uuids", "names"]
    assert (document["verdict"], document["memory_bytes"]) == ("right", 0)
    assert out.stat().st_mode & 0o777 == 0o600
    before = out.read_bytes()
    again = command("report", CAPTURE, "-o", out)
    assert again.returncode == 2
    assert b"-f replaces it" in again.stderr
    assert out.read_bytes() == before
    assert (
        command("report", CAPTURE, "-o", out, "-f", "--with-memory", "--to", "6.1").returncode == 0
    )
    assert "This page contains guest memory" in out.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
