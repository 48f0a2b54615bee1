"""Compare what two independent witnesses say of L2's memory: L1's KVM, and L1's nested tables.

Usage: l2_by_memslots.py FILE VMLINUX [KVM.KO ...]

L1 is debugged with drgn straight out of the stream.  Its ``vm_list`` has the virtual
machine, whose memslots say at which addresses of L1's QEMU process each page of L2 is; that
process' page tables say where in L1-physical memory.  The nested page tables must agree
wherever L1 has mapped a page.

Needs drgn, and the symbols of L1's kernel and of its kvm module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import qemu_svm as svm

PAGE = 4096


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    try:
        with svm.open(sys.argv[1]) as dump:
            l1 = dump.drgn("l1")
            l1.load_debug_info(sys.argv[2:])
            return compare(l1, dump.memory.world("l2p"))
    except svm.SvmStreamError as error:
        print(error, file=sys.stderr)
        return 1


def compare(l1: Any, nested: Any) -> int:
    from drgn import FaultError
    from drgn.helpers.linux.list import list_for_each_entry
    from drgn.helpers.linux.mm import follow_phys
    from drgn.helpers.linux.pid import for_each_task

    for task in for_each_task(l1):
        if task.mm:
            print(f"L1 task {task.pid.value_()} {task.comm.string_().decode()}")
    agree = differ = unmapped = 0
    for kvm in list_for_each_entry("struct kvm", l1["vm_list"].address_of_(), "vm_list"):
        for first, number, address in memslots(kvm):
            print(f"slot l2p:{first * PAGE:#x} {number} pages, in QEMU at {address:#x}")
            for page in range(number):
                try:
                    place = follow_phys(kvm.mm, address + page * PAGE).value_()
                except FaultError:
                    continue  # QEMU has not touched it
                walk = nested.walk((first + page) * PAGE)
                if walk.status != "mapped":
                    unmapped += 1
                elif walk.address == place:
                    agree += 1
                else:
                    differ += 1
    print(f"{agree} pages agree, {differ} differ, {unmapped} are not mapped for L2")
    return 1 if differ else 0


def memslots(kvm: Any) -> Iterator[tuple[int, int, int]]:
    """Each slot of a VM: first page of L2, number of pages, address in QEMU."""
    from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry

    slots = kvm.memslots[0]
    node = slots.node_idx.value_()
    for slot in rbtree_inorder_for_each_entry(
        "struct kvm_memory_slot", slots.gfn_tree.address_of_(), f"gfn_node[{node}]"
    ):
        yield slot.base_gfn.value_(), slot.npages.value_(), slot.userspace_addr.value_()


if __name__ == "__main__":
    sys.exit(main())
