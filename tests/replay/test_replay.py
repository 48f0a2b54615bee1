"""Plans on the real KVM of a box, held against the model."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from qemu_svm.lab.kvm import InBox
from qemu_svm.model import plans
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.observed import comparable, differences, flat
from qemu_svm.model.profiles import PROFILES
from qemu_svm.model.simulate import Simulation, simulate
from qemu_svm.replay.compare import Comparison, Mismatch, compare
from qemu_svm.replay.conform import Guest, conform
from qemu_svm.replay.job import ReplayJob, ReplayOptions, ReplayResult, kernel_of, profile_of
from qemu_svm.replay.memory import with_idt
from qemu_svm.replay.replay import against_model, perform
from tests.model.recorded import Recording
from tests.model.test_recorded import disagreement

SEED, SEQUENCES = 20261, 50
PLANS = {
    "qemu": (None, "exit"),
    "selftests": (None, "exit"),
    "cpuid,sregs:l1,nested,sregs,regs,run": (None, "exit"),
    "cpuid,sregs,nested:@0x58/4=0,regs": ("nested:@0x58/4=0", None),
    "cpuid,nested,sregs": ("nested", None),
    "cpuid,sregs,nested:@0xc/4=0x10040000:@0x48/8=0x3000000,regs,run": (None, "INTERNAL_ERROR"),
    "cpuid,sregs,nested,regs,nested:flags=0x100,get:size=64": ("get:size=64", None),
    "cpuid,sregs,nested:flags=0x1:@0x550=0x101008,regs,run": (None, "exit"),
}


Run = tuple[ReplayJob, ReplayResult, Simulation, Comparison]


def replayed(target: InBox, guest: Guest, texts: list[str], *, shorten: bool = False,
             seconds: float = 60) -> list[Run]:  # fmt: skip
    options = ReplayOptions(seconds=seconds, shorten=shorten, emulated=True)
    jobs = [
        ReplayJob(str(number), guest.saved, plans.parse(text), options)
        for number, text in enumerate(texts)
    ]
    probe = target.probe()
    results = perform(target, guest.ram, jobs, probe)
    return [
        (job, result, *against_model(job, guest.ram, probe, result))
        for job, result in zip(jobs, results, strict=True)
    ]


def test_the_cpuid_of_a_vcpu_that_has_run_stays(in_box: InBox, paged: Guest) -> None:
    again = ["cpuid,sregs,nested,run,cpuid,run", "cpuid,sregs,nested,run,cpuid:maxphyaddr=36,run"]
    for (_, seen, _, comparison), errno in zip(
        replayed(in_box, paged, again, shorten=True), (None, "EINVAL"), strict=True
    ):
        assert comparison.first() is None
        assert [step.errno for step in seen.steps] == [*[None] * 4, errno, None]
        assert len(comparison.steps) == 6


@pytest.mark.parametrize("name", ["plain", "paged"])
def test_plans_end_as_the_model_says(
    in_box: InBox, name: str, request: pytest.FixtureRequest
) -> None:
    guest: Guest = request.getfixturevalue(name)
    for (errnos, ran), (one, seen, _, comparison) in zip(
        PLANS.values(), replayed(in_box, guest, list(PLANS)), strict=True
    ):
        assert comparison.first() is None, one.steps
        assert seen.end == "done"
        assert [step.step.text for step in seen.steps if step.errno] == ([errnos] if errnos else [])
        assert [step.run.result for step in seen.steps if step.run] == ([ran] if ran else [])


def test_l1_gets_its_own_registers_back(in_box: InBox, paged: Guest) -> None:
    """L2 runs its own code to its CPUID, then L1 has control."""
    ((_, seen, _, _),) = replayed(in_box, paged, ["qemu"])
    last = seen.steps[-1]
    l1 = paged.saved.l1()
    assert last.run is not None
    assert int.from_bytes(last.run.vmcb12[0x70:0x78], "little") == 0x72
    for name in ("rip", "rsp", "rax"):
        assert last.state[f"regs.{name}"] == l1.get(name)
        assert last.state[f"regs.{name}"] != paged.saved.regs[name]
    assert last.state["sregs.cr3"] == l1.get("cr3") != paged.saved.sregs.get("cr3")
    # vmcb12's own save area received L2's.
    assert int.from_bytes(last.run.vmcb12[0x550:0x558], "little") == paged.saved.sregs.get("cr3")


def test_a_guest_that_never_leaves_is_got_back(in_box: InBox, plain: Guest) -> None:
    """L2's tables do not intercept anything here, so its loop goes on."""
    plan = "cpuid,sregs,nested:@0xc/4=0,regs,run,get"
    ((_, seen, _, comparison),) = replayed(in_box, plain, [plan], seconds=0.5)
    ran = seen.steps[-2].run
    assert ran is not None
    assert ran.result == "hang"
    assert seen.steps[-1].errno is None
    assert comparison.steps[-1].open == "the guest's code decided how KVM_RUN ended (hang)"


WAITS = "the vCPU is halted and no event arrived"
BY_CODE = "the guest's code decided how KVM_RUN ended"


@pytest.mark.parametrize(
    ("plan", "model", "kernel", "why"),
    [
        ("cpuid,sregs,regs,nested,mpstate:1,run", "waits", "hang", f"{BY_CODE} (hang)"),
        ("mpstate:2,cpuid,sregs,regs,nested,run", "waits", "hang", f"{BY_CODE} (hang)"),
        ("cpuid,sregs,regs,nested,mpstate:3,run", "exit", "hang", WAITS),
        ("cpuid,sregs,regs,nested,mpstate:4,run", "exit", "SHUTDOWN", f"{BY_CODE} (SHUTDOWN)"),
        # Nested paging of an L1 without long mode.
        ("cpuid,sregs,nested:@0x4d0=0x1100,cpuid,regs,run", "EIO", "EIO", f"{BY_CODE} (EIO)"),
        ("cpuid,sregs,nested,cpuid,regs,run", "EFAULT", "EFAULT", f"{BY_CODE} (EFAULT)"),
    ],
)
def test_a_run_that_never_reaches_l2(
    in_box: InBox, paged: Guest, plan: str, model: str, kernel: str, why: str
) -> None:
    seconds = 0.5 if kernel == "hang" else 30
    ((_, seen, simulation, comparison),) = replayed(
        in_box, paged, [plan], shorten=True, seconds=seconds
    )
    ran = seen.steps[-1].run
    simulated = simulation.results[-1].outcome
    assert ran is not None
    assert simulated is not None
    assert (simulated.result, ran.result) == (model, kernel)
    assert comparison.first() is None
    assert comparison.steps[-1].open == why


def test_a_difference_is_found_and_named(in_box: InBox, plain: Guest) -> None:
    """The real kernel is a 6.1; the model of another one must be told from it."""
    text = "cpuid,sregs,nested:flags=0x103,regs"
    one = ReplayJob("0", plain.saved, plans.parse(text), ReplayOptions(emulated=True))
    probe = in_box.probe()
    assert kernel_of(probe).startswith("6.1.")
    assert profile_of(probe).row == "6.1"
    (result,) = perform(in_box, plain.ram, [one], probe)
    host = Host(cpuid=probe.features)
    wrong = simulate(PROFILES["5.10"], plain.saved, one.steps, host=host, backed=plain.ram.backed)
    found = compare(wrong, result, shortened=False).first()
    assert found == (1, Mismatch("regs.rdx", 0, 0x600))


def test_random_sequences_agree_outside_and_inside(
    in_box: InBox, plain: Guest, paged: Guest
) -> None:
    recorded = io.StringIO()
    report = conform(
        in_box, [plain, paged], sequences=SEQUENCES, seed=SEED, emulated=True, inside=True,
        record=recorded,
    )  # fmt: skip
    assert [(one.shrunk, one.mismatch) for one in report.disagreements] == []
    assert (report.sequences, report.ends["done"]) == (SEQUENCES, SEQUENCES)
    assert report.compared > 5 * SEQUENCES
    lines = [json.loads(line) for line in recorded.getvalue().splitlines()]
    assert len(lines) == SEQUENCES
    assert all(len(one["results"]) == len(one["plan"].split(",")) for one in lines)


def test_recordings_made_here_have_the_format_of_the_others(in_box: InBox, plain: Guest) -> None:
    recorded = io.StringIO()
    conform(in_box, [plain], sequences=12, seed=3, emulated=True, record=recorded)
    for line in recorded.getvalue().splitlines():
        entry = json.loads(line)
        assert set(entry) <= {"id", "guest", "plan", "results", "irqchip"}
        assert disagreement(Recording("6.1", entry, plain.saved)) is None


def test_flat_names_are_what_kvm_shows(in_box: InBox, plain: Guest) -> None:
    ((one, seen, _, _),) = replayed(in_box, plain, ["cpuid,sregs,nested,regs,msrs"])
    model = simulate(PROFILES["6.1"], plain.saved, one.steps, backed=plain.ram.backed)
    ours = flat(model.results[-1].state, split=True)
    theirs = seen.steps[-1].state
    assert set(ours) <= set(theirs)
    assert {name.partition(".")[0] for name in theirs} == {
        "nested", "ctl", "l1", "shared", "sregs", "regs", "msr", "smm", "shadow",
    }  # fmt: skip
    for name in set(theirs) - set(ours):
        assert name.startswith("ctl."), name  # fields that this kernel does not cache
        assert comparable(name, theirs[name]) == 0
    wrong = dict(theirs, **{"l1.cr3": 1, "sregs.cs": [0, 0, 0, 0]})
    assert differences(ours, wrong) == ["l1.cr3", "sregs.cs"]


OUTSIDE = "vmcb_pa=0x7ff000000"  # no memory
KNOWN = {
    # L1's CR0 after guest mode was left, and two runs of L1.
    "cpuid,sregs:cr0=0x80010011,nested,regs,nested:flags=0x100,run,run": ["l1", "l1"],
    # L1 does not intercept CPUID, so L2 stays.
    "cpuid,sregs,nested:@0xc/4=0,regs,run,get,run": ["l2", "l2"],
    # #GP instead of #VMEXIT: L2's own handler, none, and one that L1 intercepts.
    f"cpuid,sregs,nested:{OUTSIDE},regs,run,get": ["l2"],
    f"cpuid,sregs:idt.base=0:idt.limit=0,nested:{OUTSIDE},regs,run,get": ["SHUTDOWN"],
    f"cpuid,sregs,nested:{OUTSIDE}:@0x8/4=0x2000,regs,run": ["hang"],
    # The reset vector.
    "run,run": ["l1", "l1"],
}


def test_where_the_code_is_known_all_is_compared(in_box: InBox, plain: Guest) -> None:
    known = replace(plain, saved=with_idt(plain.ram.read, plain.saved))
    runs = replayed(in_box, known, list(KNOWN), shorten=True, seconds=5)
    for (text, ends), (_, seen, simulation, comparison) in zip(KNOWN.items(), runs, strict=True):
        model = [one.outcome.result for one in simulation.results if one.outcome is not None]
        assert (comparison.first(), model) == (None, ends), text
        memory = text.startswith("run")  # this guest has none at the reset vector
        assert (comparison.open is not None) is (memory or ends == ["hang"]), text
        assert seen.end == "done"
