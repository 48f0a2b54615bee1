"""A Debian mirror in small: signed, served over HTTP, with packages of a few files.

It looks to apt like the real one, so a whole build can be tested without network,
also with what real mirrors do now and then: expire, move on, disappear, stall.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUSYBOX = "#!/bin/sh\necho usr/bin/sh; echo usr/bin/vi; echo usr/sbin/insmod\n"


def packages(kernel: str, qemu: str) -> dict[str, tuple[str, str, dict[str, str]]]:
    """What a suite consists of: version, dependencies and files by package name."""
    release = f"{kernel}.0-9-amd64"
    modules = f"lib/modules/{release}"
    return {
        "linux-image-amd64": (f"{kernel}.50-1", f"linux-image-{release}", {}),
        f"linux-image-{release}": (
            f"{kernel}.50-1",
            "",
            {
                f"boot/vmlinuz-{release}": "kernel",
                f"boot/System.map-{release}": "left out",
                f"{modules}/modules.builtin": "kernel/drivers/virtio/virtio.ko\n",
                f"{modules}/kernel/drivers/gpu/drm.ko": "left out",
                f"{modules}/kernel/arch/x86/kvm/kvm.ko": "module",
            },
        ),
        "qemu-system-x86": (f"1:{qemu}+dfsg-7", "seabios", {"usr/bin/qemu-system-x86_64": "qemu"}),
        "seabios": ("1.16.2-1", "", {"usr/share/seabios/bios.bin": "bios"}),
        "busybox-static": ("1:1.35-4", "", {"bin/busybox": BUSYBOX}),
        "bash": ("5.2-1", "", {"bin/bash": "bash", "usr/share/doc/bash/README": "left out"}),
        "coreutils": ("9.1-1", "", {"bin/vi": "its own vi"}),
        "python3": ("3.11-1", "", {}),
        "strace": ("6.1-1", "", {"usr/bin/strace": "strace"}),
    }


def kernel_packages(version: str, release: str) -> dict[str, tuple[str, str, dict[str, str]]]:
    """A kernel as Debian packs it: in one package, from 6.19 on in several."""
    modules = f"lib/modules/{release}"
    image = {f"boot/vmlinuz-{release}": f"kernel {version}"}
    rest = {
        f"{modules}/modules.builtin": "kernel/drivers/virtio/virtio.ko\n",
        f"{modules}/kernel/arch/x86/kvm/kvm.ko": f"module {version}",
    }
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < (6, 19):
        return {f"linux-image-{release}": (version, "bash", image | rest)}
    parts = ("base", "binary", "modules")
    depends = ", ".join(f"linux-{part}-{release} (= {version})" for part in parts)
    return {
        f"linux-image-{release}": (version, f"bash | dash, {depends}", {}),
        f"linux-base-{release}": (version, "", {f"boot/config-{release}": "config"}),
        f"linux-binary-{release}": (version, "", image),
        f"linux-modules-{release}": (version, "", rest),
    }


class Key:
    """A key pair to sign with."""

    def __init__(self, folder: Path) -> None:
        self._home = folder / "gnupg"
        self._home.mkdir(mode=0o700)
        self._gpg("--passphrase", "", "--quick-generate-key", "mirror", "ed25519", "sign", "never")
        self.public = folder / "public.gpg"
        self._gpg("--output", str(self.public), "--export")

    def sign(self, text: Path, signed: Path) -> None:
        """Sign in clear, as InRelease is."""
        signed.unlink(missing_ok=True)
        self._gpg("--output", str(signed), "--clearsign", str(text))

    def _gpg(self, *arguments: str) -> None:
        command = ["gpg", "--homedir", str(self._home), "--batch", "--quiet", "--no-tty"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    def close(self) -> None:
        """End gpg's agent."""
        subprocess.run(["gpgconf", "--homedir", self._home, "--kill", "all"], check=True)


class Mirror:
    """The files of a mirror; ``add`` puts a suite there."""

    def __init__(self, top: Path, key: Key) -> None:
        self.top = top
        self._key = key
        self.asked: list[str] = []
        #: Clear it to let requests for packages wait.
        self.flowing = threading.Event()
        self.flowing.set()
        self.url = ""

    def add(
        self, suite: str, kernel: str, qemu: str, *, valid: timedelta = timedelta(days=7)
    ) -> None:
        """Put a suite there, to be valid so long from now."""
        self._put(suite, packages(kernel, qemu), "", valid)

    def add_kernels(
        self, suite: str, *kernels: tuple[str, str], under: str = "", gone: Sequence[str] = (),
        valid: timedelta = timedelta(days=7),
    ) -> None:  # fmt: skip
        """Put a suite there that has these kernels, each with version and release.

        :param under: directory of the mirror for ``dists`` and ``pool``.
        :param gone: packages that others depend on and that are not there.
        """
        there: dict[str, tuple[str, str, dict[str, str]]] = {}
        for version, release in kernels:
            there |= kernel_packages(version, release)
        kept = {name: what for name, what in there.items() if name not in gone}
        self._put(suite, kept, under, valid)

    def _put(
        self, suite: str, content: dict[str, tuple[str, str, dict[str, str]]], under: str,
        valid: timedelta,
    ) -> None:  # fmt: skip
        index = []
        top = self.top / under
        pool = top / "pool" / suite
        pool.mkdir(parents=True)
        for name, (version, depends, files) in content.items():
            index.append(_deb(pool, name, version, depends, files))
        text = "".join(index).replace(str(top) + "/", "").encode()
        there = top / "dists" / suite
        (there / "main/binary-amd64").mkdir(parents=True)
        (there / "main/binary-amd64/Packages").write_bytes(text)
        now = datetime.now(UTC)
        release = (
            f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\n"
            f"Date: {_date(now - timedelta(days=30))}\nValid-Until: {_date(now + valid)}\n"
            "Architectures: amd64\nComponents: main\nSHA256:\n"
            f" {hashlib.sha256(text).hexdigest()} {len(text)} main/binary-amd64/Packages\n"
        )
        (there / "Release").write_text(release)
        self._key.sign(there / "Release", there / "InRelease")

    @contextmanager
    def served(self) -> Iterator[Mirror]:
        """Answer requests at ``url``."""
        handler = partial(_Handler, self, directory=str(self.top))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield self
            finally:
                self.flowing.set()
                server.shutdown()
                thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, mirror: Mirror, *args: Any, **options: Any) -> None:
        self._mirror = mirror
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        self._mirror.asked.append(self.path)
        if self.path.endswith(".deb"):
            self._mirror.flowing.wait()
        super().do_GET()

    def log_message(self, *_args: Any) -> None:
        pass


def _deb(pool: Path, name: str, version: str, depends: str, files: dict[str, str]) -> str:
    tree = pool / name
    for path, content in files.items():
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o755)
    (tree / "DEBIAN").mkdir(parents=True)
    control = (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: test\n"
    )
    control += f"Depends: {depends}\n" if depends else ""
    (tree / "DEBIAN/control").write_text(control)
    deb = pool / f"{name}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, deb],
        check=True, capture_output=True,
    )  # fmt: skip
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    return f"{control}Filename: {deb}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n\n"


def _date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True).replace("GMT", "UTC")
