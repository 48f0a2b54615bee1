"""From what a log and a stream show to answers in the order of their likelihood.

An answer is certain only if the input shows it; likely if something supports it; else it
is one possibility among others, and is called that.  A cause that the kernel concerned
cannot have is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qemu_svm.diagnosis import dump as dumps
from qemu_svm.diagnosis.calls import CallWords
from qemu_svm.diagnosis.dump import DumpMatch, VmcbDump
from qemu_svm.diagnosis.events import rule_of
from qemu_svm.diagnosis.facts import KVM_SAYS, OF_QEMU, Facts, Said
from qemu_svm.diagnosis.kernels import Kernels, change_of, is_bug, repaired, since_words
from qemu_svm.diagnosis.oops import Oops, rules_of
from qemu_svm.diagnosis.results import Answer, KernelSaid, Likelihood, Why
from qemu_svm.diagnosis.signs import (
    COLLECT_DMESG,
    COLLECT_EVENTS,
    COLLECT_KERNEL,
    COLLECT_STRACE,
    COLLECT_STREAM,
    UPDATE,
    msr_reason,
)
from qemu_svm.errors import PathError, PlanError
from qemu_svm.findings.check import check
from qemu_svm.findings.qemus import qemu_plan
from qemu_svm.findings.refusal import explain_refusal
from qemu_svm.findings.refusal_messages import meanings_of
from qemu_svm.findings.rules import RULES
from qemu_svm.machine import Machine
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.kernels.table import BY_ID
from qemu_svm.model.profile import Profile
from qemu_svm.model.profiles import profiles, released
from qemu_svm.nested.exit_codes import exit_name
from qemu_svm.rules import Finding, Severity
from qemu_svm.trace.causes import EFER_SVME, Cause, Circumstances, causes
from qemu_svm.trace.verdict import RuleOutcome

_RANK = {Likelihood.CERTAIN: 0, Likelihood.LIKELY: 1, Likelihood.POSSIBLE: 2}
_PUT = ("SET_SREGS", "SET_NESTED_STATE", "SET_MSRS")
_OF_IOCTL = {
    "SET_NESTED_STATE": ("SET-", "SV-", "C-"), "SET_SREGS": ("R-",), "SET_SREGS2": ("R-",),
    "GET_NESTED_STATE": ("GET-",), "SET_MSRS": ("U-02",), "SET_VCPU_EVENTS": ("U-04",),
    "SET_MP_STATE": ("U-05",), "SET_DEBUGREGS": ("U-03",), "SET_CPUID2": ("U-01",),
    "PUT": ("SET-", "SV-", "C-", "R-", "U-"),
}  # fmt: skip


def diagnose(
    facts: Facts,
    machine: Machine | None = None,
    *,
    log: str | None = None,
    source: str | None = None,
    destination: str | None = None,
) -> Why:
    """Answer what happened and why.

    :param source: the source's kernel; None if it is not known.
    :param destination: the destination's kernel; None for the one that the log names.
    :raises PlanError: no such kernel.
    """
    work = _Work(facts, machine, _kernel(source), _kernel(destination))
    said = None if destination is None else KernelSaid(destination, "--to")
    if destination is None and facts.kernel is not None:
        line, name = facts.kernel
        try:
            work.kernels.destination = _kernel(name)
        except PathError:
            work.too_old = name
        said = KernelSaid(name, "log", line)
    work.run()
    return Why(
        log=log,
        machine=machine,
        facts=facts,
        source=None if source is None else KernelSaid(source, "--from"),
        destination=said,
        answers=_ranked(work.answers),
        happened=tuple(dict.fromkeys(work.happened)),
        collect=tuple(dict.fromkeys(work.collect)),
        dumps=tuple(work.dumps),
        findings=work.findings,
    )


def _kernel(name: str | None) -> Profile | None:
    return None if name is None else profiles(name)[0]


def _ranked(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    # The same cause is told once, with all its evidence and its highest likelihood.
    found: dict[tuple[str, str], Answer] = {}
    for one in answers:
        key = (one.rule, "" if one.rule else one.why)
        old = found.get(key)
        if old is None:
            found[key] = one
            continue
        best, other = (one, old) if _RANK[one.likelihood] < _RANK[old.likelihood] else (old, one)
        evidence = tuple(dict.fromkeys((*old.evidence, *one.evidence)))
        place = other if best.offset is None else best
        found[key] = replace(best, evidence=evidence, offset=place.offset, path=place.path)
    return tuple(sorted(found.values(), key=lambda one: _RANK[one.likelihood]))


class _Work:
    def __init__(
        self,
        facts: Facts,
        machine: Machine | None,
        source: Profile | None,
        destination: Profile | None,
    ) -> None:
        self.facts, self.machine = facts, machine
        self.kernels = Kernels(source, destination)
        self.too_old = ""
        self.answers: list[Answer] = []
        self.happened: list[str] = []
        self.collect: list[str] = []
        self.dumps: list[tuple[VmcbDump, DumpMatch | None]] = []
        self.findings: tuple[Finding, ...] = ()
        self._failing: dict[str, Finding] = {}

    def run(self) -> None:
        if self.too_old:
            self.happened.append(
                f"Linux {self.too_old} does not restore nested SVM state: 5.8 is the first"
            )
        self._check()
        self._trace()
        self._dumps()
        self._events()
        for one in self.facts.oopses:
            self._oops(one)
        self._calls()
        self._messages()
        self._msrs()
        self._signs()
        self._stream()
        self._next()

    # --- helpers ---

    def _add(
        self,
        likelihood: Likelihood,
        what: str,
        why: str,
        rule: str = "",
        *,
        do: str = "",
        said: Said | None = None,
        evidence: Sequence[str] = (),
        change: str = "",
    ) -> None:
        # An answer with what is known of its rule, and what the stream says to it.
        found = BY_ID.get(change or change_of(rule))
        known = RULES.get(rule)
        of_stream = self._failing.get(rule)
        texts = [*([_quoted(said)] if said is not None else []), *evidence]
        offset, path = None, ""
        if of_stream is not None:
            likelihood = min(likelihood, self._confirmed(of_stream), key=_RANK.__getitem__)
            offset, path = of_stream.offset, of_stream.path
            texts.append(f"stream: {of_stream.message}")
        self.answers.append(
            Answer(
                likelihood, what, why, rule,
                () if found is None or not is_bug(rule) else found.cve,
                "" if found is None or not is_bug(rule) else repaired(found),
                do or ("" if known is None else known.do), tuple(texts),
                None if said is None else said.line, offset, path,
            )
        )  # fmt: skip

    def _confirmed(self, found: Finding) -> Likelihood:
        # What a kernel refuses is certain if it is the kernel, or if all do.
        some = self.kernels.destination is None and 0 < len(found.kernels) < len(released())
        certain = found.severity is Severity.ERROR and not some
        return Likelihood.CERTAIN if certain else Likelihood.LIKELY

    # --- the stream ---

    def _check(self) -> None:
        if self.machine is None:
            return
        kernels = [self.kernels.destination] if self.kernels.destination is not None else released()
        report = check(self.machine, kernels, source=self.kernels.source, qemu=self._qemu())
        self.findings = report.findings
        self._failing = {
            one.rule: one
            for one in report.findings
            if one.severity is not Severity.INFO and one.rule in RULES
        }

    def _qemu(self) -> str | None:
        # The version that the log names, if it is one that is known.
        version = self.facts.qemu_version
        if version is None:
            return None
        try:
            qemu_plan(version)
        except PlanError:
            return None
        return version

    def _stream(self) -> None:
        # What the stream alone shows.
        told = {one.rule for one in self.answers}
        alone = not self.facts.recognised
        for one in self.findings:
            if one.rule in told or one.severity is Severity.INFO:
                continue
            certain = one.severity is Severity.ERROR
            if not certain and self.kernels.destination is None:
                continue
            fits = certain and (alone or self.kernels.destination is not None)
            change = BY_ID.get(change_of(one.rule))
            self.answers.append(
                Answer(
                    Likelihood.LIKELY if fits else Likelihood.POSSIBLE,
                    "the stream has it, whatever the log says" if not alone else "",
                    one.message, one.rule,
                    () if change is None else change.cve,
                    "" if change is None or not is_bug(one.rule) else repaired(change),
                    one.do, (), None, one.offset, one.path,
                )
            )  # fmt: skip
        for problem in self.machine.stream.problems if self.machine is not None else ():
            self.happened.append("the stream is damaged")
            self.answers.append(
                Answer(
                    Likelihood.LIKELY, "the stream is damaged", str(problem), "damage",
                    do="save again", offset=problem.offset,
                )
            )  # fmt: skip

    # --- ioctls ---

    def _trace(self) -> None:
        trace = self.facts.trace
        if trace is None:
            return
        for vcpu in trace.vcpus:
            for put in vcpu.puts:
                for one in put.results:
                    if one.bad and one.rule.id not in ("T-01", "T-02"):
                        self._broken(one.rule.id, one.line, one.note)
            for one in vcpu.results:
                if one.outcome is RuleOutcome.VIOLATED:
                    unseen = one.rule.id == "T-04" and vcpu.puts == () and "does not" in one.note
                    self._broken(one.rule.id, one.line, one.note, sure=not unseen)
        for refused in trace.all_refusals:
            if refused.bad:
                name = refused.name.removeprefix("KVM_")
                said = Said(refused.line, f"{refused.name} = -1 {refused.error}", refused.count)
                self.happened.append(f"KVM refused {refused.name} with {refused.error}")
                self._causes(name, refused.error, refused.causes, said)

    def _broken(self, rule: str, line: int, note: str, *, sure: bool = True) -> None:
        known = RULES[rule]
        self._add(
            Likelihood.LIKELY if sure else Likelihood.POSSIBLE, f"{known.fails_when} (line {line})",
            known.means + (f" ({note})" if note else ""), rule, evidence=(f"line {line}: {note}",),
        )  # fmt: skip

    def _causes(
        self,
        ioctl: str,
        error: str | None,
        found: Sequence[Cause],
        said: Said,
        *,
        alone: bool = True,
    ) -> None:
        # ``alone``: it is known that it was this ioctl.
        what = f"KVM refused KVM_{ioctl}" + ("" if error is None else f" with {error}")
        fitting = [
            one
            for one in found
            if self.kernels.concerned(one.rule) is not False
            and self.kernels.in_span(one.since, one.until)
        ]
        for one in fitting:
            likely = one.seen or (alone and len(fitting) == 1) or self.kernels.makes_newly(one.rule)
            self._add(
                Likelihood.LIKELY if likely else Likelihood.POSSIBLE,
                what, self._with_kernel(one), one.rule, do=one.do, said=said,
            )  # fmt: skip
        if ioctl == "SET_NESTED_STATE" and error in (None, "EINVAL"):
            self._new_checks(what, said)
        starts = _OF_IOCTL.get(ioctl, ())
        for rule, finding in self._failing.items():
            if rule.startswith(starts) and starts and finding.severity is Severity.ERROR:
                known = RULES[rule]
                self._add(Likelihood.LIKELY, what, f"{known.fails_when}: {known.means}", rule,
                          said=said)  # fmt: skip

    def _new_checks(self, what: str, said: Said) -> None:
        # What the destination checks and the source does not: the source had it running.
        if self.kernels.source is None or self.kernels.destination is None:
            return
        before = frozenset(self.kernels.source.set_nested_state)
        added = [
            rule for rule in self.kernels.destination.set_nested_state
            if rule not in before and rule in RULES
        ]  # fmt: skip
        names = (self.kernels.destination.name, self.kernels.source.name)
        for rule in added:
            why = f"{RULES[rule].fails_when}: {names[0]} checks this, {names[1]} does not"
            few = len(added) <= _FEW_CHECKS
            self._add(Likelihood.LIKELY if few else Likelihood.POSSIBLE, what, why, rule, said=said)

    def _with_kernel(self, cause: Cause) -> str:
        change = BY_ID.get(change_of(cause.rule))
        if change is None or self.kernels.destination is None or not change.effective:
            return cause.why
        return f"{cause.why} ({self.kernels.destination.name} checks this: {since_words(change)})"

    def _calls(self) -> None:
        for call, said in self.facts.calls.items():
            if call.ioctl == "PUT":
                self._put(call, said)
                continue
            name = f"KVM_{call.ioctl}"
            self.happened.append(
                f"KVM refused {name}" + ("" if call.error is None else f" with {call.error}")
            )
            if call.msr is not None and call.ioctl.endswith("MSRS"):
                self._msr(call.msr, call.value, said, f"KVM refused MSR {call.msr:#x}")
                continue
            if call.error == "EIO":
                self._killed(f"{name} failed with EIO", said)
            error = call.error or "EINVAL"
            known = self._circumstances(said)
            self._causes(call.ioctl, call.error, causes(call.ioctl, error, known), said)
            if call.ioctl == "SET_NESTED_STATE":
                self.collect.append(COLLECT_EVENTS)
                if known.accepted:
                    self.happened.append(
                        "the model of that kernel accepts the state in the stream: the cause is "
                        "what the host offers, or what the program did"
                    )
            if call.error == "EIO":
                self.collect.append(COLLECT_DMESG)

    def _put(self, call: CallWords, said: Said) -> None:
        self.happened.append("KVM refused a part of the vCPU's state")
        for name in _PUT:
            found = causes(name, call.error or "EINVAL")
            self._causes(name, call.error, found, said, alone=False)
        if call.error == "EIO":
            self._killed("a put failed with EIO", said)

    def _circumstances(self, said: Said) -> Circumstances:
        efer, svme = None, None
        in_order = OF_QEMU.search(said.text) is not None
        vcpus = self.machine.vcpus if self.machine is not None else ()
        if vcpus:
            efer = vcpus[0].get("efer")
            svme = bool(efer & EFER_SVME) if in_order and efer is not None else None
        refused = any(
            one.severity is Severity.ERROR and one.rule.startswith(_OF_IOCTL["SET_NESTED_STATE"])
            for one in self._failing.values()
        )
        nested = any(vcpu.nested is not None for vcpu in vcpus)
        accepted = nested and self.kernels.destination is not None and not refused
        return Circumstances(cpuid=in_order or None, svme=svme, efer=efer, accepted=accepted)

    def _killed(self, what: str, said: Said, evidence: Sequence[str] = ()) -> None:
        kernel = self.kernels.destination
        change = BY_ID.get("lma-without-pae-bug")
        has = kernel is not None and change is not None and change.is_in(Release(*kernel.numbers))
        refuses = kernel is not None and "SV-18" in kernel.checks
        seen = self._lma_without_lme()
        if seen is False or (kernel is not None and (not has or refuses)):
            return
        likelihood = Likelihood.LIKELY if has else Likelihood.POSSIBLE
        self._add(
            Likelihood.CERTAIN if seen else likelihood, what,
            "L1's EFER in the nested state has LMA without LME: KVM kills the VM at the next use "
            "of its MMU", "SV-18", do=UPDATE, said=said, evidence=evidence,
            change="lma-without-lme",
        )  # fmt: skip

    def _lma_without_lme(self) -> bool | None:
        # None without a stream.
        if self.machine is None:
            return None
        saved = [
            vcpu.nested.l1_save["efer"]
            for vcpu in self.machine.vcpus
            if vcpu.nested is not None and vcpu.nested.vmcb
        ]
        return any(efer & _LME_LMA == _LMA for efer in saved)

    # --- messages ---

    def _messages(self) -> None:
        said = self.facts.qemu
        if not said:
            return
        if self.machine is not None:
            explained = explain_refusal(self.machine, [one.text for one in said])
            for finding in explained:
                if finding.rule.removeprefix("refused-") in (*KVM_SAYS, "damage"):
                    continue
                self.answers.append(
                    Answer(
                        Likelihood.LIKELY, "QEMU refused the stream", finding.message, finding.rule,
                        do=finding.do, evidence=tuple(map(_quoted, said[:3])), line=said[0].line,
                        offset=finding.offset, path=finding.path,
                    )
                )  # fmt: skip
            return
        for one in said:
            for meaning, _ in meanings_of(one.text):
                if meaning.rule in KVM_SAYS:
                    continue
                self.answers.append(
                    Answer(
                        Likelihood.LIKELY, "QEMU refused the stream", meaning.means,
                        f"refused-{meaning.rule}", do=meaning.do, evidence=(_quoted(one),),
                        line=one.line,
                    )
                )  # fmt: skip
                self.collect.append(COLLECT_STREAM)

    def _msrs(self) -> None:
        for one in self.facts.msrs.values():
            way = "wrmsr" if one.write else "rdmsr"
            how = "ignored" if one.ignored else "refused"
            what = f"KVM {how} a {way} of MSR {one.msr:#x}"
            if one.ignored or not (one.write or msr_reason(one.msr).name):
                self.happened.append(what)  # guests try many MSRs, and do without
            else:
                self._msr(one.msr, one.value, one.said, what)

    def _msr(self, msr: int, value: int | None, said: Said, what: str) -> None:
        reason = msr_reason(msr)
        name = f" ({reason.name})" if reason.name else ""
        self.happened.append(f"{what}{name}")
        change = BY_ID.get(reason.change)
        known = None
        if change is not None and self.kernels.destination is not None:
            known = not change.is_in(Release(*self.kernels.destination.numbers))
        if known is False:
            self._add(
                Likelihood.POSSIBLE, f"{what}{name}",
                "the kernel knows the MSR: the guest's CPUID does not offer it, or its value is "
                "not valid",
                "U-02", do="use the source's CPU model", said=said,
            )  # fmt: skip
            return
        svme = msr == 0xC0000080 and value is not None and bool(value & 1 << 12)
        self._add(
            Likelihood.LIKELY if known or svme or name else Likelihood.POSSIBLE,
            f"{what}{name}" + ("" if value is None else f" = {value:#x}"),
            reason.why + ("" if change is None else f" ({change.fixed_in})"),
            reason.rule, do=reason.do, said=said, change=reason.change,
        )  # fmt: skip

    def _signs(self) -> None:
        for sign, said in self.facts.signs.values():
            self.happened.append(sign.what)
            self.collect += sign.collect
            for one in sign.reasons:
                known = self.kernels.concerned(one.rule)
                if known is one.with_fix:
                    continue
                seen = known is True and (sign.id, one.rule) in _TELLING
                self._add(
                    Likelihood.LIKELY if one.likely or seen else Likelihood.POSSIBLE,
                    sign.what, one.why, one.rule, do=one.do, said=said,
                )  # fmt: skip

    # --- the kernel's own words ---

    def _dumps(self) -> None:
        vcpus = () if self.machine is None else self.machine.vcpus
        for one in self.facts.dumps:
            match = dumps.compare(one, vcpus)
            self.dumps.append((one, match))
            whose = "" if match is None else f" ({match.level}'s, vCPU {match.vcpu})"
            code = exit_name(one.exit_code)
            what = (
                f"VMRUN of a VMCB{whose} failed: the processor refused it (VMEXIT_INVALID)"
                if one.failed
                else f"KVM met #VMEXIT {one.exit_code:#x} ({code}) that it does not expect{whose}"
            )
            self.happened.append(what)
            bad = dumps.impossible(one)
            said = Said(one.line, "VMCB Control Area")
            for wrong in bad if one.failed else ():
                self._add(
                    Likelihood.CERTAIN, what, f"{wrong.words}: VMRUN refuses it", wrong.rule,
                    do="find out what wrote this value; put SREGS as KVM_GET_SREGS returned them",
                    said=said, evidence=_of_dump(one, wrong.field, match),
                )  # fmt: skip
            if one.failed and not bad:
                self._add(
                    Likelihood.POSSIBLE, what,
                    "nothing in the printed fields is impossible: the MSR or I/O bitmap's address, "
                    "a reserved bit of CR3, CR4 or EFER that this processor does not have", "",
                    do="compare CPU models", said=said,
                )  # fmt: skip

    def _events(self) -> None:
        events = self.facts.events
        for words, (line, count) in events.failed.items():
            rule = rule_of(words)
            said = Said(line, f"kvm_nested_vmenter_failed: {words}", count)
            what = "KVM refused to enter L2, by VMRUN of L1 or KVM_SET_NESTED_STATE"
            self.happened.append(what)
            if rule is None:
                self._add(Likelihood.LIKELY, what, f"this check of KVM failed: {words}", "",
                          do="look it up in arch/x86/kvm/svm/nested.c", said=said)  # fmt: skip
                continue
            known = RULES[rule]
            self._add(
                Likelihood.CERTAIN, what,
                f"{_in_either(known.fails_when)} (the failed check: {words})", rule, said=said,
            )  # fmt: skip
        if events.intel is not None:
            self._add(Likelihood.CERTAIN, "the events are of an Intel host",
                      "nested VMX: nothing here is about SVM", "SV-01", do="",
                      said=Said(events.intel, "vmcs"))  # fmt: skip
        if events.invalid is not None:
            line, rip = events.invalid
            what = "the processor refused L2's VMCB (VMEXIT_INVALID), and L1 got that exit"
            self.happened.append(what)
            at = "" if rip is None else f" at RIP {rip:#x}"
            self._add(
                Likelihood.LIKELY, what,
                "L2's registers, which SREGS and not the nested state carry, are a state that "
                "VMRUN does not accept: CR0, CR4, EFER and CS contradict each other", "",
                do="put SREGS as one KVM_GET_SREGS returned them",
                said=Said(line, f"reason invalid{at}"),
            )  # fmt: skip
            for rule in ("K-21", "K-22"):
                if self.kernels.concerned(rule):
                    self._add(Likelihood.POSSIBLE, what, RULES[rule].means, rule)
        if events.no_vmrun is not None:
            self._add(
                Likelihood.LIKELY if self.kernels.concerned("K-13") else Likelihood.POSSIBLE,
                "L2 runs without the VMRUN intercept",
                "KVM checks it, so L1 changed vmcb12 between check and use", "K-13",
                said=Said(events.no_vmrun, "kvm_nested_intercepts"),
            )  # fmt: skip
        self._same_guest()
        for enter in events.odd:
            self._odd(enter.line, enter.int_ctl or 0, enter.event_inj or 0)
        number, name, rip, line = events.same
        if number >= _STUCK:
            self.happened.append(f"L2 leaves with the same exit ({name}) {number} times in a row")
            self._add(
                Likelihood.POSSIBLE, f"L2 does not go on at RIP {rip:#x}: {name}, {number} times",
                "KVM resolves the exit, and it happens again: nested page tables or L2's MMU are "
                "wrong", "O-04" if self.kernels.concerned("O-04") is not False else "",
                do="set CPUID2 before any state",
                said=Said(line, f"kvm_nested_vmexit: reason {name}"),
            )  # fmt: skip
        if events.shutdown is not None:
            self.happened.append("L2 shut down (triple fault)")
            self._add(Likelihood.POSSIBLE, "L2 shut down (triple fault)",
                      "L2 runs with registers or memory that are not its own", "O-05", do="",
                      said=Said(events.shutdown, "reason shutdown"))  # fmt: skip

    def _same_guest(self) -> None:
        first = self.facts.events.first
        if first is None or first.vmcb is None or self.machine is None:
            return
        pages = {
            vcpu.nested.vmcb_pa for vcpu in self.machine.vcpus
            if vcpu.nested is not None and vcpu.nested.vmcb
        }  # fmt: skip
        if pages:
            same = "as" if first.vmcb in pages else "not as"
            self.happened.append(f"L1 runs the vmcb12 at {first.vmcb:#x}, {same} in the stream")

    def _odd(self, line: int, int_ctl: int, event: int) -> None:
        said = Said(line, f"int_ctl {int_ctl:#x}, event_inj {event:#x}")
        if int_ctl & _AVIC and self.kernels.concerned("K-06") is not False:
            self._add(Likelihood.LIKELY, "L1 sets AVIC bits in vmcb12", RULES["K-06"].means, "K-06",
                      said=said)  # fmt: skip
        if event >> 31 and event >> 8 & 7 in _SOFT:
            for rule in ("K-02", "A-02", "O-10"):
                if self.kernels.concerned(rule):
                    self._add(Likelihood.POSSIBLE, "L1 injects a software event",
                              RULES[rule].means, rule, said=said)  # fmt: skip

    def _oops(self, one: Oops) -> None:
        what = f"the kernel reported: {one.text}"
        said = Said(one.line, one.text)
        rules = list(rules_of(one))
        fitting = [rule for rule in rules if self.kernels.concerned(rule) is not False]
        if one.concerns_kvm or one.null_call:
            self.happened.append(f"{one.kind} in the host's kernel" + (
                f" at {one.place}" if one.place else ""))  # fmt: skip
        for rule in fitting:
            if rule == "SV-18":
                self._killed(what, said, _trace_of(one))
                continue
            known = RULES[rule]
            sure = self.kernels.concerned(rule)
            why = f"{known.fails_when}: {known.means}"
            self._add(Likelihood.LIKELY if sure or one.null_call else Likelihood.POSSIBLE,
                      what, why, rule, said=said, evidence=_trace_of(one))  # fmt: skip
        if not fitting and one.concerns_kvm and one.kind != "lockup":
            self._add(
                Likelihood.POSSIBLE, what,
                "a bug of KVM that the table of kernels does not have"
                + (f" ({', '.join(rules)} fits, but is fixed in this kernel)" if rules else ""),
                "", do=f"{UPDATE}; report it with the whole log", said=said,
                evidence=_trace_of(one),
            )  # fmt: skip

    # --- what next ---

    def _next(self) -> None:
        if self.answers and _RANK[_ranked(self.answers)[0].likelihood] == 0:
            return
        if self.facts.recognised and self.machine is None:
            self.collect.append(COLLECT_STREAM)
        if self.kernels.destination is None and (self.facts.recognised or self.machine is not None):
            self.collect.append(COLLECT_KERNEL)
        if self.facts.trace is None and self.facts.calls:
            self.collect.append(COLLECT_STRACE)
        if not self.answers:
            self.collect.append(COLLECT_DMESG)


_TELLING = frozenset({("hang", "K-09"), ("vmware", "C-06"), ("vmrun-failed", "C-06")})
_FEW_CHECKS = 2
_LMA, _LME_LMA = 0x400, 0x500
_AVIC = 0xC000_0000
_SOFT = (3, 4)
_STUCK = 1000


def _trace_of(one: Oops) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(one.functions))[:6]
    return (f"functions: {', '.join(names)}",) if names else ()


def _of_dump(one: VmcbDump, where: str, match: DumpMatch | None) -> tuple[str, ...]:
    area, _, name = where.partition(".")
    value = (one.control if area == "control" else one.save).get(name)
    shown = f"{value:#x}" if isinstance(value, int) else dumps.segment_text(value)
    text = f"dump: {name} is {shown}"
    if match is None:
        return (text,)
    differs = [entry for entry in match.differs if entry[0] == name]
    if differs:
        return (text, f"the stream has another value for {match.level}: it was changed afterwards")
    return (text, f"the stream has the same for {match.level}") if name in match.same else (text,)


def _in_either(words: str) -> str:
    # The save area is L1's in a nested state and L2's in a VMRUN.
    return words.replace("L1's ", "(L1's in a nested state, L2's at VMRUN) ", 1)


def _quoted(said: Said) -> str:
    times = f" ({said.count} times)" if said.count > 1 else ""
    return (f"line {said.line}: " if said.line else "") + said.text + times
