"""The report of ``vmruns --show``."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from qemu_svm.machine.paths import Node
from qemu_svm.nested import layout
from qemu_svm.nested.state import image_tree
from qemu_svm.render.text.base import HEADING, entry
from qemu_svm.render.text.values import fields
from qemu_svm.stream import Value
from qemu_svm.vmruns.results import VmcbPage
from qemu_svm.vmruns.structs import kind_name


def render(result: VmcbPage, *, verbose: bool) -> Iterator[Text]:
    """Return one VMCB with all its fields and bits.

    :param verbose: also fields that are reserved and zero.
    """
    event = result.event
    page = event.page
    assert page is not None
    yield Text(
        f"record {event.number}: {kind_name(event.kind)} on CPU {event.vcpu}, "
        f"VMCB at {event.address:#x}",
        HEADING,
    )
    yield entry("instruction", f"RIP {event.rip:#x}, RAX {event.rax:#x}")
    yield entry("time", f"{event.time / 1e9:.6f} s")
    yield Text()
    yield from fields(Node("vmcb", _tree(page)), verbose=verbose)


def _tree(page: bytes) -> Value:
    areas = (
        image_tree(layout.CONTROL, "control", page, layout.CONTROL_OFFSET),
        image_tree(layout.SAVE, "save", page[layout.SAVE_OFFSET :], layout.SAVE_OFFSET),
    )
    return Value("vmcb", "struct", 0, layout.VMCB_SIZE, None, areas)
