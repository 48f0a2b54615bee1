"""The JSON document of ``lab list --available``, version 1 (``docs/lab.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.lab.inventory import Offer
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: Offer) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "mirror": result.mirror,
        "available": [
            {
                "kernel": one.name_for_option,
                "version": one.version,
                "release": one.release,
                "suite": one.suite,
                "mirror": one.mirror,
                "packages": list(one.packages),
                "missing": list(one.missing),
                "download": one.size,
                "cached": one.version in result.cached,
            }
            for one in result.kernels
        ],
    }
