"""The process that owns a named box: ``python -m qemu_svm.lab.box.keeper JSON``.

It prints one line of JSON, when the box is ready or cannot be started, then detaches
from its standard streams and keeps the box until SIGTERM or the box's own end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn, cast

from qemu_svm.errors import SvmStreamError
from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.named import BoxOptions, BoxRecord, taken
from qemu_svm.lab.host import host_faults


def main() -> None:
    """Keep one box."""
    signal.signal(signal.SIGTERM, _leave)
    request: dict[str, Any] = json.loads(sys.argv[1])
    try:
        _keep(request["name"], request["options"])
    except SvmStreamError as error:
        _report({"error": error.what, "hint": error.hint})


def _keep(name: str, options: dict[str, Any]) -> None:
    arguments = dict(options)
    if arguments.get("share"):
        arguments["share"] = Path(arguments["share"])
    if arguments.get("own"):
        image, modules = arguments["own"]
        arguments["own"] = (Path(image), Path(modules))
    with taken(name) as path, Box(**arguments) as box:
        record = BoxRecord(
            name=name, pid=os.getpid(), socket=str(box.serve()), share=str(box.share),
            console=str(box.console_file), versions=box.versions,
            options=cast("BoxOptions", options),
        )  # fmt: skip
        with host_faults(f"write {path}"):
            path.write_text(json.dumps(record.document()))
        _report({"ready": record.document()})
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        box.wait()


def _report(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201  to the process that started this one


def _leave(_number: int, _frame: object) -> NoReturn:
    raise SystemExit


if __name__ == "__main__":
    main()
