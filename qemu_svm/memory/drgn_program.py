"""drgn on a stream: no core is written, pages are read when drgn asks for them.

Import it by name only: drgn is an optional package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qemu_svm.errors import AddressError, PathError, StreamError
from qemu_svm.memory.core import level_spaces
from qemu_svm.memory.vmcoreinfo import VmCoreInfo, find
from qemu_svm.optional import optional

if TYPE_CHECKING:
    from qemu_svm.memory.memory import GuestMemory

_ALL = (1 << 64) - 1


def program(memory: GuestMemory, of: str = "l1", vmcoreinfo: VmCoreInfo | None = None) -> Any:
    """A ``drgn.Program`` of L1 or of L2, both Linux; load the symbols with its own methods.

    The stream must stay open as long as the program is used.

    :param of: ``l1``, ``l2`` or ``l2@ROOT``.
    :param vmcoreinfo: the kernel's note; without one it is searched for and proved.
    :raises PathError: no vCPU runs such a level, or no VMCOREINFO is found for it.
    :raises EnvironmentFault: drgn is not installed.
    """
    drgn: Any = optional("drgn", "debugging with drgn")
    space, virtual, _ = level_spaces(memory, of)
    note = vmcoreinfo or (find(space, virtual) if virtual is not None else None)
    if note is None:
        raise PathError(f"no VMCOREINFO of {of}: drgn needs the note of a Linux kernel")
    found = drgn.Program(
        drgn.Platform(drgn.Architecture.X86_64, drgn.PlatformFlags.IS_64_BIT
                      | drgn.PlatformFlags.IS_LITTLE_ENDIAN)
    )  # fmt: skip

    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:  # noqa: FBT001
        try:
            return space.read(address, count)
        except (AddressError, StreamError) as error:
            raise drgn.FaultError(str(error), address) from error

    found.add_memory_segment(0, _ALL, read, physical=True)
    found.set_linux_kernel_custom(note.text, is_live=False)
    return found
