"""The verdict of the witness in words: for ``lab witness`` and tools."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.text import Text

from qemu_svm.findings.witness import FieldComparison, FieldVerdict, VmcbComparison, Witness
from qemu_svm.render.text.base import HEADING, register

_WIDTH = 80


def verdict(found: Witness) -> Iterator[Text]:
    """Return the verdict and its reasons, one on a line."""
    line = Text("witness: ", HEADING)
    if found.clean:
        yield line.append("each level was given its own registers, as the model predicted", "green")
        return
    if found.wrong:
        word = "WRONG" if found.refuted else "WRONG, as the model predicted"
    else:
        word = "not what the model predicted" if found.refuted else "not seen"
    yield line.append(word, "bold red")
    for part in found.parts:
        for field in part.fields:
            if field.verdict is FieldVerdict.WRONG:
                yield from wrapped(_wrong(part, field))
            elif field.predicted is False:
                assert field.model is not None
                predicted = register(field.model, field.name)
                yield from wrapped(f"{field.name} is right, but the model predicted {predicted}")
    for missing in found.missing:
        yield from wrapped(missing)


def _wrong(part: VmcbComparison, field: FieldComparison) -> str:
    whose = field.why if part.name != "control" and field.why else "a wrong value"
    wanted = field.stream if field.stream is not None else field.model
    if part.name == "control":
        wanted = field.model
    name = field.name
    text = f"{part.level} runs with {whose} of {name.upper()}: {register(field.given, name)}"
    if wanted is not None:
        text += f" instead of {register(wanted, name)}"
    return text


def wrapped(text: str) -> list[Text]:
    """Return an indented paragraph."""
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False
    )
    return [Text(line) for line in lines]
