"""Patches as they come by mail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import SourceError
from qemu_svm.lab.trial.patches import LIMIT, PatchRefused, read_patch
from qemu_svm.lab.trial.workshop import _reasons
from tests.lab.trial.damaged import check_damaged_patch

NESTED = "arch/x86/kvm/svm/nested.c"


def change(path: str, *, old: str | None = None, hunk: str = "") -> str:
    hunk = hunk or "@@ -1,2 +1,3 @@ int f(void)\n one\n+two\n three\n"
    return f"--- {old or 'a/' + path}\n+++ b/{path}\n{hunk}"


def mail(*changes: str, subject: str = "[PATCH] nSVM") -> bytes:
    head = f"From 0123 Mon Sep 17 00:00:00 2001\nFrom: A <a@b>\nSubject: {subject}\n\nWhy.\n---\n"
    return (head + "".join(changes) + "-- \n2.39.5\n\n").encode()


def test_a_mail_is_reduced_to_its_changes() -> None:
    found = read_patch(mail("diff --git a/x b/x\nindex 1..2 100644\n" + change(NESTED)), "p")
    assert found.files == (NESTED,)
    assert found.text.decode() == change(NESTED)


def test_a_series_is_applied_in_order() -> None:
    first = change(NESTED)
    second = change(NESTED, hunk="@@ -9 +9 @@\n-x\n+y\n\\ No newline at end of file\n")
    other = change("arch/x86/kvm/svm/svm.h")
    found = read_patch(mail(first) + mail(second, other), "series.mbox")
    assert found.files == (NESTED, "arch/x86/kvm/svm/svm.h")
    assert found.text.decode() == first + second + other
    assert found.digest != read_patch(mail(first), "p").digest


def test_what_is_not_built_is_named() -> None:
    tests = "tools/testing/selftests/kvm/x86_64/state_test.c"
    found = read_patch(mail(change(tests), change("Documentation/virt/x.rst"), change(NESTED)), "p")
    assert found.skipped == (tests, "Documentation/virt/x.rst")
    assert found.text.decode() == change(NESTED)
    with pytest.raises(PatchRefused, match="changes nothing of KVM for AMD"):
        read_patch(mail(change(tests)), "p")


@pytest.mark.parametrize(
    ("path", "kvm"),
    [
        (NESTED, False),
        ("arch/x86/kvm/svm/new.h", False),
        ("arch/x86/kvm/x86.c", True),
        ("virt/kvm/kvm_main.c", True),
        ("arch/x86/include/asm/kvm_host.h", True),
        ("arch/x86/include/asm/kvm-x86-ops.h", True),
        ("arch/x86/include/asm/svm.h", True),
        ("arch/x86/include/uapi/asm/kvm.h", True),
        ("include/linux/kvm_host.h", True),
        ("include/uapi/linux/kvm.h", True),
    ],
)
def test_kvm_is_rebuilt_where_the_patch_reaches_it(path: str, kvm: bool) -> None:
    intel = "arch/x86/kvm/vmx/vmx.c"
    found = read_patch(mail(change(path), change(intel)), "p")
    assert (found.files, found.reaches_kvm, found.skipped) == ((path,), kvm, (intel,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (change("kernel/sys.c"), "kernel/sys.c, which is not built: it is not a part of KVM"),
        (change("arch/x86/include/asm/msr.h"), "the kernel itself is compiled with this header"),
        (change("include/linux/mm.h"), "the kernel itself is compiled with this header"),
        (change("arch/x86/kvm/Kconfig"), "the configuration is that of the suite's kernel"),
        (change("arch/arm64/kvm/arm.c"), "not a part of KVM for x86"),
        (change("arch/x86/kvm/svm/../../../../etc/passwd"), "not one inside the kernel's tree"),
        (change("/etc/passwd", old="/etc/passwd"), "not one inside the kernel's tree"),
        (change(NESTED + "\x1b[31m"), "not one inside the kernel's tree"),
        (change(NESTED, old="a/arch/x86/kvm/svm/svm.c"), "not changed in its place"),
        ("GIT binary patch\nliteral 3\n", "'GIT binary patch' is not supported"),
        ("new file mode 120000\n" + change(NESTED), "'new file mode 120000' is not supported"),
        ("rename from arch/x86/kvm/svm/svm.c\n", "'rename from"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(PatchRefused, match=words):
        read_patch(text.encode(), "p")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has no change"),
        (b"Hello\n", "has no change"),
        (change(NESTED).encode()[:-7], "the hunk is cut"),
        (f"--- a/{NESTED}\n+++ b/{NESTED}\nno hunk\n".encode(), "a hunk was expected"),
        (bytes(LIMIT + 1), "more than 4 MiB"),
    ],
)
def test_what_is_no_patch(data: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        read_patch(data, "p")


def test_lines_of_a_hunk_that_look_like_a_header() -> None:
    """A removed line that begins with ``-- `` is no header of another file."""
    hunk = "@@ -1,3 +1,3 @@\n one\n--- a/kernel/sys.c\n+++ b/kernel/sys.c\n three\n"
    found = read_patch(mail(change(NESTED, hunk=hunk)), "p")
    assert found.files == (NESTED,)


@given(st.data())
def test_damage_raises_only_our_own_errors(data: st.DataObject) -> None:
    whole = mail(change(NESTED), change("arch/x86/kvm/svm/svm.c"))
    check_damaged_patch(data, whole, 5)


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            (
                "In file included from x.c:1:\n/build/arch/x86/kvm/svm/nested.c:7:10: fatal error: "
                "/etc/passwd: No such file or directory\nmake[1]: *** [nested.o] Error 1\n"
                "make: *** [/build/arch/x86/kvm] Error 2\n"
            ),
            "arch/x86/kvm/svm/nested.c:7:10: fatal error: /etc/passwd: No such file or directory",
        ),
        ("make: *** [/build/arch/x86/kvm] Error 2\n", "make: *** [/build/arch/x86/kvm] Error 2"),
        ("Killed\n", "Killed"),
    ],
)
def test_why_a_build_failed(log: str, says: str) -> None:
    assert _reasons(log) == says
