"""Every entry through which input reaches the package, as a function of bytes.

A target accepts any bytes and ends quietly, or raises what is a bug: an exception that is
not one of :mod:`qemu_svm.errors`, or a contradiction between two ways to read the same.
``tools/fuzz.py`` runs them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

from qemu_svm.errors import SvmStreamError
from qemu_svm.findings.inspection import findings
from qemu_svm.limits import Limits
from qemu_svm.machine import Machine, read_machine
from qemu_svm.machine.paths import find
from qemu_svm.nested.state import NestedState
from qemu_svm.source import BytesSource, FileSource, open_source
from qemu_svm.stream import Walk, read_stream
from qemu_svm.stream.ram.coverage import coverage
from qemu_svm.stream.ram.problems import all_problems
from qemu_svm.stream.ram.read import Ram, read_ram
from qemu_svm.stream.ram.scan import Scanner, scan_compiled, scan_records, scan_runs
from tests.fuzz import inputs
from tests.support import builders

LIMITS = Limits(spool_bytes=1 << 20, window_bytes=1 << 20, section_values=1 << 12)


class Target(NamedTuple):
    """A function of bytes, inputs to begin with, and words that occur in its input.

    :param executions: how many make a round of ``make fuzz``.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()
    executions: int = 50_000


def changed(rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return one of the seeds with random changes."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 40))
        how = rng.randrange(8 if words else 6)
        if how == 0:
            data[at : at + 1] = bytes((rng.randrange(256),))
        elif how == 1:
            data[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
        elif how == 2:
            del data[at : at + size]
        elif how == 3:
            data[at:at] = data[at : at + size] * rng.choice((1, 2, 9))
        elif how == 4:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[at : at + size] = other[start : start + size * 4]
        elif how == 5:
            del data[at:]
        else:
            data[at : at + rng.choice((0, size))] = rng.choice(words)
    return bytes(data)


# Streams and what is around them


def _read_whole(data: bytes, walk: Walk) -> Machine:
    machine = read_machine(read_stream(BytesSource(data), LIMITS, walk))
    for finding in findings(machine):
        assert finding.offset is None or 0 <= finding.offset <= len(data), finding
    for record in machine.stream.records:
        assert 0 <= record.offset <= record.end <= len(data), record
    for record in machine.stream.sections():
        with contextlib.suppress(SvmStreamError):
            machine.stream.values(record)
    return machine


def stream(data: bytes) -> None:
    ends = []
    for walk in Walk:
        with contextlib.suppress(SvmStreamError):
            read = _read_whole(data, walk).stream
            ends.append((read.complete, read.version))
    assert len(ends) in (0, len(Walk)), ends


def _opened(data: bytes, name: str = "") -> None:
    fd = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        with (
            contextlib.suppress(SvmStreamError),
            open_source(f"/proc/self/fd/{fd}{name}", LIMITS) as source,
        ):
            read_machine(read_stream(source, LIMITS))
            source.size()
    finally:
        os.close(fd)


def layers(data: bytes) -> None:
    if data[:1] and data[0] < 128:
        data = inputs.packed(data[0], data[1:])
    _opened(data[1:] if data[:1] == b"\x80" else data)


def libvirt(data: bytes) -> None:
    _opened(b"LibvirtQemud" + data)


def qcow2(data: bytes) -> None:
    name = ("", "#0", "#s0", "#@512")[data[0] & 3] if data else ""
    _opened(b"QFI\xfb" + data[1:], name)


# RAM


def _pages(ram: Ram) -> list[bytes | str]:
    out: list[bytes | str] = []
    for block in range(len(ram.entries)):
        for number in range(min(ram.pages_of(block), 24)):
            try:
                out.append(ram.read_page(block, number))
            except SvmStreamError as error:
                out.append(str(error))
    return out


def _looked_at(data: bytes, scan: Scanner | None, *, in_file: bool = False) -> list[object]:
    with contextlib.ExitStack() as owned:
        source: BytesSource | FileSource = BytesSource(data)
        if in_file:
            fd = os.memfd_create("input", os.MFD_CLOEXEC)
            source = owned.enter_context(FileSource(fd, "<memory>"))
            os.write(fd, data)
        read = read_stream(source, LIMITS, Walk.RAM)
        more: dict[str, Any] = {} if scan is None else {"scan": scan}
        ram = owned.enter_context(read_ram(read, **more))
        covered: object
        try:
            covered = [(one.zero, one.never, one.data, one.again) for one in coverage(ram)]
        except SvmStreamError as error:
            covered = str(error)
        problems = [str(problem) for problem in all_problems(read, ram)]
        return [list(ram.runs), problems, ram.counts(), covered, _pages(ram)]


def ram(data: bytes) -> None:
    whole = inputs.ram_stream(data)
    one = _looked_at(whole, scan_records)
    assert one == _looked_at(whole, scan_runs)
    assert one == _looked_at(whole, scan_compiled)
    assert one == _looked_at(whole, None, in_file=True)


def mapped(data: bytes) -> None:
    whole = inputs.mapped_stream(data)
    with contextlib.suppress(SvmStreamError):
        assert _looked_at(whole, scan_runs) == _looked_at(whole, None, in_file=True)


def _with_channels(main: bytes, others: list[bytes]) -> None:
    with contextlib.suppress(SvmStreamError):
        read = read_stream(BytesSource(main), LIMITS)
        with read_ram(read, [BytesSource(one) for one in others]) as ram:
            all_problems(read, ram)
            with contextlib.suppress(SvmStreamError):
                coverage(ram)
            _pages(ram)


@cache
def _multifd_main() -> bytes:
    config = builders.configuration("pc")
    parts = [builders.word(0x200)] * 3
    return builders.stream([], parts, {"pc.ram": 8 * builders.PAGE}, config=config)


def multifd(data: bytes) -> None:
    content = b"content!" * (builders.PAGE // 8 * 4)
    first, _, second = data.partition(b"\xff\xfe\xff")
    _with_channels(_multifd_main(), [first + content, second] if second else [first + content])


def postcopy(data: bytes) -> None:
    first, _, second = data.partition(b"\xff\xfe\xff")
    zeros = builders.zero(0, "pc.ram") + builders.zero(builders.PAGE)
    whole = builders.stream([], [zeros, first], {"pc.ram": 8 * builders.PAGE}, describe=False)
    at = (
        whole.index(builders.referring(2, 2, builders.EOS)[:5] + first)
        if first
        else len(whole) - 20
    )
    records = b"".join(inputs.ram_records(second))
    _with_channels(whole[:at] + first + whole[at:], [records, second])


# Descriptions, values, nested state


def vmdesc(data: bytes) -> None:
    from qemu_svm.stream.vmstate import description

    with contextlib.suppress(SvmStreamError):
        found = description.parse(data, 0, LIMITS)
        for device in found.devices:
            with contextlib.suppress(SvmStreamError):
                description.payload_size(device.layout)


def dump(data: bytes) -> None:
    from qemu_svm.findings.compat import compatibility
    from qemu_svm.stream.vmstate.dump import parse_dump

    with contextlib.suppress(SvmStreamError):
        parsed = parse_dump(data, LIMITS)
        compatibility(_small_machine(), parsed, [])
        read_machine(read_stream(BytesSource(_undescribed()), LIMITS, borrowed=parsed))


@cache
def _small_machine() -> Machine:
    return read_machine(read_stream(BytesSource(next(inputs.small_streams()))))


@cache
def _undescribed() -> bytes:
    return builders.stream(inputs.SECTIONS, describe=False)


def vmstate(data: bytes) -> None:
    from qemu_svm.stream.reader import Reader
    from qemu_svm.stream.vmstate import description
    from qemu_svm.stream.vmstate.decode import decode

    text, _, payload = data.partition(b"\0")
    with contextlib.suppress(SvmStreamError):
        for device in description.parse(text, 0, LIMITS).devices:
            decode(Reader(BytesSource(payload), 0), device.layout, device.name, LIMITS)


_KERNELS = ("5.10", "5.15", "6.1", "6.12", "7.2")


def nested(data: bytes) -> None:
    from qemu_svm.findings.check import check
    from qemu_svm.findings.verdict import judge_restore
    from qemu_svm.model.profiles import profiles
    from qemu_svm.model.scenario import scenario

    how, width, patches = data[:1], data[1:2], data[2:]
    bits = width[0] % 21 + 32 if width else 40
    # With the registers and everything that looks at them, which takes ten times as long.
    whole = zlib.crc32(data) % 24 == 0
    if whole:
        payload = inputs.patched(inputs.vcpu_payload(), patches)
        machine = _read_whole(inputs.vcpu_stream(payload), Walk.QUICK)
    else:
        machine = _with_nested(patches)
    with contextlib.suppress(SvmStreamError):
        one = profiles(_KERNELS[how[0] % 5] if how else "6.1")
        if whole:
            check(machine, one, maxphyaddr=bits)
        for vcpu in machine.vcpus:
            if vcpu.nested is None:
                continue
            if whole:
                vcpu.nested.tree()
            order = ("sregs,nested,run", "nested,sregs:l1", "nested,vmrun", "smi,nested,rsm")[
                len(data) % 4
            ]
            judge_restore(scenario(machine, vcpu, order, maxphyaddr=bits).simulate(one[0]))


def _with_nested(patches: bytes) -> Machine:
    machine = _nested_machine()
    vcpu = machine.vcpus[0]
    assert vcpu.nested is not None
    head = struct.pack(
        ">HHIQ", vcpu.nested.flags, vcpu.nested.format, vcpu.nested.size, vcpu.nested.vmcb_pa
    )
    state = inputs.patched(head + vcpu.nested.vmcb, patches)
    flags, form, size, address = struct.unpack(">HHIQ", state[:16])
    changed = NestedState(flags, form, size, address, state[16:] if flags & 1 else b"")
    return replace(machine, vcpus=(replace(vcpu, nested=changed),))


@cache
def _nested_machine() -> Machine:
    return read_machine(read_stream(BytesSource(inputs.vcpu_stream(inputs.vcpu_payload()))))


def plans(data: bytes) -> None:
    from qemu_svm.findings.verdict import judge_restore
    from qemu_svm.model import plans as language
    from qemu_svm.model.profiles import profiles
    from qemu_svm.model.scenario import scenario

    machine = _nested_machine()
    with contextlib.suppress(SvmStreamError):
        text = data.decode("utf-8", "surrogateescape")
        language.parse(text)
        profile = profiles(_KERNELS[len(data) % 5])[0]
        judge_restore(scenario(machine, machine.vcpus[0], text).simulate(profile))


def paths(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for machine in (_nested_machine(), _small_machine()):
        with contextlib.suppress(SvmStreamError):
            find(machine, text)


# Logs


def trace(data: bytes) -> None:
    from qemu_svm.render.text.trace import render
    from qemu_svm.trace.model import read_trace

    with contextlib.suppress(SvmStreamError):
        found = read_trace(BytesSource(data), LIMITS)  # type: ignore[arg-type]
        json.dumps(found.to_json())
        for line in render(found, verbose=True):
            _harmless(str(line))


def vmruns(data: bytes) -> None:
    from qemu_svm.render.text.vmruns import render
    from qemu_svm.vmruns.log import read_log
    from qemu_svm.vmruns.results import RunsReport
    from qemu_svm.vmruns.select import Selection

    with contextlib.suppress(SvmStreamError):
        log = read_log(BytesSource(inputs.sealed_log(data)), limits=LIMITS)
        report = RunsReport(log, Selection())
        json.dumps(report.to_json())
        for line in render(report, verbose=True):
            _harmless(str(line))


def why(data: bytes) -> None:
    from qemu_svm.diagnosis.diagnose import diagnose
    from qemu_svm.diagnosis.facts import read_facts
    from qemu_svm.render.text.why import render

    with contextlib.suppress(SvmStreamError):
        facts = read_facts((), BytesSource(data), LIMITS)
        answer = diagnose(facts, None, log="log", source=None, destination="6.12.100")
        json.dumps(answer.to_json())
        for line in render(answer, verbose=True):
            _harmless(str(line))


def recording(data: bytes) -> None:
    from qemu_svm.recording.recording import read_recording, writer

    with contextlib.suppress(SvmStreamError):
        found = read_recording(BytesSource(data))
        records = list(found)
        for form in ("binary", "jsonl"):
            out = writer(io.BytesIO(), form, found.header)
            for record in records:
                out.write(record)


# State that is no stream


def states(data: bytes) -> None:
    from qemu_svm import api

    if data[:1] == b"{":
        content = data
    elif data[:1] and data[0] & 1:
        content = json.dumps(inputs.edited(inputs.document(), data[1:])).encode()
    else:
        content = inputs.patched(inputs.raw_state(), data[1:])
    fd = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        with (
            contextlib.suppress(SvmStreamError),
            api.open(f"/proc/self/fd/{fd}", limits=LIMITS) as dump,
        ):
            json.dumps(dump.inspect().to_json())
            dump.simulate("nested,run", kernel=_KERNELS[len(data) % 5])
    finally:
        os.close(fd)


# Looks into kernel memory


def looks(data: bytes) -> None:
    from qemu_svm.inside.apart import compare
    from qemu_svm.inside.kept import parse_kept
    from qemu_svm.render.text import diff_inside, inside

    content = data
    if data[:1] != b"{":
        content = json.dumps(inputs.edited(json.loads(inputs.look()), data)).encode()
    with contextlib.suppress(SvmStreamError):
        found = parse_kept(content, "input")
        json.dumps(found.to_json())
        real = parse_kept(inputs.look(), "real")
        apart = compare(found, real)
        json.dumps(apart.to_json())
        lines = [*inside.render(found), *inside.render(found, verbose=True)]
        lines += diff_inside.render(apart, all_differences=True)
        assert not any("\x1b" in line.plain for line in lines)


# QEMU's answers, and the agent in a box


def qmp(data: bytes) -> None:
    from qemu_svm.qmp import answers, features

    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return
    readers = (
        answers.version,
        answers.status,
        answers.migration,
        answers.capabilities,
        answers.commands,
        features.compressions,
        partial(answers.mapping, what="query"),
    )
    for reader in readers:
        with contextlib.suppress(SvmStreamError):
            reader(answer)


def frames(data: bytes) -> None:
    from qemu_svm.lab.box.inside.frames import FrameError, Reader, number, value

    reader = Reader()
    with contextlib.suppress(FrameError):
        for at in range(0, len(data), 7):
            for _channel, _kind, payload in reader.feed(data[at : at + 7]):
                for parse in (number, value):
                    with contextlib.suppress(FrameError):
                        parse(payload)


# The command line

_VERBS: tuple[tuple[str, ...], ...] = (
    ("inspect", "FILE"),
    ("inspect", "--json", "FILE"),
    ("inspect", "--ram", "-v", "FILE"),
    ("show", "FILE", "ARG"),
    ("show", "--json", "FILE", "ARG"),
    ("ram", "FILE"),
    ("ram", "--json", "FILE"),
    ("diff", "FILE", "OTHER"),
    ("diff", "--json", "--ram", "OTHER", "FILE"),
    ("check", "FILE"),
    ("check", "--json", "FILE", "--kernel", "ARG"),
    ("simulate", "FILE"),
    ("simulate", "--json", "FILE", "--plan", "ARG"),
    ("trace", "FILE"),
    ("trace", "--json", "FILE"),
    ("vmruns", "-v", "FILE"),
    ("vmruns", "--json", "FILE"),
    ("mem", "layout", "FILE"),
    ("mem", "read", "FILE", "ARG"),
    ("mem", "translate", "FILE", "ARG"),
    ("mem", "map", "FILE"),
    ("compat", "OTHER", "--qemu", "FILE"),
    ("inspect", "OTHER", "--description", "FILE"),
    ("ram", "OTHER", "--channel", "FILE"),
    ("mem", "search", "FILE", "ARG"),
    ("check", "OTHER", "--maxphyaddr", "ARG"),
    ("inspect", "OTHER", "--limit", "ARG"),
    ("diff", "FILE", "OTHER", "--mask", "ARG"),
    ("why", "FILE"),
    ("why", "--json", "--error", "ARG", "OTHER"),
)
_STATUS = range(6)


def _harmless(text: str) -> None:
    assert text.replace("\n", "").replace("\t", "").isprintable(), ascii(text)


@cache
def _folder() -> str:
    return tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


@cache
def _other() -> str:
    path = os.path.join(_folder(), "other.bin")
    with open(path, "wb") as file:
        file.write(inputs.vcpu_stream(inputs.vcpu_payload()))
    return path


def command_line(data: bytes) -> None:
    from qemu_svm import cli

    if not data:
        return
    argument, _, content = data[1:].partition(b"\n\n")
    path = os.path.join(_folder(), "input.bin")
    with open(path, "wb") as file:
        file.write(content)
    words = {"FILE": path, "OTHER": _other(), "ARG": os.fsdecode(argument.replace(b"\0", b""))}
    verb = _VERBS[data[0] % len(_VERBS)]
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    # As the command does it: words of the user may be in a message.
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    before = sys.argv, sys.stdout, sys.stderr
    sys.argv = ["svmstream", *(words.get(word, word) for word in verb)]
    sys.stdout, sys.stderr = out, errors
    try:
        status = cli._run()
        out.flush()
        errors.flush()
    finally:
        sys.argv, sys.stdout, sys.stderr = before
    assert status in _STATUS, status
    shown = bytes(out.buffer.getvalue()).decode()  # type: ignore[attr-defined]
    _harmless(shown)
    _harmless(bytes(errors.buffer.getvalue()).decode())  # type: ignore[attr-defined]
    if "--json" in verb and status in (0, 1):
        json.loads(shown)


def _command_seeds() -> Iterable[bytes]:
    streams = [*inputs.small_streams(), *inputs.containers()]
    files = {"trace": list(_logs()), "vmruns": [log for log in inputs.svmtrace_logs() if log]}
    arguments = (
        b"section:timer",
        b"vcpu0.nested",
        b"@0x40",
        b"0x1000",
        b"l1v:0",
        b"qemu-7.2",
        b"6.1",
        b"40",
    )
    for number, verb in enumerate(_VERBS):
        for at, content in enumerate(files.get(verb[0], streams)):
            yield bytes((number,)) + arguments[at % len(arguments)] + b"\n\n" + content


def _logs() -> Iterable[bytes]:
    vcpu = b"[pid 7] ioctl(11<anon_inode:kvm-vcpu:0>, KVM_"
    yield b"\n".join(
        (
            b"[pid 7] ioctl(9</dev/kvm>, KVM_CREATE_VM, 0) = 10<anon_inode:kvm-vm>",
            b"[pid 7] ioctl(10<anon_inode:kvm-vm>, KVM_CREATE_VCPU, 0) = 11",
            vcpu + b"SET_CPUID2, {nent=1, entries=[...]}) = 0",
            vcpu + b"SET_SREGS, {cs={base=0}, efer=0x1d01}) = 0",
            vcpu + b"SET_NESTED_STATE, 0x7f00) = -1 EINVAL (Invalid argument)",
            vcpu + b"RUN, 0) = 0 <0.1>",
        )
    )
    yield b"\n".join(
        f"kvm_vcpu_ioctl cpu_index 0, type 0x{number:x}, arg 0x7f".encode()
        for number in (0x4090AE82, 0x4138AE84, 0x4080AEBF, 0x4008AE89, 0xAE80)
    )
    yield (
        b" CPU 0/KVM-9 [001] ..... 1.5: sys_enter_ioctl: fd: 0x0b, cmd: 0x4138ae84, arg: 0x7f\n"
        b" CPU 0/KVM-9 [001] ..... 1.6: sys_exit_ioctl: 0x0\n"
        b" CPU 0/KVM-9 [001] ..... 1.7: sys_enter_ioctl(fd: b, cmd: ae80, arg: 0)\n"
        b" CPU 0/KVM-9 [001] ..... 1.8: sys_exit_ioctl: -22\n"
    )
    from tests.recording import recorded

    put = [one for one in recorded.real() if one.number in (26, 27, 32, 36, 46)]
    yield recorded.made(put)
    yield recorded.made(recorded.real(recorded.FIRECRACKER)[-4:], "jsonl")


def _kernel_logs() -> Iterable[bytes]:
    from tests.diagnosis.test_why import LOGS

    for file in sorted(LOGS.iterdir()):
        yield file.read_bytes()[: inputs.LARGEST]
    yield b"qemu-system-x86_64: error while loading state for instance 0x0 of device 'cpu'\n"


def _recordings() -> Iterable[bytes]:
    from tests.recording import recorded

    records = recorded.real()
    few = [one for one in records[:400] if len(getattr(one, "given", b"")) < 300][:12]
    yield recorded.made(few)
    yield recorded.made(few, "jsonl")


def _texts(*texts: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: texts


def _descriptions() -> Iterable[bytes]:
    yield builders.description(inputs.SECTIONS)[5:]
    yield builders.description([inputs.vcpu_entry()])[5:][:3000]


def _ram_seeds() -> Iterable[bytes]:
    yield bytes((0, 0, 3, 1, 1, 4, 8, 0, 4, 0, 0, 0, 2, 0, 6, 0)) + b"\1\0\3\0\1x"
    yield bytes((1, 0, 16, 1, 1, 0, 4, 2, 4, 0, 0, 0, 0, 0, 7, 5, 3, 9, 0, 0, 6, 4, 0, 1))


_WORDS = (
    b"KVM_SET_NESTED_STATE", b"Invalid argument", b"kvm_amd: ", b"VMCB ", b"kvm_nested_vmenter: ",
    b"0x", b"vcpu0", b"EIP=", b"WARNING: CPU: 1 PID: 7 at ", b"failed to set MSR 0x10a to 0x0",
)  # fmt: skip
_JSON = (b'"', b"{", b"[", b"}", b"]", b":", b"null", b"1e999", b"9" * 400, b'"\\ud800"', b"-1")
_FIELDS = (
    b'"fields"',
    b'"subsections"',
    b'"struct"',
    b'"size"',
    b'"type"',
    b'"index"',
    b'"array_len"',
    b'"name"',
    b'"version"',
    b'"instance_id"',
    b'"devices"',
    b'"page_size"',
    b'"vmsd_name"',
    b'"uint64"',
    b'"bool"',
    b'"buffer"',
    b'"struct"',
    b'"compressed"',
    b'"str"',
    b'"nullptr"',
)
_ANSWERS = (
    b'{"qemu":{"major":10,"minor":0,"micro":2},"package":""}',
    b'{"status":"running","running":true}',
    b'{"status":"active","ram":{"mbps":1.5,"transferred":9,"dirty-sync-count":1}}',
    b'[{"capability":"xbzrle","state":false}]',
    b'[{"name":"stop"}]',
    b'[{"values":["none","zlib"]}]',
)
_DUMP = (
    b'{"vmschkmachine":{"Name":"pc"},"timer":{"Name":"timer","version_id":1,"minimum_version_id":1,'
    b'"Description":{"name":"timer","version_id":1,"minimum_version_id":1,"Fields":[{"field":"a",'
    b'"version_id":0,"field_exists":false,"size":4}]}}}'
)

TARGETS: dict[str, Target] = {
    "stream": Target(
        stream,
        inputs.small_streams,
        (b"QEVM", b"\0\0\0\3", b"\1", b"\4", b"\x7e", b"\7", b"\6", b"\x08", b"ram", b"\0" * 8),
        250_000,
    ),
    "nested": Target(nested, _texts(b"\2\x08\x0f\x80\4\0\0\0\0", b"\3\0"), (), 200_000),
    "trace": Target(
        trace,
        _logs,
        (
            b"KVM_SET_NESTED_STATE",
            b"KVM_RUN",
            b"= -1 EINVAL",
            b"<unfinished ...>",
            b"<... ioctl resumed>",
            b"0x4080aebf",
            b"[pid 8]",
            b"cpu_index 1,",
        ),
        200_000,
    ),
    "vmruns": Target(vmruns, inputs.svmtrace_logs, (b"SVMTRACE",), 200_000),
    "command-line": Target(
        command_line, _command_seeds, _JSON + (b"vcpu0", b"section:", b"\n\n"), 200_000
    ),
    "ram": Target(ram, _ram_seeds),
    "vmdesc": Target(vmdesc, _descriptions, _JSON + _FIELDS, 120_000),
    "dump": Target(
        dump, _texts(_DUMP), _JSON + (b'"Fields"', b'"Subsections"', b'"field_exists"', b'"Struct"')
    ),
    "vmstate": Target(
        vmstate,
        lambda: [builders.description([one])[5:] + b"\0" + one.payload for one in inputs.SECTIONS],
        _JSON + _FIELDS,
        120_000,
    ),
    "qcow2": Target(qcow2, lambda: [b"\0" + one[4:] for one in inputs.qcow2_images()]),
    "libvirt": Target(
        libvirt, lambda: [one[12:] for one in inputs.containers() if one.startswith(b"Libvirt")]
    ),
    "layers": Target(
        layers,
        lambda: (
            [b"\x80" + one for one in inputs.containers()]
            + [bytes((how,)) + one for how in (1, 2, 3, 9, 67) for one in inputs.small_streams()]
        ),
    ),
    "multifd": Target(multifd, inputs.channels, (b"\x11\x22\x33\x44", b"pc.ram", b"\xff\xfe\xff")),
    "postcopy": Target(
        postcopy,
        lambda: [b"\xff\xfe\xff" + one for one in _ram_seeds()],
        (b"\xff\xfe\xff", b"pc.ram"),
    ),
    "mapped": Target(
        mapped, _texts(b"\0", b"\1\0\x20\4\0\0\x10\0", b"\0\0\x24\x08\0\0\0\0\0\0\4\0")
    ),
    "plans": Target(
        plans,
        _texts(
            b"qemu",
            b"qemu-7.2",
            b"cpuid,sregs,nested,regs,msrs,run",
            b"sregs:l1,nested:flags=0x1,run",
        ),
        (
            b"sregs",
            b"nested",
            b"vmrun",
            b"smi",
            b"rsm",
            b"msrs",
            b"cpuid",
            b"events",
            b":l1",
            b":flags=",
            b":size=",
            b"9" * 400,
            b"run",
            b"leave",
        ),
    ),
    "paths": Target(
        paths,
        _texts(
            b"vcpu0.nested.control.asid",
            b"section:timer",
            b"@0x40",
            b"timer.ticks",
            b"cpu/nested_state",
        ),
        (b"vcpu", b"nested", b"control", b"l1_save", b"section:", b"@", b"[0]", b"9" * 400),
    ),
    "why": Target(why, _kernel_logs, _WORDS),
    "recording": Target(recording, _recordings, _JSON),
    "states": Target(states, _texts(b"\0\0\2\2\1\0", b"\1\0\7\3", b"\1\1\0\x42"), _JSON),
    "looks": Target(looks, lambda: [inputs.look(), b"\0\0\1\0\7\2"], _JSON, 20_000),
    "qmp": Target(qmp, _texts(*_ANSWERS), _JSON, 120_000),
    "frames": Target(
        frames,
        _texts(b"\1\0\0\0\1\2\0\0\0{}", b"\0\0\0\0\2\4\0\0\0\1\0\0\0"),
        _JSON,
        100_000,
    ),
}
