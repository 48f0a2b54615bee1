"""The programming interface: ``import qemu_svm as svm`` and nothing else."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

import qemu_svm as svm
from qemu_svm.lab import Box
from qemu_svm.lab import kvm as targets
from qemu_svm.lab.kvm import InBox
from tests.conftest import CAPTURES, ROOT, STREAMS, Run
from tests.test_rooms import ROOMS

CAPTURE = str(STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst")
AGAIN = str(STREAMS / "qemu10.0-linux6.12-nested-npt.resaved.mig.zst")
LOG = str(STREAMS / "qemu10.0-linux6.12-nested-npt.restore-ioctls.log.zst")
LIBRARIES = {"click", "rich", "construct", "zstandard", "asyncio"}


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys; before = set(sys.modules); import qemu_svm; print(*set(sys.modules)-before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & LIBRARIES
    assert {name for name in done.stdout.split() if name.startswith("qemu_svm")} == {"qemu_svm"}


def test_no_name_is_hidden_by_a_room() -> None:
    assert not set(svm.__all__) & set(ROOMS)
    for room in ROOMS:
        import_module(f"qemu_svm.{room}")
    for name in svm.__all__:
        found = getattr(svm, name)
        assert callable(found), name
        assert not inspect.ismodule(found), name


def test_timeouts_are_those_of_qmp() -> None:
    from qemu_svm.qmp import timeouts

    for function in (svm.connect, svm.capture_stream):
        parameters = inspect.signature(function).parameters
        assert parameters["timeout"].default == timeouts.ANSWER
    assert inspect.signature(svm.connect).parameters["connect_timeout"].default == timeouts.CONNECT


def test_opening_a_stream_imports_no_client_of_qmp() -> None:
    code = "import sys, qemu_svm as svm; svm.open; print('qemu.qmp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"


def test_all_errors_are_offered() -> None:
    classes = vars(import_module("qemu_svm.errors")).values()
    ours = {one.__name__ for one in classes if inspect.isclass(one) and issubclass(one, Exception)}
    assert ours <= set(svm.__all__)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'opne'"):
        _ = svm.opne  # type: ignore[attr-defined]
    assert set(svm.__all__) <= set(dir(svm))


def test_the_page_documents_exactly_the_names() -> None:
    page = (ROOT / "docs/api.md").read_text()
    documented = re.findall(r"^#+ `(?:svm\.)?(\w+)", page, re.MULTILINE)
    errors = re.findall(r"^\| `(\w+)` \|", page.partition("## Errors")[2], re.MULTILINE)
    assert sorted(documented + errors) == sorted(svm.__all__)


def blocks() -> list[str]:
    page = (ROOT / "docs/api.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [b for b in blocks() if "socket" not in b and "host" not in b])
def test_the_examples_of_the_page_run(code: str, tmp_path: Path) -> None:
    for name, target in (("dump.bin.zst", CAPTURE), ("a.bin.zst", CAPTURE), ("b.bin.zst", AGAIN)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "ioctls.log.zst").symlink_to(LOG)
    done = subprocess.run(
        [sys.executable, "-c", f"import qemu_svm as svm\n{code}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0
    for line in re.findall(r"# prints: (.*)", code):
        assert line in done.stdout


def test_facts_of_the_captures(capture: dict[str, Any]) -> None:
    facts = capture["facts"]
    with svm.open(STREAMS / capture["file"]) as dump:
        assert dump.complete
        assert dump.problems == dump.damage == ()
        nested = dump.vcpus[0].nested
        assert nested is not None
        assert nested.control.asid == facts["control"]["asid"]
        assert hex(dump["vcpu0.nested.l1_save.cr3"]) == facts["l1_save"]["cr3"]
        assert dump["vcpu0.rip"].value == dump.vcpus[0].registers.rip
        assert dump.vcpu(0) is dump.vcpus[0]


@pytest.mark.parametrize("name", [entry["file"] for entry in CAPTURES])
def test_code_at_the_rip_of_l1_is_in_memory(name: str) -> None:
    with svm.open(STREAMS / name) as dump:
        nested = dump.vcpus[0].nested
        assert nested is not None
        # The guests of the captures map memory one to one; VMRUN (0f 01 d8) is just before.
        code = dump.memory.read(nested.l1_save.rip - 3, 16)
        assert code[:3] == b"\x0f\x01\xd8"
        assert dump.memory.read(0x10_0000 - 8, 16)[8:] == dump.memory.read(0x10_0000, 8)


RESULTS: dict[str, Callable[[svm.Dump], Any]] = {
    "inspect": lambda dump: dump.inspect(),
    "inspect --ram": lambda dump: dump.inspect(ram=True),
    "check": lambda dump: dump.check(),
    "check --kernel 6.1 --qemu 5.0": lambda dump: dump.check("6.1", qemu="5.0"),
    "simulate": lambda dump: dump.simulate(),
    "simulate --kernel all --plan selftests": lambda dump: dump.simulate("selftests", kernel="all"),
    "ram": lambda dump: dump.pages(),
    "show": lambda dump: dump.show("vcpu0.nested.control"),
}


@pytest.mark.parametrize("verb", RESULTS)
def test_a_result_is_what_the_verb_prints(verb: str, svmstream: Run) -> None:
    path = ["vcpu0.nested.control"] if verb == "show" else []
    printed = json.loads(svmstream(*verb.split(), "--json", CAPTURE, *path).stdout)
    with svm.open(CAPTURE) as dump:
        result = RESULTS[verb](dump)
        assert json.loads(json.dumps(result.to_json())) == printed
    # Results stay valid after the dump is closed.
    assert json.loads(json.dumps(result.to_json())) == printed


def test_schemas() -> None:
    assert "mem read" in svm.schema_verbs()
    validator = jsonschema_rs.Draft202012Validator(svm.schema("inspect"))
    with svm.open(CAPTURE) as dump:
        assert validator.is_valid(dump.inspect().to_json())
    with pytest.raises(svm.PathError, match="no verb 'inspct'") as caught:
        svm.schema("inspct")
    assert caught.value.near[0] == "inspect"


def test_results_are_frozen() -> None:
    with svm.open(CAPTURE) as dump:
        for make in RESULTS.values():
            with pytest.raises((AttributeError, TypeError)):
                make(dump).verb = "other"
        with pytest.raises(TypeError):
            dump.vcpus[0].registers["rip"] = 1  # type: ignore[index]


def test_diff_of_dumps_and_of_inputs(svmstream: Run) -> None:
    printed = json.loads(svmstream("diff", "--json", "--ram", CAPTURE, AGAIN).stdout)
    assert svm.diff(CAPTURE, AGAIN, ram=True).to_json() == printed
    with svm.open(CAPTURE) as a, svm.open(AGAIN) as b:
        found = svm.diff(a, b)
        assert not found.same
        assert [one.path for one in found.differences] == [
            one.path for one in svm.diff(CAPTURE, Path(AGAIN)).differences
        ]
        assert a.memory.read(0x1000, 1) == b.memory.read(0x1000, 1)  # both are still open
    masked = svm.diff(CAPTURE, AGAIN, mask=[one.path for one in found.differences])
    assert masked.same


def test_a_trace(svmstream: Run) -> None:
    judged = svm.judge_trace(LOG)
    assert judged.clean
    assert judged.to_json() == json.loads(svmstream("trace", "--json", LOG).stdout)


def test_a_replay_in_an_emulated_host(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "InBox", lambda *_, **__: InBox(box))  # the one that is up
    with svm.open(CAPTURE) as dump:
        done = svm.replay_plan(dump, kernel="6.1", compare=True)
        assert done.good
        assert [step.errno for step in done.result.steps] == [None] * len(done.result.steps)
        assert done.comparison is not None
        assert done.to_json()["steps"]
        with pytest.raises(svm.PathError):
            svm.replay_plan(dump, vcpu=3)
    with pytest.raises(svm.PlanError):
        svm.replay_plan(CAPTURE, "sregz", kernel="6.1")
    with pytest.raises(svm.EnvironmentFault):
        svm.replay_plan(CAPTURE, device="/dev/null")


def test_memory_that_is_not_there() -> None:
    with svm.open(CAPTURE) as dump:
        with pytest.raises(
            svm.AddressError, match="0x2000000: the guest has no RAM there"
        ) as found:
            dump.memory.read(0x200_0000 - 4, 8)
        assert found.value.address == 0x200_0000
        with pytest.raises(svm.AddressError):
            dump.memory.read(-1, 8)
        assert dump.memory.read(0, 0) == b""


def test_a_dump_after_fork(tmp_path: Path) -> None:
    # The parent and the child read at the same time, from a spooled input as well.
    with svm.open(CAPTURE) as dump:
        expected = dump.memory.read(0, 1 << 20)
    with svm.open(CAPTURE) as dump:
        pid = os.fork()
        same = all(dump.memory.read(0, 1 << 20) == expected for _ in range(5))
        if pid == 0:
            os._exit(0 if same else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert same


def test_files_are_closed() -> None:
    before = os.listdir("/proc/self/fd")
    dump = svm.open(CAPTURE, channels=[AGAIN])
    assert len(os.listdir("/proc/self/fd")) > len(before)
    dump.close()
    dump.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(svm.SourceError):
        svm.open(CAPTURE, channels=["/does/not/exist"])
    assert len(os.listdir("/proc/self/fd")) == len(before)


def calls(tmp_path: Path) -> dict[str, Callable[[], Any]]:
    empty, text = tmp_path / "empty", tmp_path / "text"
    empty.write_bytes(b"")
    text.write_text("not a stream\n")
    there = tmp_path / "there"
    there.write_bytes(b"x")
    dump = svm.open(CAPTURE)
    return {
        "missing": lambda: svm.open(tmp_path / "none"),
        "a folder": lambda: svm.open(tmp_path),
        "empty": lambda: svm.open(empty),
        "text": lambda: svm.open(text),
        "NUL": lambda: svm.open("a\0b"),
        "lender": lambda: svm.open(CAPTURE, description=text),
        "path": lambda: dump["vcpu0.nestde"],
        "no path": lambda: dump[""],
        "vcpu": lambda: dump.vcpu(7),
        "kernel": lambda: dump.check("six"),
        "qemu": lambda: dump.check(qemu="new"),
        "plan": lambda: dump.simulate("cpuid,sregz"),
        "field": lambda: dump.simulate(race={"cr99": 1}),
        "block": lambda: dump.pages(["pc.rom2"]),
        "span": lambda: dump.pages(span=(1, 2)),
        "compat": lambda: dump.compat(tmp_path / "qemu"),
        "compat text": lambda: dump.compat(text),
        "mask": lambda: svm.diff(CAPTURE, text),
        "trace": lambda: svm.judge_trace(CAPTURE),
        "trace text": lambda: svm.judge_trace(text),
        "socket": lambda: svm.capture_stream(str(tmp_path / "socket"), tmp_path / "out"),
        "address": lambda: svm.capture_stream("host:port:x", tmp_path / "out"),
        "option": lambda: svm.capture_stream(
            str(tmp_path / "socket"), there, svm.CaptureOptions(compression="zstd")
        ),
    }


def test_errors_are_ours(tmp_path: Path) -> None:
    for name, call in calls(tmp_path).items():
        with pytest.raises(svm.SvmStreamError) as found:
            call()
        assert str(found.value), name


def test_documents_do_not_depend_on_the_order_of_sets() -> None:
    code = (
        "import json, sys, qemu_svm as svm\n"
        "with svm.open(sys.argv[1]) as dump:\n"
        "    for one in (dump.inspect(), dump.check(), dump.simulate(kernel='all')):\n"
        "        print(json.dumps(one.to_json()))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, CAPTURE],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(printed) == 1
