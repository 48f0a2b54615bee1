"""Packages of another Debian suite, without touching the host's own.

``apt-get`` runs with a private configuration: own lists, own (empty) status
file, own archives; it only downloads.  Signatures are checked as usual.  This
needs no root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from qemu_svm.errors import LabError
from qemu_svm.lab.box.life import mortal
from qemu_svm.lab.progress import Progress

DEFAULT_MIRROR = "http://deb.debian.org/debian"
#: Where a suite goes when it is not maintained any more.
ARCHIVE = "http://archive.debian.org/debian"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_ERRORS = 1 << 16
_SAYS = re.compile(r"(?:E|W|Err|Error|Warning): ")
_EXPIRED = re.compile(r"Release file .* is (?:expired|not valid).*\(invalid since ([^)]*)\)")
#: A line of APT::Status-Fd while downloading, with how much of all is done.
_PERCENT = re.compile(r"dlstatus:\d+:(\d+)\.")
_NO_NETWORK = (
    "Could not resolve",
    "Temporary failure resolving",
    "Could not connect",
    "Connection failed",
    "Network is unreachable",
    "Connection timed out",
    "Unable to connect",
    "Connection refused",
)
_LOST = ("404", "does not have a Release file", "no longer has a Release file")

_CONFIGURATION = """\
Dir "{dir}";
Dir::State "{dir}/state";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}/cache";
Dir::Etc "{dir}/etc";
Dir::Etc::sourcelist "{dir}/etc/sources.list";
Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";
Dir::Log "{dir}/log";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::Check-Valid-Until "{strict}";
{proxies}
"""


class Gone(LabError):
    """The mirror does not have this suite (any more)."""


class Expired(LabError):
    """The mirror's Release file is too old.

    :param age: how long ago it expired, in apt's words.
    """

    def __init__(self, what: str, *, age: str) -> None:
        super().__init__(what)
        self.age = age


def host_mirror() -> str:
    """Return the mirror that the host itself uses for Debian, else the public one."""
    chosen = os.environ.get("SVMSTREAM_MIRROR")
    if chosen:
        return chosen.rstrip("/")
    try:
        found = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout.split()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return DEFAULT_MIRROR
    names = (uri.rstrip("/") for uri in found)
    return next((uri for uri in names if uri.endswith("/debian")), DEFAULT_MIRROR)


def keyring() -> Path:
    """Return the keys that a mirror's signature is checked with."""
    return Path(os.environ.get("SVMSTREAM_KEYRING") or _KEYRING)


def require_tools() -> None:
    """Raise LabError with what to install, unless all tools are there."""
    needed = {"apt-get": "apt", "dpkg-deb": "dpkg", "tar": "tar"}
    missing = [package for tool, package in needed.items() if not shutil.which(tool)]
    if missing:
        raise LabError(
            f"building needs programs that are not here: {', '.join(missing)}",
            hint=f"apt-get install {' '.join(missing)}; on another distribution build in a "
            "Debian container and copy the cache",
        )
    if not keyring().exists():
        raise LabError(
            f"Debian's keys are not here: {keyring()}",
            hint="apt-get install debian-archive-keyring",
        )


class Apt:
    """A private apt in a folder of its own.

    :param folder: an empty folder; everything is written there.
    :param strict: refuse Release files that are past their date.
    """

    def __init__(self, folder: Path, suite: str, mirror: str, *, strict: bool = True) -> None:
        self.suite = suite
        self.mirror = mirror
        for name in (
            "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d",
            "state", "log", "lists/partial", "cache/archives/partial",
        ):  # fmt: skip
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "etc/sources.list").write_text(
            f"deb [signed-by={keyring()}] {mirror} {suite} main\n"
        )
        self._configuration = folder / "apt.conf"
        self._configuration.write_text(
            _CONFIGURATION.format(
                dir=folder, strict="true" if strict else "false", proxies=_proxies()
            )
        )
        self.archives = folder / "cache/archives"

    def update(self) -> None:
        """Fetch the suite's list of packages.

        :raises LabError: no network; :class:`Gone`, :class:`Expired`.
        """
        status, errors = self._run("update")
        if status or "W: Failed to fetch" in errors:
            self._explain(errors)

    def download(self, packages: tuple[str, ...], progress: Progress) -> dict[str, Path]:
        """Download packages with all they depend on.

        :returns: the archives by package name.
        :raises LabError: no network, no space, or a package that is not to be had.
        """
        what = f"{self.suite}: downloading from {self.mirror}"
        progress.step(what)

        def show(line: str) -> None:
            percent = _PERCENT.match(line)
            if percent:
                progress.step(what, int(percent.group(1)), 100)

        status, errors = self._run("install", "--yes", "--download-only", *packages, show=show)
        if status:
            self._explain(errors)
        found = sorted(self.archives.glob("*.deb"))
        return {path.name.partition("_")[0]: path for path in found}

    def _run(
        self, *arguments: str, show: Callable[[str], None] = lambda _line: None
    ) -> tuple[int, str]:
        environment = dict(os.environ, APT_CONFIG=str(self._configuration), LC_ALL="C")
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                mortal(["apt-get", "-qq", "-o", "APT::Status-Fd=1", *arguments]),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                text=True, errors="replace", env=environment,
            ) as process,
        ):  # fmt: skip
            try:
                for line in process.stdout or ():
                    show(line)
            except BaseException:
                process.terminate()
                raise
            status = process.wait()
            errors.seek(0)
            return status, errors.read(_ERRORS).decode(errors="replace")

    def _explain(self, text: str) -> NoReturn:
        lines = [line.partition(": ")[2] for line in text.splitlines() if _SAYS.match(line)]
        first = lines[0] if lines else text.strip() or "apt-get failed"
        where = f"{self.suite} from {self.mirror}"
        expired = _EXPIRED.search(text)
        if expired:
            raise Expired(f"the Release file of {where} has expired", age=expired.group(1))
        if any(word in text for word in _NO_NETWORK):
            raise LabError(
                f"no network: {where} cannot be reached: {first}",
                hint="check the network, or name another mirror with --mirror or SVMSTREAM_MIRROR",
            )
        if any(word in text for word in _LOST):
            raise Gone(
                f"the mirror does not have {where}: {first}",
                hint="testing moves: try again later; for an old suite: --mirror " + ARCHIVE,
            )
        if "is not signed" in text or "GPG error" in text:
            raise LabError(
                f"the signature of {where} cannot be verified: {first}",
                hint=f"the keys are those of {keyring()}: a newer debian-archive-keyring, or "
                "SVMSTREAM_KEYRING for a mirror of your own",
            )
        if "No space left" in text or "enough free space" in text:
            raise LabError(f"no space to download {where}", hint="free some, or set XDG_CACHE_HOME")
        raise LabError(f"packages of {where} cannot be had: {first}")


def version_of(archive: Path) -> str:
    """Return the package version out of the name apt gave to an archive."""
    return unquote(archive.name.split("_")[1])


def _proxies() -> str:
    # The host's way to the network is taken over, nothing else of its configuration.
    try:
        shown = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    wanted = re.compile(r"^Acquire::https?::Proxy", re.IGNORECASE)
    return "\n".join(line for line in shown.splitlines() if wanted.match(line))
