"""The report of ``lab list``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.text import Text

from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, columns, size_words


def listing(document: dict[str, Any]) -> Iterable[Text]:
    """Lines for the document that ``--json`` prints."""
    yield Text(f"Suites in {printable(document['cache'])}", HEADING)
    rows: list[list[str | Text]] = []
    for entry in document["suites"]:
        built = entry["built"]
        if built is None:
            words: tuple[str | Text, ...] = (
                "-",
                Text(f"not built: Linux {entry['kernel']}, QEMU {entry['qemu']}", FAINT),
            )
            rows.append([entry["suite"], *words])
            continue
        packages = built["packages"]
        kernel = packages[f"linux-image-{built['release']}"]
        rows.append(
            [entry["suite"], size_words(built["size"]), f"Linux {kernel}",
             f"QEMU {packages['qemu-system-x86']}"]
        )  # fmt: skip
    yield from columns(rows)
    for entry in document["suites"]:
        for remark in (entry["built"] or {}).get("remarks", ()):
            yield Text(f"  {printable(remark)}", FAINT)
    yield Text()
    boxes = document["boxes"]
    yield Text("Boxes that are up" if boxes else "No box is up", HEADING)
    yield from columns(
        [
            [box["name"], f"Linux {box['versions']['kernel']}", f"QEMU {box['versions']['qemu']}",
             f"share {box['share']}"]
            for box in boxes
        ]
    )  # fmt: skip
