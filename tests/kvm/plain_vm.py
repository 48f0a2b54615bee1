"""A VM that needs nothing but the package: run inside the box with its own Python."""

from __future__ import annotations

import mmap
import os

from qemu_svm.kvm.device import CAP_NESTED_STATE, KvmRefused, System, errno_name
from qemu_svm.kvm.run import run

CODE = b"\xb0\x2a\xe6\x80\xe6\xea\xf4"  # mov $42,%al; out $0x80; out $0xea; hlt


def main() -> None:
    before = len(os.listdir("/proc/self/fd"))
    memory = mmap.mmap(-1, 0x10000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[0x1000 : 0x1000 + len(CODE)] = CODE
    memory[0x2000:0x2002] = b"\xeb\xfe"  # jmp .
    with System() as kvm, kvm.create_vm() as vm:
        print(f"nested={kvm.check_extension(CAP_NESTED_STATE)}")
        vm.add_memory(0, 0, memory)
        vcpu = vm.create_vcpu()
        vcpu.set_cpuid(kvm.supported_cpuid())
        vcpu.set("SREGS", dict(vcpu.get("SREGS"), **{"cs.base": 0, "cs.selector": 0}))
        vcpu.set("REGS", {"rip": 0x1000, "rflags": 2})
        found = run(vcpu, 30, stop_port=0xEA)
        print(f"out={found.name}:{found.detail['port']:#x}:{vcpu.get('REGS')['rax'] & 0xFF}")
        print(f"halt={run(vcpu, 30).name}")
        vcpu.set("REGS", {"rip": 0x2000, "rflags": 2})
        print(f"spin={errno_name(run(vcpu, 0.2).errno)}")
        try:
            vcpu.set("DEBUGREGS", {"dr7": 1 << 32})
        except KvmRefused as refused:
            print(f"refused={errno_name(refused.errno)}")
    print(f"left={len(os.listdir('/proc/self/fd')) - before}")


main()
