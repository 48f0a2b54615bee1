"""The search for the update that changed an answer, on rows of answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.replay.answers import Answer, Difference, StepAnswer, differences
from qemu_svm.replay.bisect import Search


def answer(text: str) -> Answer:
    return Answer((StepAnswer("nested", text),))


def search(row: str, suspects: tuple[int, ...] = (), *, every: bool = False) -> Search:
    """Search a row of kernels, each with a letter for its answer; ``-`` cannot be tried."""
    made = Search(len(row), lambda place: None if row[place] == "-" else answer(row[place]))
    made.run(lambda: suspects, every=every)
    return made


@given(st.integers(2, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size - 1))))
def test_one_change_is_found_in_few_steps(case: tuple[int, int]) -> None:
    size, place = case
    found = search("A" * place + "B" * (size - place))
    assert found.boundaries() == [(place - 1, place)]
    assert len(found.answers) <= 2 + (size - 1).bit_length()


def test_a_third_answer_shows_a_second_change() -> None:
    """As with EFER.LMA without LME: accepted, then the VM is killed, then refused."""
    assert search("AAAAAAABC").boundaries() == [(6, 7), (7, 8)]


def test_a_change_that_was_taken_back_is_found_where_the_table_expects_it() -> None:
    row = "AAABBAAAA"
    assert search(row).boundaries() == []
    assert search(row, suspects=(2,)).boundaries() == [(2, 3), (4, 5)]
    assert search(row, every=True).boundaries() == [(2, 3), (4, 5)]


@given(st.text("AB", min_size=2, max_size=20))
def test_all_of_a_row(row: str) -> None:
    changes = [(one, one + 1) for one in range(len(row) - 1) if row[one] != row[one + 1]]
    assert search(row, every=True).boundaries() == changes


@given(st.text("AB-", max_size=20), st.sampled_from("AB"), st.sampled_from("AB"))
def test_kernels_that_cannot_be_tried_are_passed_over(middle: str, first: str, last: str) -> None:
    row = first + middle + last
    found = search(row)
    assert bool(found.boundaries()) >= (first != last)
    for one, two in found.boundaries():
        assert row[one] != row[two]
        assert set(row[one + 1 : two]) <= {"-"}


def test_the_first_step_that_differs_counts() -> None:
    old = Answer((StepAnswer("cpuid", None), StepAnswer("sregs", None), StepAnswer("nested", None)))
    new = Answer((StepAnswer("cpuid", None), StepAnswer("sregs", "EINVAL"),
                  StepAnswer("nested", "EINVAL")))  # fmt: skip
    assert list(differences(old, new)) == [Difference(2, "sregs", "errno", None, "EINVAL")]


def test_a_vm_that_was_killed_differs_from_one_that_goes_on() -> None:
    steps = (StepAnswer("cpuid", None), StepAnswer("nested", None))
    killed = Answer(steps[:1], "failed", "KVM_GET_MSRS: EIO")
    (found,) = differences(Answer(steps), killed)
    assert (found.number, found.step, found.name) == (2, "nested", "end")
    assert (found.before, found.after) == ("done", "failed: KVM_GET_MSRS: EIO")


def test_state_is_compared_where_it_was_asked_for() -> None:
    old, new = (
        Answer((StepAnswer("nested", None, state=(("sregs.cr4", value), ("smm", 0))),))
        for value in (0x20, 0x60)
    )
    assert list(differences(old, new)) == [Difference(1, "nested", "sregs.cr4", 0x20, 0x60)]
    assert list(differences(old, old)) == []
