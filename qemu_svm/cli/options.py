"""Arguments and options that several verbs have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from qemu_svm.limits import Limits
    from qemu_svm.qmp.address import Address

_LIMITS = "qemu_svm.limits"
_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class Renamed(click.Option):
    """An option that has other spellings as well, which help and completion do not show.

    :param formerly: them; what one stands for is its value, None if it takes one itself.
    """

    def __init__(
        self, declarations: Sequence[str], *, formerly: Mapping[str, str | None], **attributes: Any
    ) -> None:
        super().__init__(declarations, **attributes)
        self._formerly = formerly

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let click parse the other spellings too."""
        super().add_to_parser(parser, ctx)
        for name, stands_for in self._formerly.items():
            action = "store" if stands_for is None else "store_const"
            parser.add_option(obj=self, opts=[name], dest=self.name, action=action,
                              nargs=1 if stands_for is None else 0, const=stands_for)  # fmt: skip


file_argument = click.argument("file", metavar="FILE")


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    ctx.meta[f"qemu_svm.{param.name}"] = value


def _kept(name: str, default: Any) -> Any:
    context = click.get_current_context(silent=True)
    return default if context is None else context.meta.get(f"qemu_svm.{name}", default)


def output_options(function: _Decorated) -> _Decorated:
    """Add ``--quiet`` and ``--color``, which :mod:`qemu_svm.cli.output` obeys."""
    for option in (
        click.option("--color", type=click.Choice(("auto", "always", "never")), default="auto",
                     expose_value=False, callback=_keep, show_default=True,
                     help="Colour of the text; auto is on a terminal."),
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_keep,
                     help="Print only errors: the exit status is the answer."),
    ):  # fmt: skip
        function = option(function)
    return function


def quiet() -> bool:
    """Whether ``--quiet`` was given."""
    return bool(_kept("quiet", default=False))


def color() -> str:
    """``auto``, ``always`` or ``never``."""
    return str(_kept("color", default="auto"))


class Form(NamedTuple):
    """How rows are printed.

    :param jsonl: a JSON document a line.
    :param fields: paths in a row; without ``jsonl`` their text, with tabs between.
    :param rows: the path of the list whose members are the rows; empty for the usual one.
    """

    jsonl: bool = False
    fields: tuple[str, ...] = ()
    rows: str = ""


def form() -> Form:
    """What ``--jsonl``, ``--fields`` and ``--rows`` say."""
    found = _kept("form", default=Form())
    assert isinstance(found, Form)
    return found


_PRINTED = {"document": False}


def note_output(*, printed: bool = True) -> None:
    """Note that standard output has a document."""
    _PRINTED["document"] = printed


def has_output() -> bool:
    """Whether standard output has a document; then none of an error follows."""
    return _PRINTED["document"]


def row_options(function: _Decorated) -> _Decorated:
    """Add ``--jsonl``, ``--fields`` and ``--rows``, which print the rows of the JSON document.

    To the verb itself they look like ``--json``.
    """

    @wraps(function)
    def wrapped(
        *, as_json: bool, jsonl: bool, fields: str | None, rows: str | None, **others: Any
    ) -> Any:
        if as_json and (jsonl or fields):
            raise click.UsageError(
                "--json is the whole document: use --jsonl, with --fields or not"
            )
        if rows and not (jsonl or fields):
            raise click.UsageError("--rows is for --jsonl or --fields")
        names = tuple(name.strip() for name in fields.split(",")) if fields is not None else ()
        if fields is not None and not all(names):
            raise click.UsageError(f"--fields: '{fields}' has an empty name")
        chosen = Form(jsonl, names, rows or "")
        context = click.get_current_context()
        context.meta["qemu_svm.form"] = chosen
        if names or rows:
            from qemu_svm.cli.rows import check

            # The first word is the program's.
            check(context.command_path.partition(" ")[2], chosen)
        return function(as_json=as_json or jsonl or bool(names), **others)

    for option in (
        click.option("--rows", metavar="PATH",
                     help="Which list of the document the rows are, such as vcpus."),
        click.option("--fields", metavar="A,B,...",
                     help="Print these fields of each row, tabs between; with --jsonl, as JSON."),
        click.option("--jsonl", is_flag=True, help="Print one JSON document for each row."),
    ):  # fmt: skip
        option(wrapped)
    return cast("_Decorated", wrapped)


def json_option(function: _Decorated) -> _Decorated:
    """Add ``--json``, the options of its rows, and those of every output."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    return option(row_options(output_options(function)))


def fail_on_option(default: str = "error") -> Callable[[_Decorated], _Decorated]:
    """Return the option ``--fail-on``, which :func:`findings` obeys.

    :param default: the lowest severity that makes the exit status 1 without the option.
    """
    return click.option(
        "--fail-on", type=click.Choice(_SEVERITIES), default=default, show_default=True,
        expose_value=False, callback=_keep,
        help="The lowest severity that makes the exit status 1.",
    )  # fmt: skip


_SEVERITIES = ("info", "warning", "error", "never")


def fails(severities: Iterable[str] = ("error",)) -> bool:
    """Whether findings of these severities make the exit status 1."""
    least = _SEVERITIES.index(_kept("fail_on", default="error"))
    return any(_SEVERITIES.index(one) >= least for one in severities)


description_option = click.option(
    "--description", "lender", metavar="FILE",
    help="For a stream without a description: another stream that has one, a JSON description, "
    "or the output of QEMU's -dump-vmstate.",
)  # fmt: skip


def _page_size(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    from qemu_svm.limits import parse_size
    from qemu_svm.stream.ram.page_size import is_page_size

    try:
        size = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not is_page_size(size):
        raise click.BadParameter(f"'{value}' is not a power of two from 256 to 16M")
    _keep(ctx, param, size)


page_size_option = click.option(
    "--page-size", metavar="SIZE", callback=_page_size, expose_value=False,
    help="The guest's page size, such as 4K or 8K, whatever the stream says.",
)  # fmt: skip


def page_size() -> int | None:
    """Return what ``--page-size`` says, in bytes."""
    found = _kept("page_size", default=None)
    assert found is None or isinstance(found, int)
    return found


channel_option = click.option(
    "--channel", "channels", multiple=True, metavar="FILE",
    help="A multifd channel, or a further connection of postcopy; may be repeated.",
)  # fmt: skip

mask_option = click.option(
    "--mask", "patterns", multiple=True, metavar="PATTERN",
    help="Ignore differences at this path and below it; * is any text. May be repeated.",
)  # fmt: skip

plan_option = click.option(
    "--plan", help="qemu, qemu-VERSION, selftests, cloud-hypervisor, crosvm, firecracker, libkrun, "
    "stratovirt, dragonball, openvmm, vmm-reference, or steps separated by commas.  "
    "[default: the put of a recording; qemu, as far as FILE has values for it]",
)  # fmt: skip


def choice_options(*, of: str = "Of a recording") -> Callable[[_Decorated], _Decorated]:
    """Return the options that choose a put of a recording, which :func:`choice` returns.

    :param of: what they are for, in words.
    """

    def add(function: _Decorated) -> _Decorated:
        for one, words in _CHOICE.items():
            function = click.option(
                f"--{one}", metavar="N", type=click.IntRange(1), callback=_keep,
                expose_value=False, help=f"{of}: {words}",
            )(function)  # fmt: skip
        return function

    return add


def state_options(function: _Decorated) -> _Decorated:
    """Add the options of an input that is no stream: structures in files of their own."""
    function = choice_options()(function)
    for name, words in reversed(_BESIDE.items()):
        function = click.option(
            f"--{name}", metavar="FILE", callback=_keep_beside, expose_value=False,
            help=words,
        )(function)  # fmt: skip
    return function


_CHOICE = {
    "vm": "which VM.  [default: the first with a vCPU in guest mode]",
    "put": "which put of each vCPU.  [default: the last with guest mode]",
}
_BESIDE = {
    "nested": "Raw kvm_nested_state (docs/state.md).",
    "sregs": "Raw kvm_sregs or kvm_sregs2.",
    "regs": "Raw kvm_regs.",
    "msrs": "Raw kvm_msrs.",
    "events": "Raw kvm_vcpu_events.",
    "debugregs": "Raw kvm_debugregs.",
    "mp-state": "Raw kvm_mp_state.",
    "xsave": "Raw kvm_xsave.",
    "xcrs": "Raw kvm_xcrs.",
    "lapic": "Raw kvm_lapic_state.",
    "cpuid": "Raw kvm_cpuid2.",
    "memory": "Guest memory of a Firecracker snapshot.",
}
"""As in :data:`qemu_svm.snapshots.open.BESIDE`, in words; and guest memory."""


def _keep_beside(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta.setdefault("qemu_svm.beside", {})[param.opts[0].removeprefix("--")] = value


saved_option = click.option(
    "--saved", "saved", metavar="FILE",
    help="Of a recording: what it was to restore, a stream or snapshot.",
)  # fmt: skip


class Choice(NamedTuple):
    """The numbers of a put and of a VM of a recording; None where none was chosen."""

    put: int | None = None
    vm: int | None = None


def choice() -> Choice:
    """Return what ``--put`` and ``--vm`` say."""
    return Choice(_kept("put", default=None), _kept("vm", default=None))


def beside() -> dict[str, str]:
    """Return the files that options of :func:`state_options` have named."""
    return dict(_kept("beside", default={}))


def _complete_kernel(
    _ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from qemu_svm.model.profiles import AUTO, PROFILES

    names = [*PROFILES, AUTO, *(["all"] if param.multiple else [])]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def kernel_option(default: str) -> Callable[[_Decorated], _Decorated]:
    """Return the option ``--kernel`` of a verb that asks the model: any release.

    :param default: in words.
    """
    return click.option(
        "--kernel", "kernels", multiple=True, metavar="RELEASE", shell_complete=_complete_kernel,
        help="The destination's kernel: a release or uname -r (6.12.118, 5.15.0-91-generic, 6.1), "
        f"auto for this host's, or all; may be repeated.  [default: {default}]",
    )  # fmt: skip


def release_option(name: str, variable: str, words: str) -> Callable[[_Decorated], _Decorated]:
    """Return an option for one kernel that the model knows."""
    return click.option(
        name, variable, metavar="RELEASE", shell_complete=_complete_kernel, help=words
    )


vcpu_option = click.option("--vcpu", default=0, show_default=True, help="CPU index.")

maxphyaddr_option = click.option(
    "--maxphyaddr", type=click.IntRange(32, 52), default=40, show_default=True,
    help="Guest physical address width.",
)  # fmt: skip

npt_option = click.option(
    "--npt", type=click.Choice(("on", "off")), default="on", show_default=True,
    help="Nested paging of the emulated host.",
)  # fmt: skip

host_npt_option = click.option(
    "--npt", cls=Renamed, formerly={"--no-npt": "off"}, type=click.Choice(("on", "off")),
    default="on", show_default=True, help="Nested paging of the destination's host.",
)  # fmt: skip


def _cpu(text: str) -> str:
    # A wrong option is reported before a wrong file.
    from qemu_svm.errors import PlanError
    from qemu_svm.x86 import cpu_models
    from qemu_svm.x86.cpuid import NONE

    try:
        cpu_models.parse(text, NONE)
    except PlanError as error:
        raise click.BadParameter("; ".join(filter(None, (error.what, error.hint)))) from error
    return text


def _cpus(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from qemu_svm.x86 import cpu_models

    before, comma, last = incomplete.rpartition(",")
    if not comma:
        models = (*cpu_models.AS_SAVED, *cpu_models.MODELS)
        return [one for one in models if one.startswith(incomplete)]
    sign = last[:1] if last[:1] in ("+", "-") else "+"
    names = (one for one in cpu_models.FEATURES if one.startswith(last.lstrip("+-")))
    return [f"{before},{sign}{one}" for one in names]


class _CpuOption(click.Option):
    # The words that it accepts are looked up when help is asked for.

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from qemu_svm.x86 import cpu_models

        found = super().get_help_record(ctx)
        return None if found is None else (found[0], f"{found[1]} {cpu_models.words()}")


cpu_option = click.option(
    "--cpu", cls=_CpuOption, type=_cpu, shell_complete=_cpus,
    metavar="MODEL[,+FEATURE|,-FEATURE]...",
    help="The destination's CPU, as QEMU's -cpu has it. With KVM, every model but host and max "
    "needs +svm. phys-bits=N is accepted too.",
)  # fmt: skip

irqchip_option = click.option(
    "--no-irqchip", is_flag=True, help="The local APIC is not emulated in the kernel."
)


def vm_options(
    socket_help: str = "QMP socket: unix:PATH, a path, or HOST:PORT.", *, required: bool = True
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Add ``--qmp``, ``--domain`` and ``--connect``: one running VM, given as ``address``.

    :param required: one of them must be given; else ``address`` may be None.
    """

    def add(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def with_address(
            *, qmp: str | None, domain: str | None, connect: str | None, **rest: Any
        ) -> int:
            return command(address=_address(qmp, domain, connect, required=required), **rest)

        for option in (
            click.option(
                "--connect", metavar="URI",
                help="Of the libvirt that has the domain, as for virsh.  [default: libvirt's]",
            ),
            click.option(
                "--domain", metavar="NAME",
                help="A domain of libvirt, by name, UUID or number (needs libvirt-python).",
            ),
            click.option("--qmp", metavar="SOCKET", help=socket_help),
        ):  # fmt: skip
            with_address = option(with_address)
        return with_address

    return add


def _address(
    qmp: str | None, domain: str | None, connect: str | None, *, required: bool
) -> Address | None:
    if qmp is not None and domain is not None:
        raise click.UsageError("give either --qmp SOCKET or --domain NAME")
    if domain is None:
        if connect is not None:
            raise click.UsageError("--connect needs --domain NAME")
        if qmp is None:
            if required:
                raise click.UsageError("give --qmp SOCKET, or --domain NAME of a libvirt domain")
            return None
        from qemu_svm.qmp.address import parse_address

        return parse_address(qmp)
    from qemu_svm.qmp.domain import TAINTS, Domain

    if not quiet():
        click.echo(f"svmstream: note: {TAINTS}", err=True)
    return Domain(name=domain, uri=connect)


timeout_option = click.option(
    "--timeout", default=30.0, show_default=True, type=click.FloatRange(min=0.1),
    metavar="SECONDS", help="How long QEMU may take to answer.",
)  # fmt: skip


def _set_limits(ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> None:
    from qemu_svm.limits import DEFAULT, changed

    try:
        ctx.meta[_LIMITS] = changed(DEFAULT, given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


limit_option = click.option(
    "--limit", metavar="NAME=VALUE", multiple=True, callback=_set_limits, expose_value=False,
    help="Change a resource limit for the input (docs/limits.md); may be repeated.",
)  # fmt: skip


def limits() -> Limits:
    """Return the limits that ``--limit`` has set."""
    from qemu_svm.limits import DEFAULT, Limits

    context = click.get_current_context(silent=True)
    found = context.meta.get(_LIMITS, DEFAULT) if context is not None else DEFAULT
    assert isinstance(found, Limits)
    return found
