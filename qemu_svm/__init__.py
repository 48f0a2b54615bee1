"""svmstream: QEMU migration streams of nested SVM guests, decoded and judged.

::

    import qemu_svm as svm

    with svm.open("dump.bin.zst") as dump:
        print(hex(dump.vcpus[0].nested.l1_save.rip))
        print(dump.simulate("qemu", kernel="6.1").verdict)

``docs/api.md`` describes the names in ``__all__``; they are stable, and all other
modules are private.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemu_svm.api import Dump as Dump
    from qemu_svm.api import capture_stream as capture_stream
    from qemu_svm.api import connect as connect
    from qemu_svm.api import convert_recording as convert_recording
    from qemu_svm.api import diff as diff
    from qemu_svm.api import diff_inside as diff_inside
    from qemu_svm.api import judge_trace as judge_trace
    from qemu_svm.api import look_inside as look_inside
    from qemu_svm.api import open as open  # noqa: A004 - as svm.open
    from qemu_svm.api import record_command as record_command
    from qemu_svm.api import record_process as record_process
    from qemu_svm.api import replay_plan as replay_plan
    from qemu_svm.api import why as why
    from qemu_svm.errors import AddressError as AddressError
    from qemu_svm.errors import BuildError as BuildError
    from qemu_svm.errors import CommandRefused as CommandRefused
    from qemu_svm.errors import EnvironmentFault as EnvironmentFault
    from qemu_svm.errors import LabError as LabError
    from qemu_svm.errors import LimitExceeded as LimitExceeded
    from qemu_svm.errors import Malformed as Malformed
    from qemu_svm.errors import OutputClosed as OutputClosed
    from qemu_svm.errors import OutputExists as OutputExists
    from qemu_svm.errors import PathError as PathError
    from qemu_svm.errors import PlanError as PlanError
    from qemu_svm.errors import QmpError as QmpError
    from qemu_svm.errors import Refused as Refused
    from qemu_svm.errors import SourceError as SourceError
    from qemu_svm.errors import StreamError as StreamError
    from qemu_svm.errors import StreamRefused as StreamRefused
    from qemu_svm.errors import SvmStreamError as SvmStreamError
    from qemu_svm.errors import Truncated as Truncated
    from qemu_svm.errors import Unsupported as Unsupported
    from qemu_svm.limits import Limits as Limits
    from qemu_svm.qmp.features import CaptureOptions as CaptureOptions
    from qemu_svm.render.documents import schema as schema
    from qemu_svm.render.documents import schema_verbs as schema_verbs

__version__ = "0.2.0.dev0"

__all__ = [  # noqa: RUF022 - the most important first
    "open",
    "Dump",
    "diff",
    "judge_trace",
    "why",
    "capture_stream",
    "CaptureOptions",
    "connect",
    "record_process",
    "record_command",
    "convert_recording",
    "replay_plan",
    "look_inside",
    "diff_inside",
    "schema",
    "schema_verbs",
    "Limits",
    "SvmStreamError",
    "SourceError",
    "StreamError",
    "Truncated",
    "Malformed",
    "Unsupported",
    "LimitExceeded",
    "PathError",
    "PlanError",
    "AddressError",
    "BuildError",
    "EnvironmentFault",
    "OutputExists",
    "OutputClosed",
    "QmpError",
    "LabError",
    "Refused",
    "CommandRefused",
    "StreamRefused",
]

# The cheapest first.
_MODULES = (
    *("qemu_svm.errors", "qemu_svm.limits", "qemu_svm.render.documents", "qemu_svm.api"),
    "qemu_svm.qmp.features",
)


def __getattr__(name: str) -> Any:
    # PEP 562: nothing is imported before it is used.
    if name in __all__:
        for module in map(import_module, _MODULES):
            if name in vars(module):
                globals()[name] = found = vars(module)[name]
                return found
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
