"""The JSON document of ``lab list``, version 1 (``docs/lab.md``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemu_svm.lab.inventory import Inventory
from qemu_svm.lab.suites.cache import Built
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: Inventory) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "cache": str(result.folder),
        "suites": [
            {
                "suite": suite.name,
                "kernel": suite.kernel,
                "qemu": suite.qemu,
                "built": None if built is None else _built(built),
            }
            for suite, built in result.suites
        ],
        "kernels": [{"name": built.name, **_built(built)} for built in result.kernels],
        "boxes": [asdict(box) for box in result.boxes],
    }


def _built(built: Built) -> dict[str, Any]:
    manifest = built.manifest
    return {
        "date": manifest.built,
        "size": built.size(),
        "mirror": manifest.mirror,
        "release": manifest.release,
        "packages": manifest.packages,
        "remarks": list(manifest.remarks),
    }
