"""What the verbs on memory share: opening a stream, addresses, exit status."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from qemu_svm.api import Dump
from qemu_svm.cli import options as shared
from qemu_svm.cli import streams
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_UNREADABLE, report_damage
from qemu_svm.errors import EnvironmentFault, PathError, SourceError
from qemu_svm.memory.disassembly import disassemble
from qemu_svm.memory.reports import Disassembly, Place
from qemu_svm.optional import optional
from qemu_svm.snapshots.forms import WORDS

if TYPE_CHECKING:
    from qemu_svm.memory.memory import AddressSpace, GuestMemory
    from qemu_svm.memory.registers import Registers
    from qemu_svm.memory.results import Status

WORLDS = {
    "l1p": "L1-physical",
    "l1v": "L1's virtual memory",
    "l2p": "L2-physical memory",
    "l2v": "L2's virtual memory",
}
Decorated = Callable[..., Any]
_WHERE = re.compile(r"(?:(?P<world>[a-z0-9]+):)?(?P<base>[^+-]+)?(?P<more>[+-][0-9a-fA-Fx]+)?")


def _complete_world(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [
        CompletionItem(name, help=words)
        for name, words in WORLDS.items()
        if name.startswith(incomplete)
    ]


def _complete_where(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [
        CompletionItem(f"{name}:", help=words)
        for name, words in WORLDS.items()
        if f"{name}:".startswith(incomplete)
    ]


def _world(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and value.removesuffix(":") not in WORLDS:
        raise click.BadParameter(f"'{value}' is not one of {', '.join(WORLDS)}")
    return value and value.removesuffix(":")


world_argument = click.argument(
    "world", required=False, callback=_world, shell_complete=_complete_world
)


def where_argument(*, required: bool = True) -> Callable[[Decorated], Decorated]:
    """Return the argument ``[WORLD:]ADDRESS``; the shell completes the worlds."""
    return click.argument("where", required=required, shell_complete=_complete_where)


def options(function: Decorated) -> Decorated:
    """Add the options of every verb on memory."""
    for option in reversed((
        shared.file_argument,
        shared.limit_option,
        shared.state_options,
        shared.description_option,
        shared.page_size_option,
        shared.channel_option,
        click.option(
            "--vcpu", default=0, show_default=True, metavar="N", type=click.IntRange(0),
            help="The vCPU whose registers and page tables are used.",
        ),
    )):  # fmt: skip
        function = option(function)
    return function


smm_option = click.option(
    "--smm", is_flag=True, help="Memory as seen in system management mode, with SMRAM."
)


@contextmanager
def opened(
    file: str, channels: Sequence[str], lender: str | None
) -> Iterator[tuple[Dump, GuestMemory]]:
    """Open a stream for reading its memory.

    :raises SourceError: it cannot be read, or a name is not in what could be read of it.
    """
    with streams.opened(file, channels=channels, description=lender) as dump:
        if dump.machine.form is not None and not dump.machine.blocks:
            raise SourceError(
                f"'{file}' has no guest memory: it is a {WORDS[dump.machine.form]}",
                hint="give a stream, or a snapshot with its memory (docs/state.md)",
            )
        yield dump, dump.memory


def status(dump: Dump, found: Iterable[Status]) -> int:
    """Print the damage of a stream; return the exit status for what was read of it.

    0 is everything, 1 with holes, 3 with damage.
    """
    kinds = {str(one) for one in found}
    damaged = report_damage(dump)
    if damaged or "damaged" in kinds:
        return EXIT_UNREADABLE
    return EXIT_FINDINGS if kinds - {"mapped"} else 0


def place(memory: GuestMemory, where: str | None, vcpu: int, *, smm: bool = False) -> Place:
    """Return the place that ``[WORLD:]ADDRESS`` names; None is the next instruction.

    :raises click.UsageError: it has another form.
    :raises PathError: no such world for this vCPU, or no such vCPU.
    """
    found = _WHERE.fullmatch(where or "rip")
    if found is None or not (found["base"] or found["world"]):
        raise click.UsageError(f"'{where}' is not [WORLD:]ADDRESS, such as l2v:0x1000 or rip")
    world = found["world"] or memory.default_world(vcpu)
    space = memory.world(world, vcpu, smm=smm)
    base = _base(memory, world, vcpu, found["base"] or "rip")
    more = int(found["more"], 0) if found["more"] else 0
    address = base + more
    if not 0 <= address < 1 << 64:
        raise click.UsageError(f"'{where}' is not an address of 64 bits")
    return Place(_heading(memory, world, space, vcpu), f"{world}:{address:#x}", world, address,
                 space, vcpu)  # fmt: skip


def _base(memory: GuestMemory, world: str, vcpu: int, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        pass
    of = registers(memory, world, vcpu)
    if text in ("rip", "eip", "ip"):
        return of.next_instruction
    value = of.numbers.get(text)
    if value is None:
        known = [name for name, one in of.numbers.items() if one is not None]
        raise PathError(f"'{text}' is neither a number nor a known register", near=known)
    return value


def registers(memory: GuestMemory, world: str, vcpu: int) -> Registers:
    """Return the registers of the level that a world belongs to."""
    return (memory.l2_registers if world.startswith("l2") else memory.l1_registers)(vcpu)


def _heading(memory: GuestMemory, world: str, space: AddressSpace, vcpu: int) -> str:
    # The first line of every report: which memory it is.
    paging = getattr(space, "paging", None)
    words = [WORLDS[world] if world != "l1p" else "L1-physical memory"]
    if memory.machine.vcpus:
        level = "L2" if memory.default_world(vcpu) == "l2v" else "L1"
        smm = " in SMM" if memory.vcpu(vcpu).smm else ""
        words.append(f"vCPU {vcpu} was running {level}{smm}")
    if paging is not None:
        root = f", root {paging.root:#x}" if paging.levels else ""
        nested = "nested " if getattr(space, "nested", False) else ""
        words.append(f"{nested}{paging.name}{root}")
    return f"{world}: {'; '.join(words)}"


def disassembly(memory: GuestMemory, where: Place, count: int) -> Disassembly:
    """Return consecutive instructions.

    :raises EnvironmentFault: capstone is not installed.
    """
    of = registers(memory, where.world, where.vcpu)
    found = tuple(disassemble(where.space, where.address, of.bits, count))
    return Disassembly(where, found, of.next_instruction if where.world.endswith("v") else None)


def load_symbols(program: Any, files: Sequence[str]) -> None:
    """Load debugging symbols into a drgn program.

    :raises EnvironmentFault: a file has none, or cannot be read.
    """
    drgn: Any = optional("drgn", "this verb")
    try:
        if files:
            program.load_debug_info(list(files))
    except (drgn.MissingDebugInfoError, OSError, ValueError) as error:
        raise EnvironmentFault(f"the symbols cannot be loaded: {error}") from error
