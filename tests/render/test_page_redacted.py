"""Pages without addresses, UUIDs, names and MSRs: each secret is searched for."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import qemu_svm as svm
from qemu_svm.findings.overview import REDACTABLE, Overview
from qemu_svm.render.html.fields import MSRS, PLAIN
from qemu_svm.source.structs import SAVE_IMAGES
from qemu_svm.stream import Value
from tests.conftest import STREAMS, capture_bytes

NAME = "qemu10.0-linux6.12-nested-npt"
UUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
SECRETS = (
    *(
        "payroll-db-7",
        "Payroll, do not touch",
        "/srv/secret/disk-payroll.qcow2",
        "52:54:00:ab:cd:ef",
    ),
    *("storage.internal.example", "wr3tched-passw0rd", "br-finance", UUID, UUID.replace("-", "")),
)
XML = f"""<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>
 <name>{SECRETS[0]}</name><uuid>{UUID}</uuid><title>{SECRETS[1]}</title>
 <memory unit='KiB'>32768</memory><vcpu placement='static'>1</vcpu>
 <os><type arch='x86_64' machine='pc-i440fx-10.0'>hvm</type></os>
 <cpu mode='custom'><model>EPYC</model><feature policy='require' name='svm'/></cpu>
 <devices><disk type='file' device='disk'><source file='{SECRETS[2]}'/>
 <target dev='vda' bus='virtio'/></disk>
 <disk type='network'><source protocol='rbd'><host name='{SECRETS[4]}'/></source></disk>
 <graphics type='vnc' passwd='{SECRETS[5]}'/>
 <interface type='bridge'><mac address='{SECRETS[3]}'/><source bridge='{SECRETS[6]}'/></interface>
 </devices></domain>"""


def save_image(payload: bytes) -> bytes:
    """An image of virsh save."""
    xml = XML.encode()
    data = xml + b"\0" + f"<cookie><name>{SECRETS[0]}</name></cookie>".encode() + b"\0"
    header = {
        "magic": b"LibvirtQemudSave",
        "version": 2,
        "data_length": len(data),
        "was_running": 1,
        "format": 0,
        "cookie_offset": len(xml) + 1,
        "unused": bytes(56),
    }
    return SAVE_IMAGES["little"].build(header) + data + payload


def leaves(value: Value) -> Iterator[tuple[str, int]]:
    for child in value.children:
        yield from leaves(child)
    if isinstance(value.value, int) and not isinstance(value.value, bool):
        yield value.name, value.value


def numbers(dump: svm.Dump) -> dict[str, set[int]]:
    """Values of the vCPUs by what they are; those that are flags elsewhere are no secret."""
    found: dict[str, set[int]] = {"addresses": set(), "msrs": set(), "plain": set()}
    for vcpu in dump.vcpus:
        all_of_it = [(name, value.value) for name, value in vcpu.registers.items()]
        all_of_it += [("base", segment.base) for segment in vcpu.segments.values()]
        if vcpu.nested is not None:
            all_of_it += leaves(vcpu.nested.tree())
        for name, value in all_of_it:
            if isinstance(value, int) and value >= 0x1000:
                kind = "plain" if name in PLAIN else "msrs" if name in MSRS else "addresses"
                found[kind].add(value)
    return found


@dataclass(frozen=True)
class Made:
    """What is known about a domain that is to stay secret, another state of it, and a log."""

    path: Path
    overview: Overview
    known: list[dict[str, set[int]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("payroll-db-7")
    first = folder / "payroll-db-7.save"
    data = bytearray(capture_bytes(f"{NAME}.mig.zst"))
    with svm.open(STREAMS / f"{NAME}.mig.zst") as dump:
        # Values as Linux has them: addresses and MSRs that stand out.
        for path, value in (
            ("vcpu0.rip", 0xFFFFFFFF_8120BEEF), ("vcpu0.rsp", 0xFFFFC900_00D0FFEE),
            ("vcpu0.registers.r15", 0xFFFF8881_DEAD0010),
            ("vcpu0.registers.lstar", 0xFFFFFFFF_81E00080),
            ("vcpu0.registers.kernel_gs_base", 0x7F12_3456_7000),
        ):  # fmt: skip
            place = dump[path]
            data[place.offset : place.offset + 8] = value.to_bytes(8, "big")
    first.write_bytes(save_image(bytes(data)))
    second = folder / "payroll-db-7-later.mig"
    second.write_bytes(capture_bytes(f"{NAME}.resaved.mig.zst"))
    log = folder / "payroll-db-7.log.gz"
    text = (
        "kvm_vcpu_ioctl cpu_index 0, type 0x4080aebf, arg 0x7f00deadbeef\n"
        f"payroll-db-7 qemu[77]: {UUID} on storage.internal.example\n"
    )
    log.write_bytes(gzip.compress(text.encode() * 3))
    with svm.open(first) as dump, svm.open(second) as other:
        found = dump.overview(kernel="6.12.118", other=other, log=log)
        return Made(first, found, [numbers(one) for one in (dump, other)])


def test_no_secret_is_in_the_page(made: Made) -> None:
    plain = made.overview.to_html()
    page = made.overview.to_html(REDACTABLE)
    first, known = made.path, made.known
    for secret in SECRETS:
        assert secret.lower() not in page.lower()
    for secret in (*SECRETS[:3], UUID, *SECRETS[3:7]):
        assert secret in plain
    # Offsets in the file are in columns of their own, and tell nothing.
    shown = re.sub(r'<td class="[^"]*\bv\b[^"]*">0x[0-9a-f]+</td>', "", page)
    shown = re.sub(r'at <span class="v">0x[0-9a-f]+</span>|at 0x[0-9a-f]+</span>', "", shown)
    hexes = {int(one, 16) for one in re.findall(r"0x([0-9a-fA-F]+)", shown)}
    for by in known:
        secrets = (by["addresses"] | by["msrs"]) - set().union(*(one["plain"] for one in known))
        assert secrets
        assert not hexes & secrets
        for value in secrets:
            if value >= 1 << 24:
                assert f"{value:x}" not in page
                assert str(value) not in page
    assert str(first) not in page
    assert first.name not in page
    assert "type='kvm'" in page.replace("&#34;", "'").replace('"', "'")


def test_equal_values_have_equal_stand_ins() -> None:
    with svm.open(STREAMS / f"{NAME}.mig.zst") as dump:
        page = dump.overview(kernel="6.1").to_html(("addresses",))
        nested = dump.vcpus[0].nested
        assert nested is not None
        assert nested.l1_save.rax == nested.vmcb_pa
    vmcb_pa = re.search(r'<th scope="row">vmcb_pa</th><td><span class="v">(\[a\d+\])<', page)
    rax = re.search(r'<th scope="row">rax</th>.*?<td.*?<td.*?(\[a\d+\])<', page)
    assert vmcb_pa is not None
    assert rax is not None
    assert vmcb_pa[1] == rax[1]


@pytest.mark.parametrize("kept", REDACTABLE)
def test_what_is_kept_is_there(made: Made, kept: str) -> None:
    page = made.overview.to_html(one for one in REDACTABLE if one != kept)
    signs = {
        "addresses": "0xffffffff8120beef",
        "uuids": UUID,
        "names": "payroll-db-7.save",
        "msrs": "0xffffffff81e00080",
    }
    assert {kind: sign in page for kind, sign in signs.items()} == {
        kind: kind == kept for kind in signs
    }
