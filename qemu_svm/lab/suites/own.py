"""A kernel that somebody has built: an image and its modules."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.suites.cache import Built, Manifest
from qemu_svm.lab.suites.modules import in_order

_LIMIT = 512 << 20  # bytes of an image
_VERSION, _MAGIC = 0x20E, 0x202  # Linux, Documentation/arch/x86/boot.rst
_RELEASE = re.compile(rb"\d+\.\d+[\w.+~-]*", re.ASCII)


@dataclass(frozen=True)
class OwnKernel(Built):
    """A kernel that is no package.

    :param image: a bzImage.
    :param folder: ``lib/modules/RELEASE`` of its ``make modules_install``.
    """

    image: Path
    folder: Path

    @property
    def modules(self) -> Path:
        """The directory of the kernel's modules."""
        return self.folder

    @property
    def vmlinuz(self) -> Path:
        """The kernel image."""
        return self.image


def own_kernel(image: Path, modules: Path) -> OwnKernel:
    """Return a kernel from its image and modules.

    :param modules: the directory of its modules, or one that has ``lib/modules/RELEASE``.
    :raises LabError: the image is no bzImage, or the modules are not those of this kernel.
    """
    with host_faults(f"read {image}"), image.open("rb") as file:
        data = file.read(_LIMIT)
    release = _release(data, image)
    places = (modules, modules / release, modules / "lib/modules" / release)
    folder = next((one for one in places if (one / "modules.builtin").is_file()), None)
    if folder is None:
        raise LabError(f"{modules} has no modules of {release}",
                       hint="make modules_install INSTALL_MOD_PATH=DIR")  # fmt: skip
    packages = {f"linux-image-{release}": release}
    manifest = Manifest("own", "", "", release, packages)
    digest = hashlib.sha256(data)
    unnamed = OwnKernel("own", folder, manifest, image, folder)
    for name, content in in_order(unnamed):
        if f"vermagic={release} ".encode() not in content:
            raise LabError(f"{name} in {folder} is not built for {release}")
        digest.update(content)
    name = f"own-{digest.hexdigest()[:16]}"
    return OwnKernel(name, folder, manifest, image, folder)


def _release(data: bytes, image: Path) -> str:
    if data[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise LabError(f"{image} is no bzImage", hint="arch/x86/boot/bzImage of the build")
    start = int.from_bytes(data[_VERSION : _VERSION + 2], "little") + 0x200
    found = _RELEASE.match(data, start, start + 128)
    if found is None:
        raise LabError(f"{image} does not say its release")
    return found[0].decode()
