"""The exceptions of the library, all in one tree.

::

    SvmStreamError
    ├── SourceError            the file or pipe cannot be opened or decompressed
    ├── StreamError            the bytes; carries offset, section, field, expected, found
    │   ├── Truncated          the input ends inside a structure
    │   ├── Malformed          the bytes contradict the format
    │   ├── Unsupported        a known kind of data that is not supported
    │   └── LimitExceeded      a limit of :mod:`qemu_svm.limits` was exceeded
    ├── PathError              a path such as ``vcpu0.nested`` does not exist
    │   └── PlanError          a restore plan has a step or setting that does not exist
    ├── AddressError           the guest has no memory at an address, or the stream lacks it
    ├── BuildError             values that do not fit the structure to be written
    ├── EnvironmentFault       something is missing on this host: QEMU, KVM, disk space
    │   ├── OutputExists       the output file exists and must not be replaced
    │   ├── OutputClosed       the reader of standard output is gone
    │   ├── QmpError           a QMP socket that cannot be reached, or was lost
    │   └── LabError           the AMD host in a box cannot be built or does not run
    └── Refused                the target (QEMU, KVM) refused
        ├── CommandRefused     QEMU answered a QMP command with an error
        └── StreamRefused      QEMU did not accept a stream

Any other exception raised by the library (except :class:`OSError` from the
caller's own file) is a bug in the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class SvmStreamError(Exception):
    """Base of every error of this package.

    :param what: what went wrong, as one sentence.
    :param hint: what the user can do about it, if anything.
    """

    rule = "error"

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors of other processes arrive as they were raised, whatever they were made with.
        return _again, (type(self), self.args, self.__dict__)


def _again(
    kind: type[SvmStreamError], arguments: tuple[Any, ...], members: dict[str, Any]
) -> SvmStreamError:
    made = kind.__new__(kind, *arguments)
    made.__dict__.update(members)
    return made


class SourceError(SvmStreamError):
    """The input cannot be opened, read or decompressed."""

    rule = "source"


class StreamError(SvmStreamError):
    """The bytes of a stream are cut, invalid or not supported.

    :param offset: byte offset of the error in the (decompressed) stream.
    :param section: name of the section being read, if any.
    :param field: path of the field inside the section, if any.
    :param expected: what the format requires at this offset.
    :param found: what is there instead.
    :ivar path: of the file, where it is known; the text then starts with it.
    """

    rule = "stream"
    path: str | None = None

    def __init__(
        self,
        what: str,
        *,
        offset: int,
        section: str | None = None,
        field: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, hint=hint)
        self.offset = offset
        self.section = section
        self.field = field
        self.expected = expected
        self.found = found

    def detail(self) -> str:
        """Return everything but the offset and the hint, as one line of text."""
        parts = [self.what]
        if self.section is not None:
            parts.append(f"in section '{self.section}'")
        if self.field is not None:
            parts.append(f"at field {self.field}")
        text = " ".join(parts)
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.found is not None:
            text += f"{',' if self.expected is not None else ';'} found {self.found}"
        return text

    def __str__(self) -> str:
        text = f"offset {self.offset:#x}: {self.detail()}"
        if self.path is not None:
            text = f"{self.path}: {text}"
        return f"{text} ({self.hint})" if self.hint else text


class Truncated(StreamError):
    """The input ends inside a structure; ``offset`` is where it ends."""

    rule = "truncated"


class Malformed(StreamError):
    """The bytes contradict the format."""

    rule = "malformed"


class Unsupported(StreamError):
    """A known kind of data that this version does not support."""

    rule = "unsupported"


class LimitExceeded(StreamError):
    """The input exceeds a limit."""

    rule = "limit"


class PathError(SvmStreamError):
    """A path does not exist in this stream.

    :param near: existing paths that resemble it; the hint names them.
    """

    rule = "path"

    def __init__(self, what: str, *, near: Sequence[str] = ()) -> None:
        super().__init__(what, hint=f"near it: {', '.join(near)}" if near else None)
        self.near = tuple(near)


class PlanError(PathError):
    """A restore plan with an unknown step or setting, or an invalid value."""

    rule = "plan"


class AddressError(SvmStreamError):
    """No RAM at an address, or RAM that the stream does not contain.

    :param address: the first such address, in the address space that was read.
    :param status: the reason in one word: ``no-ram``, ``not-sent``, ``not-present`` and so on.
    """

    rule = "address"

    def __init__(
        self, what: str, *, address: int, status: str = "no-ram", hint: str | None = None
    ) -> None:
        super().__init__(what, hint=hint)
        self.address = address
        self.status = status

    def __str__(self) -> str:
        text = f"address {self.address:#x}: {self.what}"
        return f"{text} ({self.hint})" if self.hint else text


class BuildError(SvmStreamError):
    """Values that do not fit the structure to be written."""

    rule = "build"


class EnvironmentFault(SvmStreamError):
    """A program, a device, disk space or the network is missing on this host."""

    rule = "environment"

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


class OutputExists(EnvironmentFault):
    """The output file exists already and must not be replaced.

    :param path: the file that exists.
    """

    rule = "output-exists"

    def __init__(self, path: str) -> None:
        super().__init__(f"'{path}' exists already")
        self.path = path


class OutputClosed(EnvironmentFault):
    """The reader of the output pipe is gone."""

    rule = "output-closed"


class QmpError(EnvironmentFault):
    """A QMP socket cannot be reached, or was lost; ``__cause__`` has the reason."""

    rule = "qmp"


class LabError(EnvironmentFault):
    """The emulated AMD host cannot be built, does not start or has died."""

    rule = "lab"


class Refused(SvmStreamError):
    """The target refused: QEMU a command or a stream, KVM an ioctl."""

    rule = "refused"

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


class CommandRefused(Refused):
    """QEMU answered a QMP command with an error.

    :param command: the command's name.
    :param error_class: QMP's error class, such as ``GenericError``.
    :param reason: QEMU's message.
    """

    rule = "command"

    def __init__(
        self, what: str, *, command: str, error_class: str, reason: str, hint: str | None = None
    ) -> None:
        super().__init__(what, hint=hint)
        self.command = command
        self.error_class = error_class
        self.reason = reason


class StreamRefused(Refused):
    """QEMU did not accept a stream.

    :param reason: QEMU's messages, as far as known; may have several lines.
    """

    rule = "stream-refused"

    def __init__(self, what: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.reason = reason
