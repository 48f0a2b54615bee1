"""Printing: results as text or JSON, by the renderers of their verb."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from qemu_svm.results import Result


def show(result: Result, *, as_json: bool, indent: int | None = 1, **options: Any) -> None:
    """Print a result.

    :param as_json: as one JSON document, else as text.
    :param indent: of JSON; None for a document on one line.
    :param options: of the text; see ``render`` in ``render/text/VERB``.
    """
    if as_json:
        print_json(result.to_json(), indent)
    else:
        renderer = import_module(f"qemu_svm.render.text.{result.verb}")
        print_lines(renderer.render(result, **options))


def print_json(document: dict[str, Any], indent: int | None = 1) -> None:
    """Print a document; ASCII only, so nothing in it can reach a terminal raw."""
    click.echo(json.dumps(document, indent=indent))


def print_lines(lines: Iterable[Text | str]) -> None:
    """Print a report; text is wrapped to a terminal's width, but never in a pipe.

    :param lines: plain strings are never wrapped, and have nothing to escape.
    """
    out: Console | None = None
    for line in lines:
        if isinstance(line, str):
            click.echo(line)
            continue
        if out is None:
            from qemu_svm.render.text.base import console

            out = console()
        out.print(line, soft_wrap=not out.is_terminal)
