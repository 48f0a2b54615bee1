"""A vCPU as it is in kernel memory, decoded.

The names are those of the kernel: ``nested.save.cr3``, ``nested.ctl.asid``, ``arch.cr3``,
``vmcb02.save.rip``, ``vmcb01.control.intercepts``.  A segment is ``[selector, base, limit,
attrib]``, a descriptor table ``[base, limit]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.layout import ADDRESSES, Layout
from qemu_svm.model.area import Content
from qemu_svm.model.saved import areas
from qemu_svm.x86.segments import Segment

Inside = dict[str, Any]
"""A vCPU's state by names."""

_PAGE = 4096
_TABLES = frozenset({"gdtr", "idtr"})
_NP_ENABLE = 1
_REQUEST_PAGES = 32  # KVM_REQ_GET_NESTED_STATE_PAGES, which is KVM_ARCH_REQ(24)
_GIF, _GUEST, _SMM = 1 << 0, 1 << 5, 1 << 6
_GUEST_SINCE_6_4, _SMM_SINCE_6_4 = 1 << 0, 1 << 1


class Looks:
    """The looks at one vCPU, put together again from what changed.

    :param layout: of its kernel.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known = layout.map["pages"].keys() | layout.map["pointers"].keys()
        self._parts: dict[str, bytearray | None] = {}
        self._points: dict[str, str | None] = {}
        self._decoded: dict[str, Inside] = {}

    def see(self, look: Mapping[str, Any]) -> Inside:
        """Return the vCPU after one more look.

        :param look: what :meth:`qemu_svm.kvm.inside.Watcher.look` returned.
        :raises EnvironmentFault: it is no look.
        """
        if "gone" in look:
            raise EnvironmentFault(str(look["gone"]))
        try:
            self._apply(look)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EnvironmentFault(f"a look into kernel memory cannot be read: {error}") from None
        found: Inside = {}
        for decoded in self._decoded.values():
            found |= decoded
        found |= {name: point for name, point in self._points.items() if point is not None}
        return found

    def _apply(self, look: Mapping[str, Any]) -> None:
        sizes = dict.fromkeys(self._layout.map["pages"], _PAGE)
        sizes["svm"] = sum(size for _, size in self._layout.map["ranges"])
        for name, runs in look["parts"].items():
            if runs is None:
                self._parts[name], self._decoded[name] = None, {}
                continue
            data = self._parts.get(name) or bytearray(sizes[name])
            for offset, text in runs:
                new = bytes.fromhex(text)
                if not 0 <= offset <= len(data) - len(new):
                    raise ValueError("bytes outside of a structure")
                data[offset : offset + len(new)] = new
            self._parts[name] = data
            self._decoded[name] = self._svm(data) if name == "svm" else self._page(data, name)
        for name, point in look["points"].items():
            if name not in self._known:
                raise ValueError("a pointer that was not asked for")
            self._points[name] = point if point is None else str(point)
        for name, address in look.get("addresses", {}).items():
            self._decoded[f"{name}.address"] = {f"{name}.address": int(address)}

    def _page(self, data: bytearray, name: str) -> Inside:
        found = page(bytes(data), name)
        if not self._layout.addresses:
            for hidden in ADDRESSES:
                del found[f"{name}.control.{hidden}"]
            if not found[f"{name}.control.nested_ctl"] & _NP_ENABLE:
                del found[f"{name}.save.cr3"]
        return found

    def _svm(self, data: bytearray) -> Inside:
        layout = self._layout
        found: Inside = {name: layout.number(data, place) for name, place in layout.places.items()}
        for name, parts in layout.segments.items():
            values = [layout.number(data, part) for part in parts]
            found[name] = values[1:3] if name.rpartition(".")[2] in _TABLES else values
        hflags = found.get("hflags", 0)
        if "guest_gif" in found:
            found["gif"] = found.pop("guest_gif")
            guest, smm = _GUEST_SINCE_6_4, _SMM_SINCE_6_4
        else:
            found["gif"] = int(bool(hflags & _GIF))
            guest, smm = _GUEST, _SMM
        found["guest_mode"] = int(bool(hflags & guest))
        found["smm"] = int(bool(hflags & smm))
        found["pages_requested"] = found["requests"] >> _REQUEST_PAGES & 1
        return found


def plain(name: str, value: Content) -> Any:
    """Return the content of a register as it is shown: a number or a list."""
    if isinstance(value, Segment):
        return [value.base, value.limit] if name in _TABLES else value.as_list()
    return value


def page(data: bytes, name: str) -> Inside:
    """Return the fields of a VMCB: ``NAME.control.FIELD``, ``NAME.save.FIELD``."""
    found: Inside = {}
    for part, area in zip(("control", "save"), areas(data), strict=True):
        for field in area:
            found[f"{name}.{part}.{field}"] = plain(field, area.content(field))
    return found
