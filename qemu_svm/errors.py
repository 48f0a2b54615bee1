"""One exception tree; nothing else leaves the library.

::

    SvmStreamError
    ├── SourceError            the file or pipe cannot be opened or decompressed
    ├── StreamError            the bytes; carries offset, section, field, expected, found
    │   ├── Truncated          the input ends inside something
    │   ├── Malformed          the bytes contradict the format
    │   ├── Unsupported        a known kind of data that is not read (yet)
    │   └── LimitExceeded      a limit of :mod:`qemu_svm.limits` was met
    ├── PathError              a path such as ``vcpu0.nested`` names nothing
    │   └── PlanError          a restore plan has a step or setting that does not exist
    ├── AddressError           guest memory that an address names is not there
    ├── BuildError             values that cannot be written back as bytes
    ├── EnvironmentFault       what the work needs is missing here: no QEMU, no KVM, no disk
    │   ├── OutputExists       a file of that name exists, and is not to be replaced
    │   ├── OutputClosed       nobody reads standard output (any more)
    │   ├── QmpError           a QMP socket that cannot be used (any more)
    │   └── LabError           the AMD host in a box cannot be built or does not run
    └── Refused                the target (QEMU, KVM) said no
        ├── CommandRefused     QEMU answered a QMP command with an error
        └── StreamRefused      QEMU did not take a stream

Any other exception out of the library (except :class:`OSError` from the
caller's own file) is a bug in the library.
"""

from __future__ import annotations

from collections.abc import Sequence


class SvmStreamError(Exception):
    """Base of every error of this package.

    :param what: one sentence that says what went wrong.
    :param hint: what the reader can do about it, if there is anything.
    """

    rule = "error"

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class SourceError(SvmStreamError):
    """The input cannot be opened, read or decompressed."""

    rule = "source"


class StreamError(SvmStreamError):
    """Something is wrong with the bytes of a stream.

    :param offset: byte offset in the (decompressed) stream where it shows.
    :param section: name of the section being read, if any.
    :param field: path of the field inside the section, if any.
    :param expected: what the format asks for at this place.
    :param found: what stands there instead.
    """

    rule = "stream"

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
        """Everything but the offset and the hint, as one line of text."""
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
        return f"{text} ({self.hint})" if self.hint else text


class Truncated(StreamError):
    """The input ends inside something; ``offset`` is where it ends."""

    rule = "truncated"


class Malformed(StreamError):
    """The bytes contradict the format."""

    rule = "malformed"


class Unsupported(StreamError):
    """A known kind of data that this version does not read."""

    rule = "unsupported"


class LimitExceeded(StreamError):
    """The input asks for more than a limit allows."""

    rule = "limit"


class PathError(SvmStreamError):
    """A path names nothing in this stream.

    :param near: existing paths that resemble the one asked for.
    """

    rule = "path"

    def __init__(self, what: str, *, near: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.near = tuple(near)


class PlanError(PathError):
    """A restore plan that cannot be understood."""

    rule = "plan"


class AddressError(SvmStreamError):
    """Guest memory that is not RAM, or that the stream does not have.

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
    """Values that do not fit the structure they should be written to."""

    rule = "build"


class EnvironmentFault(SvmStreamError):
    """What the work needs is missing here: a program, a device, disk, network."""

    rule = "environment"

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


class OutputExists(EnvironmentFault):
    """A file of that name exists already, and was not to be replaced.

    :param path: the file that exists.
    """

    rule = "output-exists"

    def __init__(self, path: str) -> None:
        super().__init__(f"'{path}' exists already")
        self.path = path


class OutputClosed(EnvironmentFault):
    """The reader of a pipe that was written to is gone."""

    rule = "output-closed"


class QmpError(EnvironmentFault):
    """A QMP socket that cannot be reached, or was lost; the cause is kept."""

    rule = "qmp"


class LabError(EnvironmentFault):
    """The AMD host in a box cannot be built, does not start or has died."""

    rule = "lab"


class Refused(SvmStreamError):
    """The target said no: QEMU refused a command or a stream, KVM an ioctl."""

    rule = "refused"

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


class CommandRefused(Refused):
    """QEMU answered a QMP command with an error.

    :param command: the command's name.
    :param error_class: QMP's class of the error, such as ``GenericError``.
    :param reason: QEMU's own words.
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
    """QEMU did not take a stream.

    :param reason: QEMU's own words, as far as they are known; several lines.
    """

    rule = "stream-refused"

    def __init__(self, what: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.reason = reason
