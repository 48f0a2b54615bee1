"""The maps of ``ram`` as a picture of its own: SVG, or PNG with pillow."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from os.path import basename
from typing import Any

from qemu_svm.findings.results import RamReport
from qemu_svm.optional import optional
from qemu_svm.render.escape import printable
from qemu_svm.render.html.ram_map import CELL, STATES, Map, maps
from qemu_svm.render.html.values import Name, Redaction

FORMATS = ("png", "svg")

_COLOURS = {
    "never": "#ffffff",
    "zero": "#dfe4ea",
    "some": "#9cc3ea",
    "most": "#2f6fb5",
    "again": "#c2410c",
}
_EDGE, _LINE, _TITLE, _WIDTH = 12, 18, 30, 792
_TEXT, _FRAME, _BACK = "#1b1f24", "#8a929c", "#ffffff"
_LONGEST = 80


@dataclass(frozen=True, slots=True)
class Placed:
    """A map with its place.

    :param top: of the map; its title is above.
    """

    map: Map
    title: str
    top: int
    width: int
    height: int


def svg(report: RamReport) -> bytes:
    """Return the picture as SVG, which loads nothing and has no script.

    :raises EnvironmentFault: jinja2 is not installed.
    """
    optional("jinja2", "a picture in SVG")
    from qemu_svm.render.html.engine import filled

    placed, height = _placed(report)
    values: dict[str, Any] = {
        "path": Name(basename(report.stream.source.path), "stream"),
        "placed": placed,
        "width": _WIDTH,
        "height": height,
        "edge": _EDGE,
        "cell": CELL,
        "colours": _COLOURS,
        "states": list(STATES.items()),
    }
    return filled("map.svg", Redaction(frozenset()), values).encode()


def png(report: RamReport) -> bytes:
    """Return the picture as PNG.

    :raises EnvironmentFault: pillow is not installed.
    """
    optional("PIL", "a picture in PNG", "pillow")
    from PIL import Image, ImageDraw

    placed, height = _placed(report)
    image = Image.new("RGB", (_WIDTH, height), _BACK)
    draw = ImageDraw.Draw(image)

    def text(x: int, y: int, words: str) -> None:
        # The font that pillow has itself may be of Latin 1 only.
        draw.text((x, y), words.encode("latin-1", "replace").decode("latin-1"), fill=_TEXT)

    for at, (state, words) in enumerate(STATES.items()):
        y = _EDGE + at * _LINE
        draw.rectangle((_EDGE, y, _EDGE + 11, y + 11), _COLOURS[state], _FRAME)
        text(_EDGE + 20, y, words)
    for one in placed:
        text(_EDGE, one.top - _LINE, one.title)
        box = (_EDGE - 1, one.top - 1, _EDGE + one.width, one.top + one.height)
        draw.rectangle(box, _COLOURS["never"], _FRAME)
        for rect in one.map.rects:
            x, y = _EDGE + rect.x, one.top + rect.y
            box = (x, y, x + rect.width - 1, y + CELL - 1)
            draw.rectangle(box, _COLOURS[rect.state])
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _placed(report: RamReport) -> tuple[list[Placed], int]:
    y = _EDGE + len(STATES) * _LINE
    placed = []
    for one in maps(report):
        name = one.name.value if isinstance(one.name, Name) else str(one.name)
        title = f"{printable(name)[:_LONGEST]}: a cell is {one.cell}"
        width, height = one.columns * CELL, one.rows * CELL
        placed.append(Placed(one, title, y + _TITLE, width, height))
        y += _TITLE + height
    return placed, y + _EDGE
