"""Rows of a survey as files: CSV, SQLite, Parquet, HTML.

Every writer takes rows one after the other, so that their number takes no memory.
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any

from qemu_svm.optional import optional
from qemu_svm.render.escape import printable
from qemu_svm.survey.row import Survey
from qemu_svm.work.cluster import INSTALL

COLUMNS = (
    "path", "state", "machine", "qemu", "domain", "container", "size", "vcpus", "l2", "complete",
    "verdicts", "refused_by", "advisories", "error",
)  # fmt: skip
"""Of every table, in this order; lists and verdicts are JSON in one cell."""

_NUMBERS = ("size", "vcpus")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_BATCH = 1000

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Survey of {{ summary.streams }} streams</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; vertical-align: top;
  border-bottom: 1px solid #8884; }
td.path { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
</style></head><body><main>
<h1>Survey of {{ summary.streams }} streams</h1>
<table><caption>Streams by state</caption><thead><tr><th scope="col">state</th>
<th scope="col">streams</th></tr></thead><tbody>
{% for state, count in summary.states.items() %}<tr><th scope="row">{{ state }}</th>
<td>{{ count }}</td></tr>{% endfor %}
</tbody></table>
{% if summary.refused_by %}<table><caption>Stopped by</caption><thead><tr>
<th scope="col">rule</th><th scope="col">streams</th></tr></thead><tbody>
{% for rule, count in summary.refused_by.items() %}<tr><th scope="row">{{ rule }}</th>
<td>{{ count }}</td></tr>{% endfor %}</tbody></table>{% endif %}
<h2>Streams, the worst first</h2>
<div class="table" role="region" aria-label="Streams" tabindex="0"><table><thead><tr>
{% for name in columns %}<th scope="col">{{ name }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in rows %}<tr>{% for name in columns %}
<td{% if name == "path" %} class="path"{% endif %}>{{ row[name] }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
</main></body></html>
"""


def write(result: Survey, kind: str, path: str) -> None:
    """Write all rows into a new file.

    :param kind: of :data:`KINDS`.
    :raises EnvironmentFault: a package that this kind needs is missing.
    :raises OSError: it cannot be written.
    """
    KINDS[kind](result, path)


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in COLUMNS:
        value = row[name]
        if isinstance(value, (list, dict)):
            value = json.dumps(value) if value else ""
        elif isinstance(value, str):
            value = printable(value)
        found[name] = value
    return found


def _csv(result: Survey, path: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in result.rows():
            table.writerow([_harmless(value) for value in _cells(row).values()])


def _harmless(value: object) -> object:
    # A spreadsheet takes a text that begins so for a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _sqlite(result: Survey, path: str) -> None:
    columns = ", ".join(f"{name}{' INTEGER' if name in _NUMBERS else ''}" for name in COLUMNS)
    marks = ", ".join("?" * len(COLUMNS))
    try:
        with closing(sqlite3.connect(path)) as base, base:
            base.execute(f"CREATE TABLE streams ({columns})")
            base.executemany(
                f"INSERT INTO streams VALUES ({marks})",
                (tuple(_cells(row).values()) for row in result.rows()),
            )
    except sqlite3.Error as error:
        raise OSError(0, str(error)) from error


def _parquet(result: Survey, path: str) -> None:
    arrow: Any = optional("pyarrow", "Parquet", install=INSTALL)
    parquet: Any = optional("pyarrow.parquet", "Parquet", install=INSTALL)
    kinds = {"size": arrow.int64(), "vcpus": arrow.int64(), "complete": arrow.bool_()}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in COLUMNS])
    rows = map(_cells, result.rows())
    with parquet.ParquetWriter(path, schema) as file:
        while batch := list(islice(rows, _BATCH)):
            file.write_table(arrow.Table.from_pylist(batch, schema=schema))


def _html(result: Survey, path: str) -> None:
    jinja: Any = optional("jinja2", "a page", install=INSTALL)
    page = jinja.Environment(autoescape=True).from_string(_PAGE)
    rows: Iterator[dict[str, Any]] = map(_cells, result.rows())
    pieces = page.generate(summary=result.summary.to_json(), columns=COLUMNS, rows=rows)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(pieces)


KINDS: Mapping[str, Callable[[Survey, str], None]] = {
    "csv": _csv,
    "sqlite": _sqlite,
    "parquet": _parquet,
    "html": _html,
}
"""By the name's end."""
