"""The real logs of ``streams/vmruns.json``."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import STREAMS

LOGS: list[dict[str, Any]] = json.loads((STREAMS / "vmruns.json").read_text())["logs"]
NAMES = [entry["file"].partition(".restore")[0] for entry in LOGS]
