"""Whether KVM accepts what a recorded put has, by the model of its checks.

A put whose registers the recording has is run through the model, on the kernel that was recorded
or, if that is not known, on one of each generation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from qemu_svm.kvm import layouts
from qemu_svm.model.kernels.derive import profile_of
from qemu_svm.model.kernels.release import parse_if_any
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.plans import Step as PlanStep
from qemu_svm.model.recorded import IOCTLS
from qemu_svm.model.rules import CHECKS
from qemu_svm.model.simulate import simulate
from qemu_svm.nested import NestedState, from_uapi, vmcb_fields
from qemu_svm.nested.layout import FORMAT_SVM, UAPI_HEADER_SIZE, VMCB_SIZE
from qemu_svm.x86.cpuid import Cpuid, infer

if TYPE_CHECKING:
    from qemu_svm.model.profile import Profile
    from qemu_svm.model.saved import Saved
    from qemu_svm.trace.phases import Step

GENERATIONS = ("5.10", "6.1", "6.12", "7.2")
_STEPS = {f"KVM_{ioctl}": name for name, ioctl in IOCTLS.items() if name not in ("smi", "tsc_khz")}
_JUDGED = frozenset({"cpuid", "sregs", "nested", "msrs", "mpstate", "debugregs"})
"""Steps whose checks do not depend on capabilities that the VM may have enabled."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that KVM refuses.

    :param at: its place among the calls of the put.
    :param kernels: which kernels refuse it; ``every`` is whether all that were asked do.
    """

    at: int
    check: str
    kernels: tuple[str, ...]
    every: bool

    @property
    def words(self) -> str:
        """Why it is refused."""
        rule = next((one for one in CHECKS if one.id == self.check), None)
        return f"{rule.fails_when if rule else 'it is refused'} ({self.check})"


class _Failed(NamedTuple):
    # The first call that a kernel refuses, and by which check; empty if it refuses none.
    at: int
    check: str


def refused(steps: Sequence[Step], kernel: Profile | None) -> Refused | None:
    """Return the first call of a put that KVM refuses; None if there is none, or it is unknown.

    :param steps: the put from its first call on; what failed is left out.
    :param kernel: what was recorded; None if it is not known.
    """
    made = tuple(_made(steps))
    if not {"sregs", "nested"} <= {step.name.removesuffix("2") for step in made} or any(
        step.data is None and step.name == "KVM_SET_NESTED_STATE" for step in steps
    ):
        return None
    names = (kernel.name,) if kernel is not None else GENERATIONS
    answers = [(name, _first(made, name)) for name in names]
    asked = [(name, one) for name, one in answers if one is not None]
    found = {name: one for name, one in asked if one.check}
    if not found:
        return None
    # Kernels may refuse different calls: told is what most of them refuse.
    counts = Counter(found.values())
    most = max(counts, key=lambda one: (counts[one], -one.at))
    kernels = tuple(name for name, one in found.items() if one == most)
    return Refused(most.at, most.check, kernels, len(found) == len(asked))


def _made(steps: Sequence[Step]) -> Iterator[PlanStep]:
    for at, step in enumerate(steps):
        name = _STEPS.get(step.name)
        if name is not None and step.data is not None and step.error is None:
            yield PlanStep(name, text=str(at), data=step.data)


@lru_cache(maxsize=256)
def _first(steps: tuple[PlanStep, ...], name: str) -> _Failed | None:
    # None of a kernel that cannot be the one that was recorded.
    release = parse_if_any(name)
    kernel = None if release is None else profile_of(release)
    if kernel is None:
        return None
    sregs2 = any(step.name == "sregs2" for step in steps)
    if sregs2 and not kernel.has_sregs2:
        return None
    host = Host(exception_payload=True, triple_fault_event=True)
    judged = _JUDGED
    if not any(step.name == "cpuid" for step in steps):
        judged -= {"msrs"}  # which there are depends on CPUID
        steps = (PlanStep("cpuid", text="-1"), *steps)
        host = Host(exception_payload=True, triple_fault_event=True, cpuid=_cpuid(steps))
    for result in simulate(kernel, _nothing(), steps, host=host).results:
        if result.failed is not None and result.step.name.removesuffix("2") in judged:
            return _Failed(int(result.step.text), result.failed)
    return _Failed(0, "")


def _cpuid(steps: Sequence[PlanStep]) -> Cpuid:
    # What the registers show; L1's EFER is under test, so L2's alone counts.
    sregs = next(step.data for step in steps if step.name.startswith("sregs"))
    values = layouts.SREGS.unpack((sregs or b"")[: layouts.SREGS.size])
    whole = UAPI_HEADER_SIZE + VMCB_SIZE
    data = next(step.data for step in steps if step.name == "nested") or b""
    state = from_uapi(data[:whole].ljust(whole, b"\0"))
    cr4 = vmcb_fields(state.vmcb)[1].cr4 if state.vmcb else 0
    return infer(values["cr4"], cr4, values["efer"], 52)


def _nothing() -> Saved:
    from qemu_svm.model.area import Area
    from qemu_svm.model.saved import Saved

    nested = NestedState(0, FORMAT_SVM, UAPI_HEADER_SIZE, vmcb=bytes(VMCB_SIZE))
    return Saved(Area("sregs"), {}, {}, {}, nested)
