"""Patches that are damaged."""

from __future__ import annotations

from hypothesis import strategies as st

from qemu_svm.errors import SvmStreamError
from qemu_svm.lab.trial.patches import read_patch
from tests.support.damage import damaged


def check_damaged_patch(data: st.DataObject, whole: bytes, most: int) -> None:
    """Read a patch that is damaged: it is refused, or changes KVM alone."""
    try:
        found = read_patch(damaged(data, whole, most), "p")
    except SvmStreamError:
        return
    assert all(path.startswith("arch/x86/") for path in found.files)
