"""Random restore plans: order, repetition, omission, changes of single fields.

A sequence depends only on the seed and its number, so a run can be repeated in
part, and continued.  Most values are those that the checks are about (each bit of
EFER, CR0, CR4, addresses near the limits, all flags and sizes); a few are arbitrary.
The plan of a sequence is all that is needed to repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from qemu_svm.model.saved import Saved
from qemu_svm.nested import layout
from qemu_svm.x86.cpuid import FEATURES

_USUAL = ("regs", "msrs", "events", "debugregs")
_ANY = (*_USUAL, "cpuid", "sregs", "sregs2", "nested", "get", "mpstate", "run")
_BASES = (
    ("cpuid", "sregs", "nested", "regs", "msrs", "events", "debugregs", "run"),
    ("cpuid", "sregs", "msrs", "events", "debugregs", "regs", "nested", "run"),
    ("cpuid", "sregs", "nested", "regs", "run"),
    ("cpuid", "sregs", "nested", "regs"),
    ("cpuid", "msrs:efer=0x1500", "nested", "sregs", "regs", "run"),
    ("cpuid", "sregs", "nested", "nested", "regs", "run"),
    ("cpuid", "sregs", "nested", "regs", "run", "run"),
    ("cpuid", "sregs2", "nested", "regs", "run"),
    ("cpuid", "sregs:l1", "nested", "sregs", "regs", "run"),
    ("cpuid", "sregs", "regs", "nested:flags=0x100", "nested", "run"),
)
_EDGES = (0, 1, 0xFFF, 0x1000, 1 << 31, 1 << 32, 1 << 36, 1 << 39, (1 << 40) - 0x1000,
          1 << 40, 1 << 47, 1 << 51, 1 << 52, 1 << 63, (1 << 64) - 1)  # fmt: skip

Setting = Callable[[Random, Saved], str]


def sequence(seed: int, number: int, saved: Saved) -> str:
    """Return the plan of one sequence for a guest."""
    random = Random(f"{seed}:{number}")
    steps = _order(random)
    budget = random.choice((0, 1, 1, 1, 1, 2, 2, 3, 5))
    for _count in range(budget):
        place = random.randrange(len(steps))
        name = steps[place].partition(":")[0]
        settings = _SETTINGS.get(name)
        if settings is not None:
            steps[place] += ":" + random.choice(settings)(random, saved)
    return ",".join(steps)


def _order(random: Random) -> list[str]:
    steps = list(random.choice(_BASES))
    kind = random.random()
    if kind < 0.35:
        return steps
    for _change in range(random.choice((1, 1, 2, 3))):
        change = random.randrange(4)
        if change == 0 and len(steps) > 2:
            steps.pop(random.randrange(len(steps)))
        elif change == 1:
            steps.insert(random.randint(0, len(steps)), random.choice(_ANY))
        elif change == 2:
            steps.insert(random.randint(0, len(steps)), random.choice(steps))
        else:
            one, two = random.randrange(len(steps)), random.randrange(len(steps))
            steps[one], steps[two] = steps[two], steps[one]
    return steps


def _hex(value: int, size: int = 8) -> str:
    return f"{value & (1 << 8 * size) - 1:#x}"


def _near(random: Random, value: int, bits: Sequence[int]) -> int:
    # The value with one or two bits flipped, an edge value, or an arbitrary one.
    kind = random.random()
    if kind < 0.7:
        for _flip in range(random.choice((1, 1, 2))):
            value ^= 1 << random.choice(bits)
        return value
    return random.choice(_EDGES) if kind < 0.9 else random.getrandbits(64)


_ALL = range(64)
_EFER_BITS = (*range(16), 16, 17, 21, 63, 12, 12, 8, 10, 11)
_CR0_BITS = (0, 1, 2, 3, 4, 5, 6, 16, 18, 29, 30, 31, 32, 63, 0, 29, 30, 31)
_CR4_BITS = (*range(25), 31, 32, 63, 5, 5)
_BITS = {"efer": _EFER_BITS, "cr0": _CR0_BITS, "cr4": _CR4_BITS,
         "cr3": (0, 3, 12, 36, 39, 40, 41, 48, 51, 52, 61, 62, 63)}  # fmt: skip


def _control_register(random: Random, saved: Saved) -> str:
    name = random.choice(("cr0", "cr3", "cr4", "efer", "efer", "cr2", "cr8"))
    value = saved.sregs.get(name)
    bits = _BITS.get(name, (0, 1, 2, 3) if name == "cr8" else _ALL)
    if name == "cr8":
        return f"cr8={_hex(random.choice((*range(16), 16, 1 << 32)))}"
    return f"{name}={_hex(_near(random, value, bits))}"


_APIC = 0xFEE0_0900  # enabled, of the bootstrap processor


def _apic_base(random: Random, _saved: Saved) -> str:
    bits = (0, 8, 9, 10, 11, 12, 31, 32, 36, 39, 40, 52, 63)
    return f"apic_base={_hex(_near(random, _APIC, bits))}"


def _pdptrs(random: Random, _saved: Saved) -> str:
    values = (0, 1, 0x12001, 0x121E7, 1 << 52, (1 << 64) - 1)
    return ":".join(f"pdptr{number}={_hex(random.choice(values))}" for number in range(4))


def _segment(random: Random, _saved: Saved) -> str:
    name = random.choice(("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt", "gdt", "idt"))
    if name in ("gdt", "idt"):
        part = random.choice(("base", "limit"))
        return f"{name}.{part}={_hex(random.getrandbits(32 if part == 'base' else 16))}"
    part = random.choice(("selector", "base", "limit", "type", "s", "dpl", "present", "avl",
                          "l", "db", "g"))  # fmt: skip
    width = {"selector": 16, "base": 40, "limit": 32, "type": 4, "dpl": 2}.get(part, 1)
    return f"{name}.{part}={_hex(random.getrandbits(width))}"


def _l1(_random: Random, _saved: Saved) -> str:
    return "l1"


def _flags(random: Random, _saved: Saved) -> str:
    return "flags=" + _hex(random.choice(
        (0, 1, 2, 3, 0x100, 0x101, 0x102, 0x103, 0x100, 0x101, 1, 0x103, 4, 8, 0x10, 0x200,
         0x105, 0x109, 0x8101, random.getrandbits(16))
    ), 2)  # fmt: skip


def _header(random: Random, saved: Saved) -> str:
    name = random.choice(("format", "size", "vmcb_pa", "vmcb_pa", "gpat"))
    value = {
        "format": random.choice((0, 1, 2, 0xFFFF)),
        "size": random.choice((0, 64, 127, 128, 129, 2176, 4223, 4224, 4225, 1 << 20)),
        "vmcb_pa": random.choice((*_EDGES, saved.nested.vmcb_pa | 8, 0x200_0000, 0x7FF_F000)),
        "gpat": random.choice((0, 0x0007040600070406, 2, 1 << 63, random.getrandbits(64))),
    }[name]
    return f"{name}={_hex(value)}"


_CONTROL = {
    "asid": (0, 1, 2, 0xFFFF_FFFF),
    "tlb_ctl": tuple(range(8)),
    "int_ctl": tuple(1 << bit for bit in range(32)),
    "int_vector": (0, 0x30, 0xFF, 0x1FF, 0xFFFF_FFFF),
    "int_state": (0, 1, 2, 3),
    "nested_ctl": (0, 1, 2, 4, 8, 0x10, 0x7F, 0x80, 1 << 32),
    "event_inj": tuple(
        0x8000_0000 | kind << 8 | vector | error << 11
        for kind in range(8)
        for vector in (0, 1, 2, 3, 4, 6, 8, 13, 14, 15, 20, 21, 29, 30, 31, 32, 0x30)
        for error in (0, 1)
    ),
    "virt_ext": (0, 1, 2, 3),
    "clean": (0, 0xFFFF_FFFF),
}


def _control(random: Random, saved: Saved) -> str:
    if random.random() < 0.3:
        word = random.randrange(6)
        old = int.from_bytes(saved.nested.vmcb[4 * word : 4 * word + 4], "little")
        return f"@{4 * word:#x}/4={_hex(old ^ 1 << random.randrange(32), 4)}"
    name = random.choice((*_CONTROL, "iopm_base_pa", "msrpm_base_pa", "nested_cr3"))
    member = layout.CONTROL.member(name)
    offset, size = member.offset, member.size
    if name in _CONTROL:
        value = random.choice(_CONTROL[name])
        if name == "int_ctl" and random.random() < 0.3:
            value |= random.choice(_CONTROL[name])
    else:
        top = 1 << 40
        value = random.choice((*_EDGES, top - 0x2000, top - 0x3000, top - 0x1FFF, 0x101008))
    return f"@{offset:#x}/{size}={_hex(value, size)}"


def _save(random: Random, saved: Saved) -> str:
    name = random.choice(("efer", "efer", "cr0", "cr0", "cr3", "cr4", "cr4", "dr6", "dr7",
                          "rflags", "rip", "rsp", "rax", "cpl", "g_pat", "cr2"))  # fmt: skip
    member = layout.SAVE.member(name)
    place = layout.SAVE_OFFSET + member.offset
    old = int.from_bytes(saved.nested.vmcb[place : place + member.size], "little")
    bits = _BITS.get(name, (17, 1, 9, 21) if name == "rflags" else _ALL)
    bits = tuple(bit for bit in bits if bit < 8 * member.size)
    value = _near(random, old, bits)
    return f"@{place:#x}/{member.size}={_hex(value, member.size)}"


_LMA, _LME, _PAE, _L, _DB = 1 << 10, 1 << 8, 1 << 5, 1 << 9, 1 << 10


def _impossible(random: Random, saved: Saved) -> str:
    # L1's mode as no processor has it: long mode half on, without PAE, CS of two modes.
    l1 = saved.l1()
    efer = l1.get("efer") & ~(_LMA | _LME) | random.choice((_LMA, _LMA, _LME, 0, _LMA | _LME))
    cr4 = l1.get("cr4") & ~_PAE | random.choice((0, 0, _PAE))
    attrib = l1.segment("cs").attrib & ~(_L | _DB) | random.choice((_L, _L, 0, _DB, _L | _DB))
    values = {"efer": (efer, 8), "cr4": (cr4, 8)}
    settings = [(layout.SAVE.member(name).offset, *value) for name, value in values.items()]
    settings.append((layout.SAVE.member("cs").offset + 2, attrib, 2))
    return ":".join(
        f"@{layout.SAVE_OFFSET + offset:#x}/{size}={_hex(value, size)}"
        for offset, value, size in random.sample(settings, random.choice((2, 3)))
    )


def _save_segment(random: Random, saved: Saved) -> str:
    name = random.choice(("cs", "cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr", "gdtr", "idtr"))
    place = layout.SAVE_OFFSET + layout.SAVE.member(name).offset
    offset, size = random.choice(((0, 2), (2, 2), (2, 2), (4, 4), (8, 8)))
    at = place + offset
    old = int.from_bytes(saved.nested.vmcb[at : at + size], "little")
    return f"@{at:#x}/{size}={_hex(old ^ 1 << random.randrange(8 * size), size)}"


def _anywhere(random: Random, _saved: Saved) -> str:
    size = random.choice((1, 2, 4, 8))
    place = random.randrange(0, 0x700, size)
    return f"@{place:#x}/{size}={_hex(random.getrandbits(8 * size), size)}"


def _get(random: Random, _saved: Saved) -> str:
    return f"size={random.choice((0, 4, 64, 127, 128, 129, 2176, 4223, 4224, 8192))}"


def _regs(random: Random, saved: Saved) -> str:
    name = random.choice(tuple(saved.regs))
    if name == "rflags":
        bits = (0, 1, 2, 3, 5, 8, 9, 10, 14, 16, 17, 18, 21, 22, 63)
        return f"rflags={_hex(_near(random, saved.regs[name], bits))}"
    return f"{name}={_hex(random.choice((*_EDGES, random.getrandbits(64))))}"


_MSRS = (
    *("star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp"),
    *("sysenter_eip", "vm_hsave_pa", "fs_base", "gs_base", "tsc_aux"),
)
_MSR_VALUES = {
    "pat": (0x0007040600070406, 0, 2, 0x0606060606060606, 1 << 63),
    "vm_cr": (*range(0x21), 0x08, 0x10, 0x18, 1 << 32),
    "tsc_ratio": (0, 1 << 32, 2 << 32, 1, 0xFF << 32, 1 << 40),
    "debugctl": (0, 1, 2, 0x3F, 0x40, 1 << 32),
}


def _msr(random: Random, saved: Saved) -> str:
    name = random.choice(("efer", "efer", *_MSRS, *_MSR_VALUES))
    if name == "efer":
        return f"efer={_hex(_near(random, saved.sregs.get('efer'), _EFER_BITS))}"
    if name in _MSR_VALUES:
        return f"{name}={_hex(random.choice(_MSR_VALUES[name]))}"
    return (
        f"{name}={_hex(random.choice((*_EDGES, random.getrandbits(47), random.getrandbits(64))))}"
    )


_EVENTS = {
    "flags": (0, 1, 2, 4, 8, 9, 13, 15, 16, 0x1F, 0x20, 0x40, 0x2D),
    "smm": (0, 1, 1),
    "smm_pending": (0, 1),
    "shadow": (0, 1, 1, 2, 3),
    "nmi_pending": (0, 1),
    "nmi_injected": (0, 1),
    "nmi_masked": (0, 1),
    "exc_injected": (0, 1),
    "exc_nr": (0, 1, 2, 3, 6, 8, 13, 14, 31, 32, 255),
    "exc_pending": (0, 1),
    "exc_has_err": (0, 1),
    "exc_err": (0, 4, 0xFFFF),
    "int_injected": (0, 1),
    "int_nr": (0, 0x30, 0xFF),
    "int_soft": (0, 1),
    "sipi": (0, 1),
    "smm_inside_nmi": (0, 1),
    "latched_init": (0, 1),
    "triple_fault": (0, 1),
    "exc_has_payload": (0, 1),
    "exc_payload": (0, 1 << 40),
}


def _event(random: Random, _saved: Saved) -> str:
    names = random.choice(
        (("smm",), ("shadow",), ("flags",), ("flags", "smm"), ("flags", "shadow"),
         ("exc_injected", "exc_nr"), ("flags", "exc_pending", "exc_nr"),
         ("int_injected", "int_nr"), ("latched_init",), ("smm_pending",),
         tuple(random.sample(tuple(_EVENTS), 2)))
    )  # fmt: skip
    return ":".join(f"{name}={_hex(random.choice(_EVENTS[name]))}" for name in names)


def _debug(random: Random, saved: Saved) -> str:
    name = random.choice(("dr0", "dr1", "dr2", "dr3", "dr6", "dr6", "dr7", "dr7", "flags"))
    if name == "flags":
        return f"flags={random.choice((0, 1))}"
    return f"{name}={_hex(_near(random, saved.debugregs[name], _ALL))}"


def _state(random: Random, _saved: Saved) -> str:
    return str(random.choice((0, 1, 2, 3, 4, 5, 6, 9)))


def _cpuid(random: Random, _saved: Saved) -> str:
    kind = random.random()
    if kind < 0.2:
        return "nosvm"
    if kind < 0.5:
        return f"maxphyaddr={random.choice((32, 36, 39, 40, 41, 48, 52))}"
    way = "no" if kind < 0.8 else "with"
    return f"{way}={random.choice(sorted(FEATURES))}"


_SETTINGS: dict[str, tuple[Setting, ...]] = {
    "cpuid": (_cpuid,),
    "sregs": (_control_register, _control_register, _segment, _l1, _apic_base),
    "sregs2": (_control_register, _control_register, _segment, _l1, _apic_base, _pdptrs),
    "nested": (
        *(_flags, _header, _control, _control, _save, _save, _save_segment, _anywhere),
        _impossible,
    ),
    "get": (_get,),
    "regs": (_regs, _l1),
    "msrs": (_msr,),
    "events": (_event,),
    "debugregs": (_debug,),
    "mpstate": (_state,),
}
