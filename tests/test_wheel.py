"""What a user installs: the wheel built from the source distribution, in an environment alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path

import pytest

from qemu_svm import __version__
from tests.cli.test_help import ALL
from tests.conftest import ROOT, STREAMS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

FILE = STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst"
LOOK = ROOT / "tests/inside/look-6.1.json"
Done = subprocess.CompletedProcess[bytes]


@dataclass(frozen=True)
class Installed:
    """An environment with nothing of this project but its wheel."""

    prefix: Path
    source: Path

    def run(self, *words: str | Path, program: str = "svmstream", timeout: float = 60) -> Done:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return subprocess.run(
            [self.prefix / "bin" / program, *map(str, words)],
            capture_output=True, check=False, timeout=timeout, cwd=self.prefix, env=clean,
        )  # fmt: skip


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Source distribution, wheel out of it, environment with the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (
        "import sys, setuptools.build_meta as b; sys.argv[1:] = []; "
        "print(b.build_{0}({1!r}), file=sys.stderr)"
    )

    def made(kind: str, where: Path) -> Path:
        code = build.format(kind, str(folder))
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=where, capture_output=True, check=True
        )
        return folder / done.stderr.decode().split()[-1]

    # A copy, since setuptools leaves files beside what it builds.
    made_here = (".venv", ".git", "__pycache__", ".*_cache", "*.egg-info", "build", "*.so")
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*made_here))
    archive = made("sdist", checkout)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz")
    wheel = made("wheel", source)
    prefix = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    pip = [sys.executable, "-m", "pip", "--python", prefix / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True)
    # What it depends on is that of the tests; a .pth file in there is not followed.
    (site,) = prefix.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(prefix, source)


def test_the_compiled_part_is_for_every_python(installed: Installed) -> None:
    (wheel,) = installed.prefix.parent.glob("*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    code = "from qemu_svm.stream.ram import _ram; print(_ram.__file__)"
    done = installed.run("-c", code, program="python")
    assert done.stdout.strip().endswith(b"_ram.abi3.so")


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    code = "import qemu_svm; print(qemu_svm.__file__)"
    done = installed.run("-c", code, program="python")
    assert str(installed.prefix) in done.stdout.decode()
    for program in ("svmstream", "qemu-svm"):
        version = installed.run("--version", program=program)
        assert version.stdout.startswith(f"svmstream {__version__} ".encode())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("inspect", FILE), b"No problems found."),
        (("check", FILE), b"accepted"),
        (("simulate", FILE), b"verdict: right"),
        (("ram", FILE), b"pc.ram"),
        (("mem", "read", FILE, "rip"), b"l2v:"),
        (("lab", "capture", "--guests"), b"nested"),
        (("record", "--probe", "-"), b"the KVM ioctls of a VMM"),
        (("diff", LOOK, LOOK), b"no differences"),
        (("schema", "inspect"), b"inspect.nested"),
        (("inspect", FILE, "--rows", "vcpus", "--fields", "index,guest_mode"), b"0\ttrue"),
    ],
)
def test_verbs(words: tuple[str, ...], text: bytes, installed: Installed) -> None:
    done = installed.run(*words)
    assert (done.returncode, done.stderr) == (0, b"")
    assert text in done.stdout


def test_every_verb_has_a_manual_page(installed: Installed) -> None:
    pages = installed.prefix / "share" / "man" / "man1"
    for words in [(), *ALL]:
        page = pages / f"{'-'.join(('svmstream', *words))}.1"
        text = page.read_text()
        assert text.startswith(".TH SVMSTREAM")
        for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS"):
            assert f".SH {heading}\n" in text, (page.name, heading)


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_manual_pages_are_formatted_without_a_warning(installed: Installed) -> None:
    page = installed.prefix / "share" / "man" / "man1" / "svmstream-mem-read.1"
    done = subprocess.run(
        ["man", "--warnings", page], capture_output=True, check=False,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"svmstream mem read dump.bin l1p:0x1000 /16xg" in done.stdout
    assert b"--description FILE" in done.stdout


@pytest.fixture
def completed(installed: Installed) -> Callable[[str], list[str]]:
    """What bash offers after a line."""
    script = installed.prefix / "share" / "bash-completion" / "completions" / "svmstream"

    def offers(line: str) -> list[str]:
        code = (
            f"source {script}; PATH={installed.prefix}/bin:$PATH; compopt() {{ :; }}; "
            'COMP_LINE="$1"; COMP_POINT=${#1}; _svmstream_words svmstream; '
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", code, "bash", line], capture_output=True, check=True)
        assert done.stderr == b""
        return done.stdout.decode().split()

    return offers


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("svmstream che", {"check"}),
        ("svmstream mem re", {"read"}),
        ("svmstream check --kernel 6.1", {"6.1", "6.12"}),
        ("svmstream simulate --kernel re", {"review"}),
        ("svmstream check --npt o", {"on", "off"}),
        ("svmstream lab run --kernel 7", {"7.2"}),
        (f"svmstream show {FILE} vcpu0.nested.c", {"vcpu0.nested.control"}),
        (f"svmstream show {FILE} section:io", {"ioapic"}),
        (f"svmstream mem read {FILE} l2", {"l2v:", "l2p:"}),
    ],
)
def test_completion(line: str, words: set[str], completed: Callable[[str], list[str]]) -> None:
    assert words <= set(completed(line))


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("zsh", "zsh/site-functions/_svmstream"),
        ("fish", "fish/vendor_completions.d/svmstream.fish"),
    ],
)
def test_completion_of_other_shells(shell: str, path: str, installed: Installed) -> None:
    script = installed.prefix / "share" / path
    assert "_SVMSTREAM_COMPLETE" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "--no-execute", script], check=True)


def test_the_wheel_has_what_the_help_refers_to(installed: Installed) -> None:
    (docs,) = installed.prefix.glob("lib/python*/site-packages/qemu_svm/_data/docs")
    here = ROOT / "docs"
    wanted = {one.relative_to(here) for one in here.rglob("*") if one.is_file()}
    assert {one.relative_to(docs) for one in docs.rglob("*") if one.is_file()} == wanted


def test_svmtrace_is_built_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    code = "from qemu_svm.lab import svmtrace; print(svmtrace.SOURCE, svmtrace.plugin())"
    done = subprocess.run(
        [installed.prefix / "bin" / "python", "-c", code], capture_output=True, check=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip
    source, plugin = done.stdout.decode().split()
    assert source.startswith(str(installed.prefix))
    assert Path(plugin).read_bytes().startswith(b"\x7fELF")


def test_the_source_distribution_is_complete(installed: Installed) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=False)
    for name in listed.stdout.decode().splitlines():
        if name != ".gitignore" and (ROOT / name).exists():
            assert (installed.source / name).exists(), name


def test_tests_run_in_the_source_distribution(installed: Installed) -> None:
    words = ["-q", "-p", "no:cacheprovider", "-m", "not qemu and not box", "tests/x86"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=installed.source, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def test_metadata() -> None:
    found = metadata("qemu-svm")
    assert found["Name"] == "qemu-svm"
    assert found["Author"] == "svmstream developers"
    assert found["License-Expression"] == "MIT"
    assert {"mem", "all", "test", "docs", "dev"} <= set(found.get_all("Provides-Extra") or ())
    core = {
        line.split(">")[0] for line in found.get_all("Requires-Dist") or () if "extra" not in line
    }
    assert core == {"click", "construct", "qemu.qmp", "rich", "zstandard"}


@pytest.mark.box
@pytest.mark.timeout(900)
def test_the_lab_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = installed.run(
        "lab", "witness", "--json", STREAMS / "qemu7.2-linux6.1-nested-npt.mig.zst",
        "--kernel", "6.1", "--log", log, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema_version"] == 1
    assert log.read_bytes().startswith(b"SVMTRACE")
    replayed = installed.run(
        "replay", STREAMS / "qemu7.2-linux6.1-nested-npt.mig.zst", "--lab", "6.1", timeout=300
    )
    assert replayed.returncode == 0, replayed.stderr
