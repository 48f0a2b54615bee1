#!/usr/bin/env python3
"""Put patches on trial whose effect is known, and see that it is found and said.

The patches are made by replacing lines in the source of the kernel, and sent as mail programs
send them.  Then the directory that a box with a foreign module has is attacked from inside.
With names of kernels as arguments, only those.  Exit status 1 if anything is not as it should be.
"""

from __future__ import annotations

import base64
import difflib
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from qemu_svm.lab import Box
from qemu_svm.lab.box.share import limited_share
from qemu_svm.lab.suites import build, cache, kernels
from qemu_svm.lab.suites.modules import in_order
from qemu_svm.lab.trial.workshop import built_module

STREAMS = Path(__file__).resolve().parent.parent / "streams"
FILES = {"6.1": "qemu7.2-linux6.1-nested.mig.zst", "6.12": "qemu10.0-linux6.12-nested.mig.zst"}
NESTED = "arch/x86/kvm/svm/nested.c"
LEAVE = "\t\tsvm->nested.nested_run_pending = 0;\n\t\tsvm->nested.vmcb12_gpa = INVALID_GPA;\n"
PAGES = "\tif (WARN_ON(!is_guest_mode(vcpu)))\n\t\treturn true;\n"
COPY = (
    "\tsvm_copy_vmrun_state(&svm->vmcb01.ptr->save, save);\n",
    "\tnested_copy_vmcb_control_to_cache(svm, ctl);\n",
)
CASES = [
    # What is replaced, by what; what the report must have.
    ("a VMRUN stays pending", LEAVE, LEAVE.partition("\n")[2],
     ("nested:flags=0x103", "nested.run_pending  without 0x0, with 0x1")),
    ("VMRUN uses an old cache", "\tnested_copy_vmcb_save_to_cache(svm, &vmcb12->save);\n", "",
     ("KVM_RUN, in which L1 executes VMRUN",)),
    ("L2's registers are L1's", "svm->nested.vmcb02.ptr->save = svm->vmcb01.ptr->save;",
     "svm->nested.vmcb02.ptr->save = *save;",
     ("after step 3, KVM_SET_NESTED_STATE", "vmcb02.save.rip", "L1's")),
    ("clean bits are kept",
     "so mark all of vmcb02 dirty here.\n\t */\n\tvmcb_mark_all_dirty(svm->vmcb);\n",
     "so mark all of vmcb02 dirty here.\n\t */\n", ("vmcb02.control.clean",)),
    ("an oops when L2 is entered", PAGES, PAGES + "\t*(volatile u64 *)0x18 = 1;\n",
     ("KVM_RUN, the kernel with the patch crashes: BUG: kernel NULL pointer",
      f"in svm_get_nested_state_pages, {NESTED}:")),
    ("another order of the same", "".join(COPY), "".join(reversed(COPY)), ("nothing differs",)),
]  # fmt: skip


def source_of(kernel: str) -> str:
    """nested.c of a kernel; its workshop is made if it is not there."""
    with build.using(kernels.wanted(kernel)) as built:
        built_module(built, None)
        place = cache.folder() / f"{cache.WORKSHOP}{built.manifest.kernel}/source.tar"
    with tarfile.open(place) as archive:
        file = archive.extractfile(NESTED)
        assert file is not None
        return file.read().decode()


def mail(text: str, old: str, new: str, name: str) -> bytes:
    """The change as a mail in base64 with the line ends of mail."""
    if text.count(old) != 1:
        raise SystemExit(f"{name}: {text.count(old)} places in {NESTED}")
    lines = (one.splitlines(keepends=True) for one in (text, text.replace(old, new)))
    change = "".join(difflib.unified_diff(*lines, f"a/{NESTED}", f"b/{NESTED}"))
    head = f"From 0 Mon Sep 17 00:00:00 2001\nSubject: [PATCH] {name}\n"
    body = base64.encodebytes(change.replace("\n", "\r\n").encode())
    return head.encode() + b"Content-Transfer-Encoding: base64\n\n" + body


def trials(kernel: str) -> Iterator[bool]:
    """Each case on a kernel."""
    text = source_of(kernel)
    for name, old, new, wanted in CASES:
        begin = time.monotonic()
        done = subprocess.run(
            [Path(sys.executable).with_name("svmstream"), "lab", "patch", "-", "--kernel", kernel,
             "--sequences", "5", STREAMS / FILES[kernel]],
            input=mail(text, old, new, name), capture_output=True, check=False,
        )  # fmt: skip
        words = done.stdout.decode()
        missing = [one for one in wanted if one not in words]
        seconds = time.monotonic() - begin
        verdict = f"not said: {'; '.join(missing)}" if missing else "as it should be"
        print(f"{kernel:5} {name:28} {seconds:4.0f} s  {verdict}", flush=True)
        if missing:
            print(words, done.stderr.decode(), flush=True)
        yield not missing


ATTACK = """\
ln -s /etc/shadow /share/link
mkfifo /share/pipe
mknod /share/device b 1 1
dd if=/dev/zero of=/share/file bs=1M count=64 2>/dev/null && exit 1
exec 3>/share/open && rm /share/open && dd if=/dev/zero bs=1M count=64 >&3 2>/dev/null && exit 2
rm /share/file
i=0; while true >/share/$i; do i=$((i + 1)); done 2>/dev/null
exit 0
"""


def attack() -> bool:
    """Whether a box with a foreign module cannot do more with its share than it should."""
    with build.using(kernels.wanted("6.1")) as built:
        modules = {name: content for name, content in in_order(built) if name == "kvm-amd.ko"}
    with limited_share(32 << 20) as share, Box("6.1", modules=modules, share=share) as box:
        status = box.run(["sh", "-c", ATTACK], timeout=600).returncode
        kinds = {name: stat.S_IFMT(os.lstat(share.path / name).st_mode)
                 for name in ("link", "pipe", "device")}  # fmt: skip
        full = share.full
    good = status == 0 and set(kinds.values()) == {stat.S_IFREG} and full is not None
    print(f"a share that is attacked: status {status}, {full}; plain files: {good}", flush=True)
    return good


def main() -> int:
    """Run all of it."""
    wanted = sys.argv[1:] or list(FILES)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        results = [attack(), *(good for kernel in wanted for good in trials(kernel))]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
