"""Capabilities and parameters of a capture, and the QEMUs that have them.

Source: QEMU ``qapi/migration.json`` (``since`` of each member),
``migration/options.c`` (which exclude one another).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qemu_svm.errors import Refused
from qemu_svm.qmp.answers import Version

UNLIMITED = 1 << 40
"""Bytes per second that no machine reaches; not every QEMU takes 0 as no limit."""

COMPRESSIONS = ("none", "zlib", "zstd")
"""Compressions of multifd channels."""

SINCE: Mapping[str, str] = MappingProxyType(
    {
        "mapped-ram": "9.0",
        "background-snapshot": "6.0",
        "multifd": "4.0",
        "xbzrle": "1.3",
    }
)
"""By capability, the first QEMU version that has it."""

# A capture is a plain stream to a receiver that only listens: these would make
# QEMU wait for an answer or a command, send pages elsewhere, or omit some.
_OFF = (
    *("postcopy-ram", "postcopy-preempt", "return-path", "release-ram", "x-ignore-shared"),
    *("pause-before-switchover", "switchover-ack", "zero-copy-send", "x-colo", "compress"),
    *("block", "dirty-bitmaps", "rdma-pin-all", "multifd", "xbzrle", "mapped-ram"),
    "background-snapshot",
)
# QEMU refuses a background snapshot together with these.
_OFF_FOR_SNAPSHOT = (
    *("auto-converge", "late-block-activate", "validate-uuid", "postcopy-blocktime"),
    "dirty-limit",
)


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """How to capture.

    :param live: the guest is stopped for the last pass only; else it is stopped first.
    :param mapped_ram: every page has a fixed place in the file.
    :param multifd: number of channels for RAM; 0 for none.
    :param compression: of the multifd channels, one of :data:`COMPRESSIONS`.
    :param xbzrle: send changed pages as deltas.
    :param background_snapshot: capture the state at the start, by write-protecting RAM.
    :param bandwidth: bytes per second; None for no limit.
    :param downtime: milliseconds that the last pass may take; None for QEMU's default.
    :param stop_after: seconds after which the guest is stopped, so that the capture ends.
    """

    live: bool = True
    mapped_ram: bool = False
    multifd: int = 0
    compression: str = "none"
    xbzrle: bool = False
    background_snapshot: bool = False
    bandwidth: int | None = None
    downtime: int | None = None
    stop_after: float | None = None

    def contradiction(self) -> str | None:
        """Return which options exclude one another, as a sentence; None if none do."""
        if self.compression != "none" and not self.multifd:
            return "compression needs multifd channels"
        if self.mapped_ram and (self.xbzrle or self.compression != "none"):
            return "mapped-ram excludes XBZRLE and compression: its pages have fixed places"
        if self.background_snapshot and (self.multifd or self.xbzrle or self.mapped_ram):
            return "a background snapshot excludes multifd, XBZRLE and mapped-ram"
        if self.background_snapshot and not self.live:
            return "a background snapshot is always live"
        if self.xbzrle and self.multifd:
            return "XBZRLE and multifd exclude one another"
        return None


@dataclass(frozen=True, slots=True)
class Plan:
    """Capabilities to switch and parameters to set: those that differ from the present ones."""

    capabilities: Mapping[str, bool]
    parameters: Mapping[str, object]


def plan(
    options: CaptureOptions,
    version: Version,
    capabilities: Mapping[str, bool],
    parameters: Mapping[str, Any],
    compressions: frozenset[str],
    *,
    asked: Iterable[str] = (),
) -> Plan:
    """Return what has to be changed for a capture.

    :param capabilities: of this QEMU: whether each is on, by name.
    :param parameters: their present values.
    :param compressions: of multifd, that this QEMU was built with.
    :param asked: further capabilities that are needed.
    :raises Refused: this QEMU lacks a feature, or options exclude one another.
    """
    words = options.contradiction()
    if words is not None:
        raise Refused(words)
    wanted = {
        "mapped-ram": options.mapped_ram,
        "multifd": options.multifd > 0,
        "xbzrle": options.xbzrle,
        "background-snapshot": options.background_snapshot,
    }
    for name, on in wanted.items():
        if on and name not in capabilities:
            raise Refused(
                f"this QEMU ({version}) has no {name}",
                hint=f"QEMU has it from {SINCE[name]} on",
            )
    if options.multifd and options.compression not in compressions:
        raise Refused(
            f"this QEMU ({version}) has no multifd compression '{options.compression}'",
            hint="QEMU has zlib and zstd from 5.0 on, if it was built with them; "
            f"this one has {', '.join(sorted(compressions)) or 'none'}",
        )
    off = _OFF + (_OFF_FOR_SNAPSHOT if options.background_snapshot else ())
    states = dict.fromkeys(off, False) | wanted | dict.fromkeys(asked, True)
    values: dict[str, object] = {"max-bandwidth": options.bandwidth or UNLIMITED}
    if options.downtime is not None:
        values["downtime-limit"] = options.downtime
    if options.multifd:
        values["multifd-channels"] = options.multifd
        values["multifd-compression"] = options.compression
    return Plan(
        {
            name: state
            for name, state in states.items()
            if capabilities.get(name, False) is not state
        },
        {name: value for name, value in values.items() if parameters.get(name) != value},
    )


def compressions(schema: object) -> frozenset[str]:
    """Return multifd's compressions, from an answer of ``query-qmp-schema``."""
    for one in schema if isinstance(schema, list) else ():
        values = one.get("values") if isinstance(one, dict) else None
        if isinstance(values, list) and "none" in values and "zlib" in values:
            return frozenset(value for value in values if isinstance(value, str))
    return frozenset()
