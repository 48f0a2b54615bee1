"""Shrinking ends with a plan from which nothing can be taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.replay.shrink import shrink


def each(shows: Callable[[str], bool]) -> Callable[[Sequence[str]], list[bool]]:
    return lambda plans: [shows(plan) for plan in plans]


LONG = "cpuid:no=smep,sregs:l1:cr3=1,msrs,nested:flags=1:@0x58/4=0:size=5,events,get,regs,run"


def test_steps_and_settings_that_do_not_matter_go() -> None:
    def shows(plan: str) -> bool:
        return "sregs:" in plan and "l1" in plan and "@0x58/4=0" in plan

    assert shrink(LONG, each(shows)) == "sregs:l1,nested:@0x58/4=0"


def test_what_needs_everything_stays() -> None:
    assert shrink(LONG, each(lambda plan: plan == LONG)) == LONG


def test_order_is_kept() -> None:
    def shows(plan: str) -> bool:
        steps = [step.partition(":")[0] for step in plan.split(",")]
        return "get" in steps and "sregs" in steps and steps.index("sregs") < steps.index("get")

    assert shrink(LONG, each(shows)) == "sregs,get"


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.data())
def test_nothing_more_can_go(steps: list[str], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from(steps), min_size=1, max_size=3, unique=True))

    def shows(plan: str) -> bool:
        return set(wanted) <= set(plan.split(","))

    found = shrink(",".join(steps), each(shows)).split(",")
    assert sorted(found) == sorted(wanted)
