"""What a capture asks of QEMU: capabilities and parameters, and who has them.

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
"""Bytes a second that no machine reaches; 0 does not mean this to every QEMU."""

COMPRESSIONS = ("none", "zlib", "zstd")

SINCE: Mapping[str, str] = MappingProxyType(
    {
        "mapped-ram": "9.0",
        "background-snapshot": "6.0",
        "multifd": "4.0",
        "xbzrle": "1.3",
    }
)
"""QEMU versions in which capabilities came."""

# A capture is a plain stream to a receiver that only listens: these would make
# it wait for an answer or a command, send pages elsewhere, or leave some out.
_OFF = (
    *("postcopy-ram", "postcopy-preempt", "return-path", "release-ram", "x-ignore-shared"),
    *("pause-before-switchover", "switchover-ack", "zero-copy-send", "x-colo", "compress"),
    *("block", "dirty-bitmaps", "rdma-pin-all", "multifd", "xbzrle", "mapped-ram"),
    "background-snapshot",
)
# QEMU takes no background snapshot together with these.
_OFF_FOR_SNAPSHOT = (
    *("auto-converge", "late-block-activate", "validate-uuid", "postcopy-blocktime"),
    "dirty-limit",
)


@dataclass(frozen=True, slots=True)
class Options:
    """How to capture.

    :param live: the guest runs but for the last pass; else it is stopped first.
    :param mapped_ram: every page at a fixed place in the file.
    :param multifd: number of channels for RAM; 0 for none.
    :param compression: of multifd channels.
    :param xbzrle: send changed pages as deltas.
    :param background_snapshot: the state of the start, by write-protecting RAM.
    :param bandwidth: bytes a second; None for no limit.
    :param downtime: milliseconds that the last pass may take; None for QEMU's.
    :param stop_after: seconds after which the guest is stopped to come to an end.
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
        """Say what does not go together; None if everything does."""
        if self.compression != "none" and not self.multifd:
            return "compression is multifd's: say how many channels"
        if self.mapped_ram and (self.xbzrle or self.compression != "none"):
            return "mapped-ram has pages at fixed places: neither XBZRLE nor compression"
        if self.background_snapshot and (self.multifd or self.xbzrle or self.mapped_ram):
            return "a background snapshot is a plain stream"
        if self.background_snapshot and not self.live:
            return "a background snapshot is live"
        if self.xbzrle and self.multifd:
            return "XBZRLE and multifd are two ways to send a page"
        return None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to switch and to set; only what differs from what is."""

    capabilities: Mapping[str, bool]
    parameters: Mapping[str, object]


def plan(
    options: Options,
    version: Version,
    capabilities: Mapping[str, bool],
    parameters: Mapping[str, Any],
    compressions: frozenset[str],
    *,
    asked: Iterable[str] = (),
) -> Plan:
    """Work out what has to be changed for a capture.

    :param capabilities: what this QEMU has, and what is on.
    :param parameters: as they are.
    :param compressions: those that this QEMU was built with.
    :param asked: capabilities that are needed besides.
    :raises Refused: this QEMU does not have what is asked for.
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
                f"this QEMU ({version}) has no {name}", hint=f"it came with QEMU {SINCE[name]}"
            )
    if options.multifd and options.compression not in compressions:
        raise Refused(
            f"this QEMU ({version}) has no multifd compression '{options.compression}'",
            hint="zlib and zstd came with QEMU 5.0, if it was built with them; "
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
    """Find in an answer of ``query-qmp-schema`` what multifd can compress with."""
    for one in schema if isinstance(schema, list) else ():
        values = one.get("values") if isinstance(one, dict) else None
        if isinstance(values, list) and "none" in values and "zlib" in values:
            return frozenset(value for value in values if isinstance(value, str))
    return frozenset()
