"""A domain of a real libvirt, of its own: captured, watched, refused."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.qmp.vm import BOOT_SECTOR

pytestmark = pytest.mark.xdist_group("libvirt")

NOBODY = 65534
XML = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os><devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/>
<target dev='hda' bus='ide'/></disk></devices></domain>"""
CONFIGURATION = 'security_driver = "none"\nnamespaces = []\ncgroup_controllers = []\n'
SVMSTREAM = (sys.executable, "-m", "qemu_svm")


@dataclass
class Libvirt:
    """A libvirtd of an unprivileged user, whose files are all below one folder."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"qemu+unix:///session?socket={self.folder}/run/libvirt/libvirt-sock"

    def virsh(self, *words: str) -> str:
        command = ["virsh", "-q", "-c", self.uri, *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def svmstream(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"XDG_CONFIG_HOME": str(self.folder / "config")}
        return subprocess.run(
            [*SVMSTREAM, *words], capture_output=True, text=True, env=environment, timeout=60,
            check=False,
        )  # fmt: skip

    def on_domain(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.svmstream(verb, "--domain", "counts", "--connect", self.uri, *words)

    @property
    def monitor(self) -> Path:
        return next(self.folder.glob("config/libvirt/qemu/lib/domain-*-counts/monitor.sock"))


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    """A running libvirtd with one domain, ``counts``, that counts in memory."""
    base = Path("/tmp") if os.geteuid() == 0 else tmp_path_factory.getbasetemp()
    made = subprocess.run(["mktemp", "-d", "-p", base, "lv.XXXXXX"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    folder = Path(made.stdout.strip())
    names = ("run", "config", "cache", "state", "data")
    for name in names:
        (folder / name).mkdir()
    (folder / "config/libvirt").mkdir()
    (folder / "config/libvirt/qemu.conf").write_text(CONFIGURATION)
    (folder / "disk").write_bytes(BOOT_SECTOR)
    (folder / "counts.xml").write_text(XML.format(name="counts", disk=folder / "disk"))
    user: list[str] = []
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", str(NOBODY), folder], check=True)
        folder.chmod(0o755)
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    homes = {
        "XDG_RUNTIME_DIR" if name == "run" else f"XDG_{name.upper()}_HOME": str(folder / name)
        for name in names
    }
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **homes}
    log = (folder / "log").open("wb")
    daemon = subprocess.Popen([*user, "libvirtd"], env=environment, stderr=log, stdout=log,
                              start_new_session=True)  # fmt: skip
    found = Libvirt(folder)
    try:
        for _ in range(100):
            if (folder / "run/libvirt/libvirt-sock").exists():
                break
            time.sleep(0.1)
        found.virsh("define", str(folder / "counts.xml"))
        found.virsh("start", "counts")
        yield found
    finally:
        with contextlib.suppress(AssertionError):
            found.virsh("destroy", "counts")
        daemon.terminate()
        daemon.wait(20)
        log.close()
        subprocess.run(["pkill", "-f", f"{folder}/"], check=False)
        subprocess.run(["pkill", "-U", str(NOBODY), "virtlogd"], check=False)
        subprocess.run(["rm", "-rf", folder], check=True)


def state(libvirt: Libvirt) -> str:
    return libvirt.virsh("domstate", "counts")


def capabilities(libvirt: Libvirt) -> dict[str, bool]:
    text = libvirt.virsh(
        "qemu-monitor-command", "counts", '{"execute":"query-migrate-capabilities"}'
    )
    return {one["capability"]: one["state"] for one in json.loads(text)["return"]}


@pytest.mark.parametrize("way", [[], ["--stop"], ["--xbzrle"]])
def test_a_domain_is_captured_and_is_as_before(
    libvirt: Libvirt, tmp_path: Path, way: list[str]
) -> None:
    before = capabilities(libvirt)
    stream = tmp_path / "counts.bin"
    done = libvirt.on_domain("capture", "-o", str(stream), "--json", *way)
    assert done.returncode == 0, done.stderr
    assert "tainted" in done.stderr
    document = json.loads(done.stdout)
    assert document["guest"]["before"] == document["guest"]["after"]
    assert document["stopped_seconds"] > 0
    inspected = json.loads(libvirt.svmstream("inspect", "--json", str(stream)).stdout)
    assert inspected["stream"]["complete"]
    assert state(libvirt) == "running"
    assert capabilities(libvirt) == before


def test_the_doctor_asks_a_domain_by_uuid_and_number(libvirt: Libvirt) -> None:
    for name in (libvirt.virsh("domuuid", "counts"), libvirt.virsh("domid", "counts")):
        done = libvirt.svmstream("doctor", "--domain", name, "--connect", libvirt.uri, "--json")
        checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
        assert "pc-i440fx" in checks["QEMU"]["found"]


def test_inside_finds_the_process_and_says_that_it_does_not_use_kvm(libvirt: Libvirt) -> None:
    """The domain is emulated, so the kernel has no vCPU of it."""
    done = libvirt.on_domain("inside")
    assert done.returncode == 4
    pid = next(libvirt.folder.glob("run/libvirt/qemu/run/counts.pid")).read_text().strip()
    assert f"domain 'counts' does not use KVM: its process {pid} (qemu-system-x86)" in done.stderr
    assert "<domain type='kvm'>" in done.stderr


def test_libvirts_own_monitor_is_called_that(libvirt: Libvirt) -> None:
    for _ in range(2):  # the second client meets another error of the socket
        done = libvirt.svmstream("watch", "--qmp", str(libvirt.monitor), "--timeout", "2")
        assert done.returncode == 4
        assert "libvirt's own monitor of the domain 'counts'" in done.stderr
        assert "--domain 'counts'" in done.stderr
    assert state(libvirt) == "running"


def test_what_cannot_be_reached_is_said(libvirt: Libvirt) -> None:
    gone = libvirt.svmstream("watch", "--domain", "nobody", "--connect", libvirt.uri)
    assert gone.returncode == 4
    assert "nobody" in gone.stderr
    assert "list --all" in gone.stderr
    nowhere = libvirt.svmstream(
        "watch", "--domain", "x", "--connect", "qemu+unix:///session?socket=/x"
    )
    assert nowhere.returncode == 4
    both = libvirt.on_domain("watch", "--qmp", "x")
    assert both.returncode == 2


def test_without_libvirt_python_the_command_to_get_it_is_said() -> None:
    program = (
        "import sys; sys.modules['libvirt'] = None; from qemu_svm.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "watch", "--domain", "x"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "pip install 'qemu-svm[libvirt]'" in done.stderr
    assert "apt-get install libvirt-dev pkg-config" in done.stderr


def test_multifd_needs_a_socket_that_qemu_reaches(libvirt: Libvirt, tmp_path: Path) -> None:
    done = libvirt.on_domain("capture", "-o", str(tmp_path / "x.bin"), "--multifd", "2")
    assert done.returncode in (0, 5)
    if done.returncode:
        assert "another user" in done.stderr
    assert state(libvirt) == "running"


def test_a_managed_save_is_found_by_name(libvirt: Libvirt) -> None:
    none = libvirt.svmstream("inspect", "libvirt:counts")
    assert none.returncode == 3
    assert "managed save of a domain 'counts'" in none.stderr
    libvirt.virsh("managedsave", "counts")
    try:
        shown = libvirt.svmstream("inspect", "libvirt:counts").stdout
        assert f"counts, UUID {libvirt.virsh('domuuid', 'counts')}" in shown
        xml = libvirt.svmstream("inspect", "--xml", "libvirt:counts").stdout
        assert xml.startswith("<domain")
        stopped = libvirt.on_domain("watch")
        assert stopped.returncode == 4
        assert "does not run" in stopped.stderr
    finally:
        libvirt.virsh("start", "counts")
    assert state(libvirt) == "running"


def test_a_domain_that_is_destroyed_meanwhile(libvirt: Libvirt, tmp_path: Path) -> None:
    # Anew, so that there is no earlier migration whose end could be shown.
    libvirt.virsh("destroy", "counts")
    libvirt.virsh("start", "counts")
    watching = subprocess.Popen(
        [*SVMSTREAM, "watch", "--wait", "--domain", "counts", "--connect", libvirt.uri,
         "--interval", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        time.sleep(2)
        libvirt.virsh("destroy", "counts")
        _, errors = watching.communicate(timeout=30)
    finally:
        watching.kill()
        libvirt.virsh("start", "counts")
    assert watching.returncode == 4
    assert "libvirt domain 'counts'" in errors
