"""Download of packages of another Debian suite, without affecting the host's apt.

``apt-get`` runs with a private configuration: its own lists, its own (empty)
status file, its own archives; it only downloads.  Signatures are checked as usual.
This needs no root.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from qemu_svm.errors import LabError
from qemu_svm.lab.host import mortal
from qemu_svm.lab.progress import Progress

DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY = "http://deb.debian.org/debian-security"
ARCHIVE = "http://archive.debian.org/debian"
"""The mirror of suites that are no longer maintained."""
SNAPSHOT = "http://snapshot.debian.org/archive/debian/YYYYMMDDT000000Z"
"""The mirror as it was on a day."""
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_ERRORS = 1 << 16  # bytes of standard error that are kept
_SAYS = re.compile(r"(?:E|W|Err|Error|Warning): ")
_EXPIRED = re.compile(r"Release file .* is (?:expired|not valid).*\(invalid since ([^)]*)\)")
_SNAPSHOT = re.compile(r"/\d{8}T\d{6}Z/*$", re.ASCII)
# A line of APT::Status-Fd while downloading, with the percentage of all.
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
# apt prints "404  " and the server's words; a port or a key may contain 404 as well.
_LOST = ("404  ", "does not have a Release file", "no longer has a Release file")

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
    """The mirror does not have this suite, or no longer has it."""


class Expired(LabError):
    """The mirror's Release file has expired.

    :param age: how long ago it expired, as reported by apt.
    """

    def __init__(self, what: str, *, age: str) -> None:
        super().__init__(what)
        self.age = age


def host_mirror() -> str:
    """Return the Debian mirror of SVMSTREAM_MIRROR, else the host's, else the public one."""
    return _chosen_mirror() or _of_host("/debian") or DEFAULT_MIRROR


def security_mirror(mirror: str | None = None) -> str:
    """Return the mirror of the security suites that belongs to a mirror.

    :param mirror: URL; None for :func:`host_mirror`.
    """
    main = mirror.rstrip("/") if mirror else _chosen_mirror()
    if main is None:
        return _of_host("/debian-security") or DEFAULT_SECURITY
    # http://deb.debian.org/debian, http://snapshot.debian.org/archive/debian/20250101T000000Z;
    # a mirror of one's own may have all suites in one place.
    return re.sub(r"/debian(?=/|$)(?!.*/debian(?:/|$))", "/debian-security", main)


def is_snapshot(mirror: str) -> bool:
    """Return whether a URL is that of a mirror as it was on a day."""
    return _SNAPSHOT.search(mirror) is not None


def _chosen_mirror() -> str | None:
    chosen = os.environ.get("SVMSTREAM_MIRROR")
    return chosen.rstrip("/") if chosen else None


def _of_host(end: str) -> str | None:
    # The host's own mirror whose URL ends like this.
    try:
        found = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout.split()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    names = (uri.rstrip("/") for uri in found)
    return next((uri for uri in names if uri.endswith(end)), None)


def keyring() -> Path:
    """Return the path of the keyring with which a mirror's signature is checked."""
    return Path(os.environ.get("SVMSTREAM_KEYRING") or _KEYRING)


def require_tools() -> None:
    """Check that the programs and the keyring that a build needs are installed.

    :raises LabError: some are missing; the hint says what to install.
    """
    needed = {"apt-get": "apt", "dpkg-deb": "dpkg", "tar": "tar"}
    missing = [package for tool, package in needed.items() if not shutil.which(tool)]
    if missing:
        raise LabError(
            f"programs needed for the build are not installed: {', '.join(missing)}",
            hint=f"apt-get install {' '.join(missing)}; on another distribution, build in a "
            "Debian container and copy the cache",
        )
    if not keyring().exists():
        raise LabError(
            f"Debian's keyring is missing: {keyring()}",
            hint="apt-get install debian-archive-keyring",
        )


class Apt:
    """A private apt in its own directory.

    :param folder: an empty directory; everything is written there.
    :param suite: Debian's name of the suite.
    :param mirror: URL.
    :param strict: refuse Release files that have expired.
    :param beside: further suites, each with its mirror.
    :raises OSError: the directory cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        suite: str,
        mirror: str,
        *,
        strict: bool = True,
        beside: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.suite = suite
        self.mirror = mirror
        for name in (
            "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d",
            "state", "log", "lists/partial", "cache/archives/partial",
        ):  # fmt: skip
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "etc/sources.list").write_text(
            "".join(
                f"deb [signed-by={keyring()}] {url} {name} main\n"
                for name, url in ((suite, mirror), *beside)
            )
        )
        self._configuration = folder / "apt.conf"
        self._configuration.write_text(
            _CONFIGURATION.format(
                dir=folder, strict="true" if strict else "false", proxies=_proxies()
            )
        )
        self.archives = folder / "cache/archives"
        self._lists = folder / "lists"

    def update(self) -> None:
        """Fetch the suite's list of packages.

        :raises Gone: the mirror does not have the suite.
        :raises Expired: its Release file has expired, and ``strict`` is set.
        :raises LabError: no network, or a wrong signature.
        """
        status, errors = self._run("update")
        if status or "W: Failed to fetch" in errors:
            self._explain(errors)

    def lists(self) -> list[Path]:
        """Return the files of the list of packages, which :meth:`update` has fetched."""
        return sorted(self._lists.glob("*_Packages"))

    def download_only(
        self, packages: Sequence[str], version: str, progress: Progress
    ) -> dict[str, Path]:
        """Download packages of one version, without their dependencies.

        :returns: the archives by package name.
        :raises LabError: no network, no space, or a package is not available.
        """
        return self._download(["download", *(f"{name}={version}" for name in packages)], progress)

    def download(self, packages: tuple[str, ...], progress: Progress) -> dict[str, Path]:
        """Download packages and their dependencies.

        :returns: the archives by package name.
        :raises LabError: no network, no space, or a package is not available.
        """
        return self._download(["install", "--yes", "--download-only", *packages], progress)

    def _download(self, arguments: list[str], progress: Progress) -> dict[str, Path]:
        what = f"{self.suite}: downloading from {self.mirror}"
        progress.step(what)

        def show(line: str) -> None:
            percent = _PERCENT.match(line)
            if percent:
                progress.step(what, int(percent.group(1)), 100)

        status, errors = self._run(*arguments, show=show)
        if status:
            self._explain(errors)
        found = sorted(self.archives.glob("*.deb"))
        return {path.name.partition("_")[0]: path for path in found}

    def _run(
        self, *arguments: str, show: Callable[[str], None] = lambda _line: None
    ) -> tuple[int, str]:
        # Exit status and standard error; ``show`` is called with each line of output.
        environment = dict(os.environ, APT_CONFIG=str(self._configuration), LC_ALL="C")
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                mortal(["apt-get", "-qq", "-o", "APT::Status-Fd=1", *arguments]),
                cwd=self.archives, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
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
                hint="check the network, or use another mirror with --mirror or SVMSTREAM_MIRROR",
            )
        if any(word in text for word in _LOST):
            raise Gone(
                f"the mirror does not have {where}: {first}",
                hint="testing changes: try again later; for an old suite: --mirror " + ARCHIVE,
            )
        if "is not signed" in text or "GPG error" in text:
            raise LabError(
                f"the signature of {where} cannot be verified: {first}",
                hint=f"the keys are those of {keyring()}: install a newer "
                "debian-archive-keyring, or set SVMSTREAM_KEYRING for a mirror of your own",
            )
        if "No space left" in text or "enough free space" in text:
            raise LabError(f"no space to download {where}", hint="free some, or set XDG_CACHE_HOME")
        raise LabError(f"packages of {where} are not available: {first}")


def updated(
    suite: str,
    mirror: str,
    folder: Path,
    progress: Progress,
    *,
    archive: str | None,
    beside: Sequence[tuple[str, str]] = (),
) -> tuple[Apt, list[str]]:
    """Return a private apt with a suite's list of packages, and notable events.

    The mirror is used as given; without a check of its date if that has passed.

    :param folder: a directory for it, which is emptied.
    :param archive: the mirror that is asked if the suite is gone from this one.
    :param beside: further suites to take packages from, each with its mirror.
    :raises Gone: no mirror has the suite.
    :raises LabError: no network, or a wrong signature.
    """
    remarks: list[str] = []
    strict = True
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        source = Apt(folder, suite, mirror, strict=strict, beside=beside)
        progress.step(f"{suite}: list of packages from {mirror}")
        try:
            source.update()
        except Expired as error:
            if not strict:
                raise
            strict = False
            remarks.append(
                f"the Release file of {suite} on {mirror} expired {error.age} ago; "
                "it was used nevertheless"
            )
        except Gone:
            if archive is None or mirror == archive:
                raise
            remarks.append(f"{mirror} does not have {suite}; taken from {archive}")
            mirror = archive
        else:
            return source, remarks
        progress.note(remarks[-1])


def version_of(archive: Path) -> str:
    """Return the package version, from the name that apt gave an archive."""
    return unquote(archive.name.split("_")[1])


@functools.cache
def _proxies() -> str:
    # The host's proxies are used, and nothing else of its configuration.
    try:
        shown = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    wanted = re.compile(r"^Acquire::https?::Proxy", re.IGNORECASE)
    return "\n".join(line for line in shown.splitlines() if wanted.match(line))
