"""Streams against what a real QEMU says of itself, and against altered dumps."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.findings.compat import Compatibility, compatibility
from qemu_svm.machine import Machine, read_machine
from qemu_svm.rules import Finding, Severity
from qemu_svm.source import open_source
from qemu_svm.source.plain import BytesSource
from qemu_svm.stream import read_stream
from qemu_svm.stream.vmstate.dump import parse_dump
from tests.conftest import CAPTURES, STREAMS
from tests.support import builders

pytestmark = pytest.mark.qemu

QEMU = "qemu-system-x86_64"


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("dump") / "vmstate.json"
    subprocess.run([QEMU, "-M", "none", "-dump-vmstate", path], check=True)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def load(name: str) -> Machine:
    return read_machine(read_stream(open_source(str(STREAMS / name))))


def judged(machine: Machine, document: dict[str, Any], **options: Any) -> Compatibility:
    options.setdefault("machines", [machine.name])
    return compatibility(machine, parse_dump(json.dumps(document).encode()), **options)


def errors(found: Compatibility) -> list[tuple[str, str]]:
    return [(o.rule, o.path) for o in found.findings if o.severity is Severity.ERROR]


@pytest.mark.parametrize("entry", CAPTURES, ids=lambda entry: entry["file"])
def test_this_machine_s_qemu_takes_5_2_and_7_2(entry: dict[str, Any], dump: dict[str, Any]) -> None:
    found = judged(load(entry["file"]), dump)
    if entry["provenance"]["qemu"] in ("5.2", "7.2"):
        assert found.accepted
        assert [o for o in found.findings if o.severity is Severity.WARNING] == []
    assert {"cpu", "cpu_common", "timer", "globalstate", "ram"} <= set(found.unlisted)
    assert {"i8254", "mc146818rtc", "0000:00:01.3/piix4_pm"} <= set(found.compared)
    assert found.fields > 200


def written(path: Path, machine: str, *more: str) -> Machine:
    """What the installed QEMU writes of a machine."""
    script = f'migrate "exec:cat > {path}"\nquit\n'
    subprocess.run(
        [QEMU, "-M", machine, "-accel", "tcg", "-m", "16", "-S", "-display", "none"]
        + ["-monitor", "stdio", "-serial", "none", *more],
        input=script.encode(), capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    return read_machine(read_stream(open_source(str(path))))


def test_streams_that_the_installed_qemu_writes(tmp_path: Path, dump: dict[str, Any]) -> None:
    # What a QEMU writes, it reads: not one objection may come of it.
    for name in ("pc-i440fx-7.2", "pc-i440fx-2.9", "pc-q35-7.2", "pc-q35-5.2", "microvm"):
        machine = written(tmp_path / f"{name}.mig", name)
        assert machine.stream.complete
        found = judged(machine, dump)
        assert found.findings == (), name


def test_a_part_that_is_a_section_of_its_own(tmp_path: Path, dump: dict[str, Any]) -> None:
    # vmware-svga registers the common part of all VGA cards by itself, as isa-vga did up to
    # 10.0: in 11.1 no class has that layout any more, but parts of classes have.
    machine = written(tmp_path / "vmware.mig", "pc-i440fx-7.2", "-vga", "vmware")
    later = {name: item for name, item in dump.items() if name != "isa-vga"}
    found = judged(machine, later)
    assert found.accepted
    assert "vga" in found.compared
    for item in later.values():  # still, it has to fit
        for part in item.get("Description", {}).get("Fields", []):
            if part.get("Description", {}).get("name") == "vga":
                part["Description"]["Fields"].pop(3)
    assert errors(judged(machine, later))


def test_a_machine_type_it_does_not_have(dump: dict[str, Any]) -> None:
    machine = load("qemu11.1-linux7.2-nested.mig.zst")
    found = judged(machine, dump, machines=["pc-i440fx-7.2", "pc-i440fx-7.1"])
    assert errors(found) == [("machine", "configuration.machine")]
    assert "pc-i440fx-11.1" in found.findings[0].message
    assert not found.accepted


def test_a_dump_alone_cannot_tell_machine_types(dump: dict[str, Any]) -> None:
    found = judged(load("qemu11.1-linux7.2-nested.mig.zst"), dump, machines=None)
    assert found.accepted
    assert [o.rule for o in found.findings if o.severity is Severity.WARNING] == ["machine"]


Change = Callable[[dict[str, Any]], None]
RTC = "section:mc146818rtc"


def field(layout: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in layout["Fields"] if one["field"] == name)


def drop(name: str) -> Change:
    return lambda layout: layout["Fields"].remove(field(layout, name))


def resize(name: str) -> Change:
    return lambda layout: field(layout, name).update(size=2)


def later(name: str) -> Change:
    return lambda layout: field(layout, name).update(version_id=9)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda layout: layout.update(version_id=2), ("version", RTC)),
        (lambda layout: layout.update(minimum_version_id=4, version_id=4), ("version", RTC)),
        (drop("period"), ("field", f"{RTC}.period")),
        (resize("period"), ("size", f"{RTC}.period")),
        (later("base_rtc"), ("field", f"{RTC}.base_rtc")),
    ],
)
def test_altered_dumps(change: Change, expected: tuple[str, str], dump: dict[str, Any]) -> None:
    altered = json.loads(json.dumps(dump))
    change(altered["mc146818rtc"]["Description"])
    found = judged(load("qemu7.2-linux6.1-nested.mig.zst"), altered)
    assert errors(found) == [expected]


def test_a_subsection_it_does_not_know(dump: dict[str, Any]) -> None:
    altered = json.loads(json.dumps(dump))
    altered["PIIX4_PM"]["Description"]["Subsections"] = []
    found = judged(load("qemu7.2-linux6.1-nested.mig.zst"), altered)
    assert {rule for rule, _ in errors(found)} == {"subsection"}
    for one in altered["PIIX4_PM"]["Description"]["Subsections"]:
        one["version_id"] = 0


def test_a_subsection_of_another_version(dump: dict[str, Any]) -> None:
    altered = json.loads(json.dumps(dump))
    for one in altered["PIIX4_PM"]["Description"]["Subsections"]:
        one.update(version_id=7, minimum_version_id=7)
    found = judged(load("qemu7.2-linux6.1-nested.mig.zst"), altered)
    assert {rule for rule, _ in errors(found)} == {"subsection-version"}


def test_renamed_conditional_and_new_fields(dump: dict[str, Any]) -> None:
    altered = json.loads(json.dumps(dump))
    layout = altered["mc146818rtc"]["Description"]
    field(layout, "period")["field"] = "another_name"
    extra = {"field": "new", "version_id": 0, "field_exists": True, "size": 4}
    layout["Fields"].append(extra)
    machine = load("qemu7.2-linux6.1-nested.mig.zst")
    assert [o for o in judged(machine, altered).findings if RTC in o.path] == []
    extra["field_exists"] = False
    (one,) = [o for o in judged(machine, altered).findings if RTC in o.path]
    assert (one.severity, one.path) == (Severity.WARNING, f"{RTC}.new")


def test_a_device_without_a_class(dump: dict[str, Any]) -> None:
    altered = {name: item for name, item in dump.items() if name != "mc146818rtc"}
    found = judged(load("qemu7.2-linux6.1-nested.mig.zst"), altered)
    assert found.accepted
    (one,) = [o for o in found.findings if o.severity is Severity.WARNING]
    assert isinstance(one, Finding)
    assert (one.rule, one.path) == ("device", RTC)
    assert "mc146818rtc" in found.unlisted


def test_without_a_description_versions_are_compared() -> None:
    device = builders.Section(
        "0000:00:01.0/dev", b"\1", [{"name": "x", "type": "uint8", "size": 1}], version=3
    )
    data = builders.stream([device], describe=False)
    machine = read_machine(read_stream(BytesSource(data)))
    layout = {"name": "dev", "version_id": 2, "minimum_version_id": 1, "Fields": []}
    document = {"vmschkmachine": {"Name": "pc-test"}, "dev": {"Description": layout}}
    assert errors(judged(machine, document)) == [("version", "section:0000:00:01.0/dev")]
    layout["version_id"] = 3
    assert judged(machine, document).accepted


def test_an_array_without_elements() -> None:
    # The DS1225Y of a Magnum has none in QEMU 7.2; the stream has a section without bytes.
    stream = builders.stream([builders.Section("nvram", b"", [])])
    machine = read_machine(read_stream(BytesSource(stream)))
    contents = {"field": "contents", "version_id": 0, "field_exists": False, "size": 1}
    layout = {"name": "nvram", "version_id": 1, "minimum_version_id": 0, "Fields": [contents]}
    document = {"vmschkmachine": {"Name": "pc-test"}, "ds1225y": {"Description": layout}}
    assert judged(machine, document).findings == ()
    contents["field"] = "chip_size"
    (found,) = judged(machine, document).findings
    assert (found.rule, found.severity) == ("field", Severity.WARNING)


def test_what_became_unused_bytes() -> None:
    fields = [{"name": name, "type": "uint32", "size": 4} for name in ("irq", "dma")]
    device = builders.Section("dev", bytes(8), fields)
    machine = read_machine(read_stream(BytesSource(builders.stream([device]))))
    unused = {"field": "unused", "version_id": 0, "field_exists": False, "size": 8}
    layout = {"name": "dev", "version_id": 1, "minimum_version_id": 1, "Fields": [unused]}
    document = {"vmschkmachine": {"Name": "pc-test"}, "dev": {"Description": layout}}
    assert judged(machine, document).findings == ()
    unused["size"] = 7
    assert not judged(machine, document).accepted
