"""Patches as they come by mail: which files they change, and what of them is built.

A patch is strangers' text.  It is parsed here to decide whether it is built at all; it is
applied by GNU patch where it is built (:mod:`qemu_svm.lab.trial.workshop`).

Source: the unified format, GNU diffutils manual, "Detailed Description of Unified Format";
git's extended headers, ``git help diff``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qemu_svm.errors import Refused, SourceError
from qemu_svm.lab.trial.mails import as_text

LIMIT = 4 << 20
"""Bytes of a patch."""

_AMD = "arch/x86/kvm/svm/"
_KVM = ("arch/x86/kvm", "virt/kvm")
_HEADERS = (
    *("arch/x86/include/asm/kvm*", "arch/x86/include/asm/svm.h"),
    *("arch/x86/include/uapi/asm/kvm*", "arch/x86/include/uapi/asm/svm.h"),
    *("include/linux/kvm*", "include/uapi/linux/kvm*", "include/trace/events/kvm.h"),
)
SOURCE = (*_KVM, *_HEADERS)
"""What a build has of the kernel's source, as patterns; all that a patch may change."""

_SKIPPED = ("Documentation/", "tools/", "MAINTAINERS", "arch/x86/kvm/vmx/")
_NOT_BUILT = {"Kconfig": "the configuration is that of the suite's kernel"}
_BUILT = (
    "built are kvm.ko and kvm-amd.ko: arch/x86/kvm, virt/kvm, and KVM's own headers "
    "(arch/x86/include/asm/kvm*, svm.h, include/linux/kvm*, uapi)"
)
_TOPS = frozenset((
    *("arch", "block", "certs", "crypto", "Documentation", "drivers", "fs", "include", "init"),
    *("io_uring", "ipc", "kernel", "lib", "LICENSES", "mm", "net", "rust", "samples", "scripts"),
    *("security", "sound", "tools", "usr", "virt"),
))  # fmt: skip
"""Directories at the top of the kernel's tree."""
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_PATH = re.compile(r"[\w.+/-]+", re.ASCII)
_REFUSED_HEADERS = (b"GIT binary patch", b"Binary files ", b"rename from ", b"copy from ")
_LINK = re.compile(rb"(?:new file mode|new mode|old mode) 120000")


class PatchRefused(Refused):
    """A patch that cannot be put on trial."""

    rule = "patch"


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch, or a series of them in order.

    :param text: what is applied with ``patch -p1``: the changes of the files that are built.
    :param files: paths of these files, in the order of their first change.
    :param skipped: paths of files that do not matter for the modules.
    """

    text: bytes
    files: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def reaches_kvm(self) -> bool:
        """Whether kvm.ko is made from any of the files, not only kvm-amd.ko."""
        return not all(path.startswith(_AMD) for path in self.files)

    @property
    def digest(self) -> str:
        """Identifies what is applied (hexadecimal)."""
        return hashlib.sha256(self.text).hexdigest()


def read_patch(data: bytes, name: str) -> Patch:
    """Read a mail, a mailbox with a series, or a diff.

    :param name: of the file, for messages.
    :raises SourceError: there is no change in it, or it is cut.
    :raises PatchRefused: it changes something that is not built here.
    """
    if len(data) > LIMIT:
        raise SourceError(f"{name} has more than {LIMIT >> 20} MiB: that is no patch of KVM")
    kept: list[bytes] = []
    files: dict[str, None] = {}
    skipped: dict[str, None] = {}
    for path, text in _changes(as_text(data, name), name):
        if path.startswith(_SKIPPED):
            skipped[path] = None
            continue
        if why := _why_not(path):
            raise PatchRefused(f"{name} changes {path}, which is not built: {why}", hint=_BUILT)
        files[path] = None
        kept.append(text)
    if not files and not skipped:
        raise SourceError(f"{name} has no change in the unified format",
                          hint="git format-patch and diff -u write it")  # fmt: skip
    if not files:
        raise PatchRefused(f"{name} changes nothing of KVM for AMD: {', '.join(skipped)}")
    return Patch(b"".join(kept), tuple(files), tuple(skipped))


def _why_not(path: str) -> str:
    # Why a file cannot be changed; empty if it can.
    place, _, file = path.rpartition("/")
    if path.startswith(tuple(f"{one}/" for one in _KVM)):
        return _NOT_BUILT.get(file, "")
    if any(fnmatchcase(path, pattern) for pattern in _HEADERS):
        return ""
    if place.startswith(("include", "arch/x86/include")):
        return "the kernel itself is compiled with this header"
    return "it is not a part of KVM for x86"


def _changes(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    # Path and text of the change of each file; the text around changes is left out.
    lines = _LINE.findall(data)
    at, end = 0, len(lines)
    while at < end:
        line = lines[at]
        if line.startswith(_REFUSED_HEADERS) or _LINK.match(line):
            words = line.decode("ascii", "replace").strip()
            raise PatchRefused(f"{name}, line {at + 1}: '{words[:60]}' is not supported",
                               hint="write it as additions and deletions of lines")  # fmt: skip
        if not (line.startswith(b"--- ") and at + 1 < end and lines[at + 1].startswith(b"+++ ")):
            at += 1
            continue
        old, new = (_path(lines[at + one], name, at + one) for one in (0, 1))
        path = new if new is not None else old
        if path is None or (old is not None and new is not None and old != new):
            raise PatchRefused(f"{name}, line {at + 1}: a file is not changed in its place")
        head = b"".join(
            b"%s %s\n" % (mark, b"/dev/null" if one is None else side + one.encode())
            for mark, side, one in ((b"---", b"a/", old), (b"+++", b"b/", new))
        )
        first = at + 2
        carriage = all(one.endswith(b"\r\n") for one in lines[at:first])
        at = _hunks(lines, first, name)
        hunks = b"".join(lines[first:at])
        # A mail program's line ends; the kernel's files have none.
        yield path, head + (hunks.replace(b"\r\n", b"\n") if carriage else hunks)


def _hunks(lines: list[bytes], at: int, name: str) -> int:
    # The line after the hunks that begin here.
    begin = at
    while at < len(lines) and (hunk := _HUNK.match(lines[at])):
        old, new = (1 if count is None else int(count) for count in hunk.groups())
        first = at
        at += 1
        while old > 0 or new > 0:
            mark = lines[at][:1] if at < len(lines) else b""
            if mark not in (b" ", b"\n", b"\r", b"-", b"+", b"\\"):
                raise SourceError(f"{name}, line {first + 1}: the hunk is cut")
            if mark != b"\\":
                old -= mark != b"+"
                new -= mark != b"-"
            at += 1
        if at < len(lines) and lines[at].startswith(b"\\"):
            at += 1
    if at == begin:
        raise SourceError(f"{name}, line {at + 1}: a hunk was expected")
    return at


def _path(line: bytes, name: str, at: int) -> str | None:
    text = line[4:].split(b"\t")[0].strip().decode("ascii", "replace")
    if text == "/dev/null":
        return None
    parts = text.split("/")
    if len(parts) > 1 and parts[0] and parts[0] not in _TOPS:
        text = "/".join(parts[1:])  # a/, or the name of a tree
        parts = parts[1:]
    if not _PATH.fullmatch(text) or "" in parts or ".." in parts or "." in parts:
        raise PatchRefused(f"{name}, line {at + 1}: the path is not one inside the kernel's tree")
    return text
