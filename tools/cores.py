"""Cores of a Linux in Linux, opened by every debugger that is installed.

Captures the guest linux-in-linux (or takes --stream), fetches the symbols of its kernel from
Debian (or takes --symbols DIR, an unpacked linux-image-*-dbg), writes cores of L1 and of L2,
and runs crash, drgn, makedumpfile, gdb, readelf and volatility3 on them.  It takes a quarter
of an hour and 2 GiB of disk.  The exit status is 1 if one of them finds something wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from measure import CACHE, PROGRAM

ROOT = Path(__file__).resolve().parent.parent
MACHINE = "pc,max-ram-below-4g=512M"
TIMEOUT = 900


def run(command: Sequence[str | Path], folder: Path | None = None) -> str:
    """What a command printed; with its errors, and its status if that is not 0."""
    try:
        done = subprocess.run(
            [str(one) for one in command], capture_output=True, text=True, check=False,
            cwd=folder, timeout=TIMEOUT, errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        return "not installed"
    status = f"\nstatus {done.returncode}" if done.returncode else ""
    return done.stdout + done.stderr + status


def symbols(release: str) -> Path:
    """Folder with the symbols of a Debian kernel, fetched into the cache."""
    package = f"linux-image-{release}-dbg"
    folder = CACHE / package
    if not (folder / "usr/lib/debug/boot").exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(run(["apt-get", "download", package], folder))
        (archive,) = folder.glob("*.deb")
        parts = ["./usr/lib/debug/boot", "./usr/lib/debug/lib/modules/*/kernel/arch/x86/kvm/*"]
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
        ) as tar:
            subprocess.run(
                ["tar", "x", "-C", folder, "--wildcards", *parts], stdin=tar.stdout, check=True
            )
        archive.unlink()
    return folder


def checks(
    folder: Path, found: Path, release: str, stream: Path
) -> Iterator[tuple[str, bool, str]]:
    """What was checked, whether it is right, and what was printed."""
    image = found / f"usr/lib/debug/boot/vmlinux-{release}"
    (folder / "commands").write_text("sys\nbt -a\nquit\n")
    for level in ("l1", "l2"):
        core = folder / f"{level}.core"
        text = run(["crash", "-s", image, core, "-i", folder / "commands"])
        inside = level == "l2" or "svm_vcpu_run" in text
        yield f"crash {level}", f"RELEASE: {release}" in text and inside, text
        text = run(["makedumpfile", "-d", "31", "-l", core, folder / f"{level}.small"])
        yield f"makedumpfile {level}", "Completed" in text and "status" not in text, text
        text = run(["readelf", "-lW", core])
        yield f"readelf {level}", "CORE" in text and "arning" not in text, text
        code = "print(prog['init_uts_ns'].name.release.string_().decode())"
        text = run([*PROGRAM, "mem", "drgn", stream, "--of", level, "-s", image, "-e", code])
        yield f"drgn {level}, without a core", release in text and "status" not in text, text
        text = run(["vol", "-q", "-f", core, "banners.Banners"])
        yield f"volatility3 {level}", f"Linux version {release}" in text, text
    document = json.loads((folder / "l2.gdb.json").read_text())
    offset = document["vmcoreinfo"]["kaslr_offset"]
    text = run(["gdb", "-nx", "-batch", "-ex", f"add-symbol-file {image} -o {offset}",
                "-ex", "p init_uts_ns.name.release", "-c", folder / "l2.gdb"])  # fmt: skip
    yield "gdb l2", release in text, text
    modules = sorted(found.rglob("kvm.ko*"))[:1]
    script = ROOT / "examples" / "l2_by_memslots.py"
    text = run([sys.executable, script, stream, image, *modules])
    yield "memslots", "pages agree, 0 differ" in text, text


def main() -> int:
    """Capture, write, open."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stream", type=Path, help="a capture of linux-in-linux")
    parser.add_argument("--symbols", type=Path, metavar="DIR")
    chosen = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="cores-") as name:
        folder = Path(name)
        stream = chosen.stream or folder / "linux-in-linux.mig"
        if chosen.stream is None:
            print(run([*PROGRAM, "lab", "capture", "--guest", "linux-in-linux", "--kernel", "6.1",
                       "--machine", MACHINE, "-o", stream]))  # fmt: skip
        release = ""
        for level, form in (("l1", "crash"), ("l2", "crash"), ("l2", "gdb")):
            core = folder / f"{level}.{'core' if form == 'crash' else form}"
            text = run([*PROGRAM, "mem", "core", stream, "-o", core, "--of", level,
                        "--for", form, "--json"])  # fmt: skip
            core.with_name(core.name + ".json").write_text(text)
            release = json.loads(text)["vmcoreinfo"]["release"]
        found = chosen.symbols or symbols(release)
        for what, right, text in checks(folder, found, release, stream):
            missing = text == "not installed"
            print(f"{what:24} {'not installed' if missing else 'right' if right else 'WRONG'}")
            if not right and not missing:
                print(text[-2000:])
                wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
