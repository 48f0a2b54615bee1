"""Rows of a document: ``--jsonl``, ``--fields`` and ``--rows``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from qemu_svm.cli import options
from qemu_svm.cli.verbs import suggestion
from qemu_svm.render import documents
from qemu_svm.render.escape import printable
from qemu_svm.render.json.base import SCHEMA_VERSION


def check(verb: str, form: options.Form) -> None:
    """Check what was asked for before any work is done.

    :raises click.UsageError: no document of the verb has such rows or fields.
    """
    names = documents.DOCUMENTS[verb]
    for name in names:
        try:
            _chosen(name, form)
        except click.UsageError:
            if name == names[-1]:
                raise
        else:
            return


def print_rows(document: Mapping[str, Any], name: str, form: options.Form) -> None:
    """Print the rows of a document.

    :param document: its list may be an iterator.
    :param name: of the document.
    :raises click.UsageError: it has no such rows or fields.
    """
    found, paths = _chosen(name, form)
    if options.quiet():
        return
    options.note_output()
    for row in documents.rows(document, found):
        if not paths:
            click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **row}))
            continue
        values = {field: documents.value(row, path) for field, path in paths}
        if form.jsonl:
            click.echo(json.dumps(values))
        else:
            click.echo("\t".join(map(_text, values.values())))


def _chosen(name: str, form: options.Form) -> tuple[documents.Rows, list[tuple[str, list[str]]]]:
    # Which rows, and the paths of their fields.
    usual = documents.ROWS.get(name, documents.Rows(""))
    found = documents.Rows(form.rows, usual.labels) if form.rows else usual
    shape = documents.document_shape(name)
    place: documents.Shape | None = shape
    for part in filter(None, found.path.split(".")):
        inner = place.inside(part) if place is not None else None
        place = None if inner is None else inner.items() or inner
    if place is None or (form.rows and form.rows not in documents.lists(shape)):
        known = ", ".join(documents.lists(shape)) or "none"
        raise click.UsageError(f"--rows: no list '{form.rows}' in this document; it has {known}")
    paths = [(field, field.split(".")) for field in form.fields]
    for field, path in paths:
        _known(place, shape, field, path, found)
    return found, paths


def _known(
    place: documents.Shape,
    shape: documents.Shape,
    field: str,
    path: list[str],
    found: documents.Rows,
) -> None:
    # A document without its list is its own row.
    if path[0] in (*found.labels, "error"):
        return
    for start in (place, shape):
        at: documents.Shape | None = start
        for part in path:
            at = at.inside(part) if at is not None else None
        if at is not None:
            return
    names = [*found.labels, *place.names()]
    raise click.UsageError(
        f"--fields: no field '{field}'.{suggestion(field, names)} There are {', '.join(names)}."
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list) and not any(isinstance(one, (dict, list)) for one in value):
        return ",".join(map(_text, value))
    return json.dumps(value)
