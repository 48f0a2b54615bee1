"""Modules of others, refused before a box is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_svm.errors import SourceError, SvmStreamError
from qemu_svm.lab.suites import cache
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.catalogue import of_kernel
from qemu_svm.lab.suites.modules import in_order
from qemu_svm.lab.suites.own import own_kernel
from qemu_svm.lab.trial.ko import Ko, ModuleRefused, checked
from tests.conftest import Run


@pytest.fixture(scope="module")
def kernel() -> Built:
    found = cache.find(of_kernel("6.1"))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def modules(kernel: Built) -> dict[str, bytes]:
    return dict(in_order(kernel))


def test_what_a_module_needs_and_provides(modules: dict[str, bytes]) -> None:
    """kvm-amd of the suite fits kvm of the suite, symbol by symbol."""
    kvm, amd = (Ko(name, modules[name]) for name in ("kvm.ko", "kvm-amd.ko"))
    assert (kvm.info["name"], amd.info["name"]) == ("kvm", "kvm_amd")
    shared = amd.needs.keys() & kvm.provides.keys()
    assert len(shared) > 150
    assert all(amd.needs[name] == kvm.provides[name] for name in shared)


def test_a_module_that_fits(kernel: Built, modules: dict[str, bytes]) -> None:
    given = {f"/x/{name}": modules[name] for name in ("kvm.ko", "kvm-amd.ko")}
    assert checked(kernel, given) == {name: modules[name] for name in ("kvm.ko", "kvm-amd.ko")}
    assert checked(kernel, {"other.ko": modules["kvm-amd.ko"]}).keys() == {"kvm-amd.ko"}


def test_a_module_that_does_not_fit(kernel: Built, modules: dict[str, bytes]) -> None:
    amd = modules["kvm-amd.ko"]
    old = amd.replace(b"vermagic=6.1.0-", b"vermagic=6.2.0-")
    with pytest.raises(ModuleRefused, match=r"a.ko is built for '6.2.0-.*this kernel is '6.1.0-"):
        checked(kernel, {"a.ko": old})
    name = b"kvm_rebooting"
    at = next(i for i in _places(amd, name) if amd[i - 8 + 4 : i] == bytes(4))
    other = amd[: at - 8] + bytes(8) + amd[at:]
    with pytest.raises(ModuleRefused, match=rf"versions of {name.decode()} differ"):
        checked(kernel, {"a.ko": other})
    with pytest.raises(
        ModuleRefused, match=r"not kvm\.ko or kvm-amd\.ko, but the module 'irqbypass'"
    ):
        checked(kernel, {"i.ko": modules["irqbypass.ko"]})
    with pytest.raises(ModuleRefused, match="given twice"):
        checked(kernel, {"a": amd, "b": amd})


def _places(data: bytes, name: bytes) -> list[int]:
    # Where an entry of __versions can have the name.
    found, at = [], data.find(name + b"\0")
    while at >= 0:
        found.append(at)
        at = data.find(name + b"\0", at + 1)
    return found


@pytest.mark.parametrize("size", [0, 3, 63, 64, 1000, 100_000])
def test_what_is_no_module(size: int, modules: dict[str, bytes]) -> None:
    """A cut module, and one whose numbers are damaged, raise our own errors."""
    amd = modules["kvm-amd.ko"]
    with pytest.raises(SourceError):
        Ko("a", amd[:size]).info  # noqa: B018
    damaged = amd[:40] + bytes([size & 255] * 24) + amd[64:]
    try:
        module = Ko("a", damaged)
        assert (module.info, module.needs, module.provides) is not None
    except SvmStreamError:
        pass


def test_a_kernel_of_ones_own(kernel: Built, tmp_path: Path) -> None:
    own = own_kernel(kernel.vmlinuz, kernel.modules)
    assert own.manifest.release == kernel.manifest.release
    assert own == own_kernel(kernel.vmlinuz, kernel.root / "usr")
    for image, folder, words in (
        (kernel.vmlinuz, tmp_path, "has no modules of 6.1"),
        (kernel.path / "manifest.json", kernel.modules, "is no bzImage"),
    ):
        with pytest.raises(SvmStreamError, match=words):
            own_kernel(image, folder)


def test_it_is_refused_before_a_box_is_started(svmstream: Run, tmp_path: Path) -> None:
    path = tmp_path / "kvm-amd.ko"
    path.write_bytes(b"no module")
    done = svmstream("lab", "run", "--kernel", "6.1", "--module", path, "--", "true")
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"is no kernel module" in done.stderr
    done = svmstream("lab", "run", "--kernel-image", path, "--", "true")
    assert done.returncode == 2
    assert b"--kernel-image needs --modules" in done.stderr
