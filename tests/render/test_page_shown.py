"""The page of ``report`` in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

import qemu_svm as svm
from tests.conftest import STREAMS
from tests.support.browser import CONTRAST, WIDER, browser

NAME = "qemu10.0-linux6.12-nested-npt"


@pytest.mark.qemu
def test_it_is_shown_without_a_fault(tmp_path: Path) -> None:
    """Wide and narrow, light and dark, printed; a right restore and a wrong one."""
    right, wrong = tmp_path / "right.html", tmp_path / "wrong.html"
    with (
        svm.open(STREAMS / f"{NAME}.mig.zst") as dump,
        svm.open(STREAMS / f"{NAME}.resaved.mig.zst") as other,
    ):
        log = STREAMS / f"{NAME}.restore-ioctls.log.zst"
        found = dump.overview(kernel="6.1", other=other, log=log, memory=True)
        right.write_text(found.to_html())
        source = dump.machine.stream.source
        data = bytearray(source.read_at(0, source.size()))
        data[dump["vcpu0.nested.control.asid"].offset] = 0
        data[dump["vcpu0.nested.l1_save.cr4"].offset] = 0
    bad = tmp_path / "bad.bin"
    bad.write_bytes(data)
    with svm.open(bad) as dump:
        wrong.write_text(dump.overview(kernel="6.1").to_html(("addresses", "names")))
    with browser() as shown:
        for path, width, dark in (
            (right, 1280, False),
            (right, 400, True),
            (wrong, 400, False),
            (wrong, 1280, True),
        ):
            shown.show(path, width, dark=dark)
            assert shown.seen.requests == []
            assert shown.seen.messages == []
            assert shown.value("document.documentElement.scrollWidth") == width
            assert shown.value(WIDER) == []
            assert shown.value(CONTRAST) == []
            picture = tmp_path / f"{path.stem}-{width}.png"
            shown.picture(picture)
            assert picture.stat().st_size > 50_000
            top = "document.querySelector('.verdict').getBoundingClientRect().bottom"
            assert shown.value(top) < 300
        assert shown.value("document.querySelectorAll('td.bad').length") >= 2
        assert shown.pdf().startswith(b"%PDF")
