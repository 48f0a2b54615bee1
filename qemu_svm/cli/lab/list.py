"""``svmstream lab list``."""

from __future__ import annotations

from typing import Any

import click

from qemu_svm.cli.common import json_option, print_json, print_lines


@click.command("list")
@json_option
def command(as_json: bool) -> None:  # noqa: FBT001
    """What is in the cache, with exact versions, and which boxes are up."""
    from qemu_svm.lab.box.named import running
    from qemu_svm.lab.suites import cache
    from qemu_svm.lab.suites.catalogue import SUITES
    from qemu_svm.render.text.lab import listing

    suites: list[dict[str, Any]] = []
    for suite in SUITES:
        built = cache.find(suite)
        entry: dict[str, Any] = {
            "suite": suite.name, "kernel": suite.kernel, "qemu": suite.qemu, "built": None,
        }  # fmt: skip
        if built is not None:
            manifest = built.manifest
            entry["built"] = {
                "date": manifest.built,
                "size": built.size(),
                "mirror": manifest.mirror,
                "release": manifest.release,
                "packages": manifest.packages,
                "remarks": list(manifest.remarks),
            }
        suites.append(entry)
    document = {
        "schema_version": 1,
        "cache": str(cache.folder()),
        "suites": suites,
        "boxes": [state.document() for state in running()],
    }
    if as_json:
        print_json(document)
    else:
        print_lines(listing(document))
