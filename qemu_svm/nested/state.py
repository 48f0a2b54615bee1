"""The nested state of one vCPU: parsed from a stream, and built again.

On SVM the 4096 bytes are not one VMCB: the control area is vmcb12's (what L1
asked for L2), the save area is L1's own.  L2's registers are not in it.

Source: QEMU ``target/i386/machine.c`` (``vmstate_kvm_nested_state``,
``vmstate_svm_nested_state``), 5.1 to 11.1; Linux
``arch/x86/kvm/svm/nested.c`` (``svm_get_nested_state``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from construct import Container, ListContainer

from qemu_svm.errors import BuildError, Malformed, PathError
from qemu_svm.fields import Fields
from qemu_svm.nested import bits, layout
from qemu_svm.nested.image import Image, type_name
from qemu_svm.stream.vmstate.values import Leaf, Value

_SVM = "cpu/kvm_nested_state/svm"


@dataclass(frozen=True, slots=True)
class NestedState:
    """``struct kvm_nested_state`` as QEMU sends it.

    :param offset: of the header in the stream; -1 if it is not from one.
    :param size: the kernel's ``size``: bytes of header and data.
    :param vmcb: 4096 bytes, empty if there is none.
    :param vmcb_offset: of ``vmcb`` in the stream; -1 if it is not from one.
    :param gpat: ``hdr.svm.gpat`` of the ioctls since 7.2; no stream has it.
    :param vmcb_pa_offset: of ``vmcb_pa``; -1 for the place before ``vmcb``, as in a stream.
    """

    flags: int
    format: int
    size: int
    vmcb_pa: int = 0
    vmcb: bytes = field(default=b"", repr=False)
    offset: int = -1
    vmcb_offset: int = -1
    gpat: int = 0
    vmcb_pa_offset: int = -1

    @property
    def vmcb_pa_at(self) -> int:
        """Offset of ``vmcb_pa``."""
        return self.vmcb_pa_offset if self.vmcb_pa_offset >= 0 else max(self.vmcb_offset, 0) - 8

    @property
    def guest_mode(self) -> bool:
        """KVM_STATE_NESTED_GUEST_MODE."""
        return bool(self.flags & bits.GUEST_MODE)

    @property
    def is_svm(self) -> bool:
        """Whether the format is SVM's."""
        return self.format == layout.FORMAT_SVM

    @property
    def format_name(self) -> str:
        """``svm``, ``vmx`` or ``format N``."""
        return bits.FORMATS.get(self.format, f"format {self.format}")

    @property
    def control(self) -> Fields:
        """The control area by field name: what L1 asked for L2.

        :raises PathError: there is no VMCB.
        """
        return self._areas("control")[0]

    @property
    def l1_save(self) -> Fields:
        """The save area by field name: L1's own state.

        :raises PathError: there is no VMCB.
        """
        return self._areas("l1_save")[1]

    def _areas(self, name: str) -> tuple[Fields, Fields]:
        if not self.vmcb:
            raise PathError(f"this nested state has no {name}: it carries no VMCB")
        return vmcb_fields(self.vmcb)

    def uapi(self) -> bytes:
        """Build the argument of KVM_SET_NESTED_STATE (little-endian).

        Values too large for their field are cut off, as C does.
        """
        header = {
            member.name: bytes(member.size)
            if member.reserved
            else getattr(self, member.name) & (1 << 8 * member.size) - 1
            for member in layout.UAPI_HEADER.members
        }
        return layout.UAPI_HEADER.layout.build(header) + self.vmcb

    def tree(self) -> Value:
        """Return everything as values with offsets: header, ``control``, ``l1_save``."""
        start = max(self.offset, 0)
        header = (
            Value("flags", "u16", start, 2, self.flags),
            Value("format", "u16", start + 2, 2, self.format),
            Value("size", "u32", start + 4, 4, self.size),
        )
        if not self.vmcb:
            return Value("nested", "struct", start, 8, None, header)
        at = max(self.vmcb_offset, 0)
        areas = (
            Value("vmcb_pa", "u64", self.vmcb_pa_at, 8, self.vmcb_pa),
            image_tree(layout.CONTROL, "control", self.vmcb, at),
            image_tree(layout.SAVE, "l1_save", self.vmcb[layout.SAVE_OFFSET :], at + 0x400),
        )
        end = at + layout.VMCB_SIZE
        return Value("nested", "struct", start, end - start, None, header + areas)


def from_uapi(data: bytes, offset: int = 0) -> NestedState:
    """Read ``struct kvm_nested_state``, the argument of KVM_SET_NESTED_STATE (little-endian).

    :param data: the header, and the VMCB after it if there is one.
    :param offset: of the header in the input.
    :raises Malformed: shorter than the header, or a part of a VMCB.
    """
    if len(data) < layout.UAPI_HEADER_SIZE:
        raise Malformed(
            "the nested state is shorter than its header",
            offset=offset,
            field="NESTED_STATE",
            expected=f"{layout.UAPI_HEADER_SIZE} bytes, or {layout.NESTED_STATE_SIZE} with a VMCB",
            found=f"{len(data)}",
        )
    header = layout.UAPI_HEADER.layout.parse(data[: layout.UAPI_HEADER_SIZE])
    vmcb = data[layout.UAPI_HEADER_SIZE : layout.NESTED_STATE_SIZE]
    if header.format != layout.FORMAT_SVM:
        return NestedState(header.flags, header.format, header.size, offset=offset)
    if vmcb and len(vmcb) != layout.VMCB_SIZE:
        raise Malformed(
            "the nested state ends inside its VMCB",
            offset=offset + len(data),
            field="NESTED_STATE",
            expected=f"{layout.NESTED_STATE_SIZE} bytes",
            found=f"{len(data)}",
        )
    return NestedState(
        header.flags, header.format, header.size, header.vmcb_pa, vmcb, offset,
        offset + layout.UAPI_HEADER_SIZE, header.gpat,
        offset + layout.UAPI_HEADER.member("vmcb_pa").offset,
    )  # fmt: skip


@lru_cache(maxsize=16)
def vmcb_fields(page: bytes) -> tuple[Fields, Fields]:
    """Parse a VMCB page: control area and save area by field name.

    Cached, since one VMCB is read by many rules and for many kernels.

    :raises BuildError: not 4096 bytes.
    """
    parsed = parse_vmcb(page)
    return _frozen(parsed.control), _frozen(parsed.save)


def _frozen(parsed: Any) -> Any:
    if isinstance(parsed, Container):
        return Fields({k: _frozen(v) for k, v in parsed.items() if not k.startswith("_")})
    return tuple(parsed) if isinstance(parsed, ListContainer) else parsed


def _parse(image: Image, data: bytes) -> Container[Any]:
    parsed: Container[Any] = image.layout.parse(data)
    return parsed


def image_tree(image: Image, name: str, data: bytes, offset: int) -> Value:
    """Parse ``data`` as an image and return all its members with offsets."""
    parsed = _parse(image, data[: image.size])
    children = tuple(
        _tree(member.name, member.layout, parsed[member.name], offset + member.offset)
        for member in image.members
    )
    return Value(name, "struct", offset, image.size, None, children)


def _tree(name: str, construct: Any, value: Any, offset: int) -> Value:
    size = construct.sizeof()
    if isinstance(value, Container):
        return Value(name, "struct", offset, size, None, tuple(_members(construct, value, offset)))
    leaf: Leaf = tuple(value) if isinstance(value, ListContainer) else value
    return Value(name, type_name(construct), offset, size, leaf)


def _members(construct: Any, value: Container[Any], offset: int) -> Iterator[Value]:
    for member in construct.subcons:
        yield _tree(member.name, member.subcon, value[member.name], offset)
        offset += member.sizeof()


def parse_vmcb(data: bytes) -> Container[Any]:
    """Parse a whole VMCB page.

    :raises BuildError: not 4096 bytes.
    """
    if len(data) != layout.VMCB_SIZE:
        raise BuildError(f"a VMCB has {layout.VMCB_SIZE} bytes, not {len(data)}")
    return _parse(layout.VMCB, data)


def build_vmcb(vmcb: Container[Any]) -> bytes:
    """Build the page again: the inverse of :func:`parse_vmcb`."""
    return layout.VMCB.layout.build(vmcb)


def from_values(subsection: Value) -> NestedState:
    """Read ``cpu/nested_state`` as decoded from a stream.

    :raises Malformed: its parts are not those that QEMU sends.
    """
    struct = subsection.child("env.nested_state")
    if struct is None:
        raise Malformed(
            "a nested state without its structure",
            offset=subsection.offset,
            section="cpu",
            field="cpu/nested_state",
            expected="field env.nested_state",
        )
    flags, form, size = (struct.number(name) for name in ("flags", "format", "size"))
    svm = struct.child(_SVM)
    if svm is None:
        return NestedState(flags, form, size, offset=struct.offset)
    vmcb = svm.child("data.svm[0].vmcb12")
    data = vmcb.value if vmcb is not None else None
    if vmcb is None or not isinstance(data, bytes) or len(data) != layout.VMCB_SIZE:
        raise Malformed(
            "a nested SVM state without a whole VMCB",
            offset=svm.offset,
            section="cpu",
            field=_SVM,
            expected=f"{layout.VMCB_SIZE} bytes",
            found=f"{len(data) if isinstance(data, bytes) else 'none'}",
        )
    return NestedState(
        flags, form, size, svm.number("hdr.svm.vmcb_pa"), data, struct.offset, vmcb.offset
    )
