"""What facts of hosts mean; the facts were recorded in boxes with four kernels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.doctor import facts, probe
from qemu_svm.doctor.facts import Host, KernelMemory
from qemu_svm.doctor.judge_host import judge_host
from qemu_svm.doctor.model import Check, CheckState
from qemu_svm.errors import SourceError
from qemu_svm.model.kernels.release import parse

HOSTS = sorted(Path(__file__).with_name("hosts").glob("*.json"))


def host(name: str) -> Host:
    return facts.read(facts.load(str(Path(__file__).with_name("hosts") / f"{name}.json")))


def checks(found: Host) -> dict[str, Check]:
    return {f"{one.group} {one.name}": one for one in judge_host(found)}


def missing(found: Host, purpose: str = "replay") -> list[str]:
    return [
        name
        for name, one in checks(found).items()
        if one.state is CheckState.MISSING and purpose in one.needed_for
    ]


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_hosts_that_nest(path: Path) -> None:
    found = host(path.stem)
    assert missing(found) == []
    told = checks(found)
    assert told["KVM nested state"].found == "SVM, 4224 bytes"
    assert told["kernel profile"].state is CheckState.OK
    without = path.stem.endswith("npt0")
    assert told["KVM kvm_amd npt"].state is (CheckState.WARNING if without else CheckState.OK)
    assert told["KVM kvm_amd nested"].state is CheckState.OK


@pytest.mark.parametrize(
    ("name", "version", "profile"),
    [
        ("linux5.10", "5.10.223", "5.10:"),
        ("linux6.1", "6.1.176", "6.1:"),
        ("linux6.12", "6.12.117", "6.12.117:"),
        ("linux7.2", "7.2.12", "7.2:"),
    ],
)
def test_the_kernel_and_its_profile(name: str, version: str, profile: str) -> None:
    told = checks(host(name))
    assert version in told["kernel release"].found
    assert told["kernel profile"].found.startswith(profile)


def test_the_bug_that_takes_the_host_down_is_a_warning() -> None:
    assert checks(host("linux5.10"))["kernel bug O-28"].state is CheckState.WARNING
    for name in ("linux6.1", "linux6.12", "linux7.2"):
        assert "kernel bug O-28" not in checks(host(name))


def test_every_line_that_is_not_well_says_what_to_do() -> None:
    for found in map(host, [path.stem for path in HOSTS]):
        for one in judge_host(found):
            if one.state in (CheckState.WARNING, CheckState.MISSING):
                assert one.means or one.found.startswith("if ")
                assert one.do


def test_no_device() -> None:
    good = host("linux6.1")
    gone = replace(good.kvm, exists=False, error="ENOENT", capabilities={})
    found = replace(good, kvm=gone, modules={})
    assert missing(found) == ["KVM device"]
    assert "modprobe" in checks(found)["KVM device"].do


@pytest.mark.parametrize(("group", "do"), [("kvm", "adduser me kvm"), ("root", "chgrp kvm")])
def test_not_allowed(group: str, do: str) -> None:
    good = host("linux6.1")
    closed = replace(good.kvm, mode="0660", group=group, error="EACCES", capabilities={})
    found = replace(good, kvm=closed, user="me")
    assert missing(found) == ["KVM device"]
    assert do in checks(found)["KVM device"].do
    assert f"0660 root:{group}" in checks(found)["KVM device"].found


def test_no_nesting() -> None:
    good = host("linux6.12")
    found = replace(
        good,
        kvm=replace(good.kvm, capabilities={"nested_state": 0}),
        modules={"kvm_amd": {"nested": "0", "npt": "Y"}},
    )
    assert missing(found) == ["KVM nested state"]
    assert checks(found)["KVM kvm_amd nested"].state is CheckState.WARNING


def test_intel() -> None:
    good = host("linux6.12")
    found = replace(
        good,
        cpu=replace(good.cpu, vendor="GenuineIntel", svm=False, svm_features=()),
        kvm=replace(good.kvm, capabilities={"nested_state": 8320}),
        modules={"kvm_intel": {"nested": "Y"}},
    )
    assert missing(found) == ["processor vendor", "KVM nested state"]
    assert checks(found)["KVM nested state"].found == "VMX, 8320 bytes"


@pytest.mark.parametrize("inside", [True, False])
def test_svm_is_off(inside: bool) -> None:
    good = host("linux6.12")
    found = replace(good, cpu=replace(good.cpu, svm=False, svm_features=(), hypervisor=inside))
    assert missing(found) == ["processor svm"]
    assert ("hypervisor" if inside else "firmware") in checks(found)["processor svm"].do


@pytest.mark.parametrize("name", ["4.19.0-27-amd64", "something"])
def test_a_kernel_without_nested_state(name: str) -> None:
    document = probe.host()
    document["kernel"].update(release=name, version="", signature="")
    told = checks(facts.read(document))
    assert told["kernel release"].state is CheckState.WARNING
    assert "5.8" in told["kernel release"].means


READABLE = KernelMemory("", "[none] integrity confidentiality", "0", "pid:[4026531836]",
                        ("vmlinux", "kvm", "kvm_amd"))  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"kcore": "EACCES"}, "not readable"),
        ({"kcore": "ENOENT"}, "/proc/kcore: ENOENT"),
        ({"lockdown": "none integrity [confidentiality]"}, "lockdown"),
        ({"kptr_restrict": "2"}, "kptr_restrict"),
        ({"pid_namespace": "pid:[4026532000]"}, "PID namespace"),
        ({"types": ()}, "no types"),
        ({"types": ("vmlinux",)}, "types of kvm_amd are missing"),
    ],
)
def test_what_forbids_a_look_into_kernel_memory(facts: dict[str, Any], words: str) -> None:
    good = host("linux6.12")
    assert "kernel memory vCPUs" not in checks(good)  # facts of an older probe
    good = replace(good, inside=READABLE)
    assert checks(good)["kernel memory vCPUs"].state is CheckState.OK
    told = checks(replace(good, inside=replace(READABLE, **facts)))["kernel memory vCPUs"]
    assert (told.state, told.needed_for) == (CheckState.MISSING, {"inside"})
    assert words in told.found
    assert told.do
    intel = replace(good, modules={"kvm_intel": {}})
    assert checks(intel)["kernel memory vCPUs"].found == "kvm_amd is not loaded"


def test_this_host_is_understood() -> None:
    document = probe.host()
    found = facts.read(json.loads(json.dumps(document)))
    assert found.kvm.exists == document["kvm"]["exists"]
    assert list(judge_host(found))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.data())
def test_facts_of_another_shape(data: st.DataObject) -> None:
    document: Any = json.loads(HOSTS[0].read_text())
    place = document
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        found = facts.read(document)
    except SourceError:
        return
    assert list(judge_host(found))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000, b" " * (1 << 20) + b"{}"])
def test_files_that_are_no_facts(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    path.write_bytes(text)
    with pytest.raises(SourceError, match="not the facts"):
        facts.load(str(path))
    with pytest.raises(SourceError, match="No such file"):
        facts.load(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("release", "bugs"),
    [("6.12.85", {"K-16", "K-17"}), ("6.12.100", {"K-17"}), ("6.12.103", set()), ("7.3.4", set())],
)
def test_avic_on_a_kernel_without_its_fixes(release: str, bugs: set[str]) -> None:
    good = host("linux6.12")
    modules = {**good.modules, "kvm_amd": {**good.modules["kvm_amd"], "avic": "Y"}}
    found = replace(good, kernel=parse(release), name=release, modules=modules)
    warned = {name.rpartition(" ")[2] for name in checks(found) if " bug K-" in name}
    assert warned == bugs
    modules = {**good.modules, "kvm_amd": {**good.modules["kvm_amd"], "avic": "N"}}
    assert not [one for one in checks(replace(found, modules=modules)) if " bug K-" in one]


@pytest.mark.parametrize(
    ("release", "row"),
    [
        ("6.12.118+deb13-amd64", "6.12.118:"),
        ("6.6.100", "6.6.51:"),
        ("5.14.0-427.el9.x86_64", "6.6.14: a RHEL kernel; judged as 6.6.14 because"),
        ("4.18.0-553.el8_10.x86_64", "5.17: a RHEL kernel; judged as 5.17.0 because"),
    ],
)
def test_no_false_alarm(release: str, row: str) -> None:
    found = checks(replace(host("linux6.12"), kernel=parse(release), name=release))
    assert found["kernel release"].state is CheckState.OK
    assert found["kernel profile"].found.startswith(row)
    assert "kernel bug O-28" not in found


@pytest.mark.parametrize(
    ("release", "state", "words"),
    [
        ("5.10.50-amd64", CheckState.WARNING, "vmcb02 after it was freed"),
        ("5.8.0-63-generic", CheckState.WARNING, ""),
        ("4.18.0-553.el8_10.x86_64", CheckState.NOTE, "this kernel may have the fix"),
        ("5.19.0-50-generic", CheckState.NOTE, "this kernel may have the fix"),
    ],
)
def test_a_bug_is_a_warning_if_the_kernel_is_known_to_have_it(
    release: str, state: CheckState, words: str
) -> None:
    found = replace(host("linux6.12"), kernel=parse(release), name=release)
    bug = checks(found)["kernel bug K-15"]
    assert bug.state is state
    assert words in bug.found


def test_hosts_of_every_distribution_are_judged() -> None:
    for release in RELEASES:
        found = replace(host("linux6.12"), kernel=parse(release), name=release)
        judged = checks(found)
        assert "kernel release" in judged, release
        assert judged["kernel release"].found


RELEASES = (
    "6.12.118+deb13-amd64", "6.1.0-0.deb11.50-cloud-amd64", "5.15.0-1084-aws", "6.8.0-1009-oem",
    "6.14.0-37-generic", "5.4.174-2-pve", "6.17.2-1-pve", "4.18.0-193.el8.x86_64",
    "5.14.0-570.12.1.el9_6.x86_64+debug", "6.12.0-55.9.1.el10_0.x86_64", "3.10.0-1160.el7.x86_64",
    "6.17.8-1.el9.elrepo.x86_64", "6.12.0-104.43.4.2.el9uek.x86_64", "5.4.17-2136.el8uek.x86_64",
    "5.14.21-150400.24.150-azure", "6.12.0-160000.5-default", "6.12.55-74.119.amzn2023.x86_64",
    "6.6.104.2-4.azl3", "6.6.87.2-microsoft-standard-WSL2", "6.18.5-arch1-1", "6.6.74-gentoo-dist",
    "6.12.61-0-lts", "6.1.141+", "6.6.110-flatcar", "6.17.7-x64v3-xanmod1", "7.4.0-rc1",
    "6.17.0-7.1-liquorix-amd64", "6.6.119_1", "5.10.0-136.12.0.86.oe2203sp1.x86_64", "8.0.1",
)  # fmt: skip
