"""Sizes and ranges on the command line, and limits that are written the same way."""

from __future__ import annotations

from typing import Any

import click
import pytest

from qemu_svm.cli import sizes
from qemu_svm.limits import DEFAULT, changed, parse_size

NONE: Any = None  # context and parameter, which the callbacks do not use


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        *(
            ("4096", 4096),
            ("0x1b", 27),
            ("0x10K", 16 << 10),
            ("64M", 64 << 20),
            ("200m", 200 << 20),
        ),
        *(("1.5GiB", 3 << 29), ("2GB", 2 << 30), ("1T", 1 << 40), ("12b", 12)),
    ],
)
def test_sizes(text: str, bytes_: int) -> None:
    assert parse_size(text) == sizes.size(NONE, NONE, text) == bytes_
    assert changed(DEFAULT, [f"spool_bytes={text}"]).spool_bytes == bytes_


@pytest.mark.parametrize("text", ["", "x", "64X", "M", "1e999", "nan", "1 2"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        parse_size(text)
    with pytest.raises(click.BadParameter):
        sizes.size(NONE, NONE, text)


@pytest.mark.parametrize("text", ["0", "-5", "1000000000T"])
def test_sizes_out_of_range(text: str) -> None:
    with pytest.raises(click.BadParameter):
        sizes.size(NONE, NONE, text)


def test_ranges() -> None:
    assert sizes.span(NONE, NONE, "0x1000:0x3000") == (0x1000, 0x3000)
    assert sizes.span(NONE, NONE, ":8192") == (0, 8192)
    assert sizes.span(NONE, NONE, "4096:") == (4096, 1 << 63)
    for text in ("1", "5:3", "x:y", "-1:4"):
        with pytest.raises(click.BadParameter):
            sizes.span(NONE, NONE, text)
