"""``svmstream inside --pid PID``."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, signals
from qemu_svm.cli.output import show
from qemu_svm.cli.verbs import verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qemu_svm.inside.host import Host
    from qemu_svm.inside.looking import InsideLook


@verb(
    "inside",
    "svmstream inside --pid 4242",
    "svmstream inside --domain guest --watch",
    "svmstream inside --pid 4242 -o now.json",
    "svmstream inside --box box --pid 311",
)
@click.option("--pid", type=click.IntRange(1), metavar="PID",
              help="A process that uses KVM.  [default: the only one]")  # fmt: skip
@click.option("--domain", metavar="NAME", help="A domain of libvirt on this host.")
@click.option("--connect", metavar="URI",
              help="Of the libvirt that has the domain.  [default: qemu:///system]")  # fmt: skip
@click.option("--vcpu", "vcpus", multiple=True, type=click.IntRange(0), metavar="N",
              help="Only this vCPU; may be repeated.")  # fmt: skip
@click.option("--box", metavar="NAME", help="The process is inside this box of lab up.")
@click.option("--types", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="The types of kvm-amd (BTF), for a kernel before 5.11.")  # fmt: skip
@click.option("--watch", is_flag=True, help="Look again and again; show what changed.")
@click.option("--interval", default=1.0, show_default=True, metavar="SECONDS",
              type=click.FloatRange(0, 3600), help="Time between two looks.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), metavar="N", help="With --watch: end after N.")
@click.option("-o", "--output", metavar="NEW", type=click.Path(dir_okay=False),
              help="Write the look into a new file, which diff reads.")  # fmt: skip
@options.json_option
@click.option("-v", "--verbose", is_flag=True,
              help="Every member by its name, and addresses of the host.")  # fmt: skip
def command(
    *,
    pid: int | None,
    domain: str | None,
    connect: str | None,
    vcpus: tuple[int, ...],
    box: str | None,
    types: Path | None,
    watch: bool,
    interval: float,
    count: int | None,
    output: str | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Show the vCPUs of a running VM out of the kernel's memory.

    For each vCPU: who runs, L1's and L2's registers out of the two VMCBs, both
    caches of nested SVM, and whether it was stopped while it was read. Nothing is
    stopped or changed. Needs root on an AMD host, or --box.
    """
    if watch and output is not None:
        raise click.UsageError("-o keeps one look: give it without --watch")
    if count is not None and not watch:
        raise click.UsageError("--count needs --watch")
    if domain is not None and (pid is not None or box is not None):
        raise click.UsageError(
            "--domain is a process of this host: give it without --pid and --box"
        )
    if connect is not None and domain is None:
        raise click.UsageError("--connect needs --domain NAME")
    if box is not None and types is not None:
        raise click.UsageError("--types is for this host; a box's kernel is known")
    from qemu_svm.inside.looking import look

    signals.interrupt_on_termination()
    if domain is not None:
        from qemu_svm.inside.host import domain_folder, process_of_domain, require_kvm

        pid = process_of_domain(domain, domain_folder(connect))
        require_kvm(pid, domain)
    with ExitStack() as stack:
        # Addresses of the host are never in a file.
        addresses = verbose and output is None
        host = _host(box, types, stack)
        looks = stack.enter_context(closing(look(host, pid, vcpus=vcpus, addresses=addresses)))
        if watch:
            _watch(islice(looks, count), interval, as_json=as_json, verbose=verbose)
            return 0
        found = next(looks)
    if output is not None:
        _keep(found, output)
    show(found, as_json=as_json, **({} if as_json else {"verbose": verbose}))
    return 0


def _host(box: str | None, types: Path | None, stack: ExitStack) -> Host:
    if box is None:
        from qemu_svm.inside.host import ThisHost

        return ThisHost(types)
    from qemu_svm.lab.box.named import Attached, find
    from qemu_svm.lab.inside import BoxHost

    record = find(box)
    session = stack.enter_context(Attached(record))
    return stack.enter_context(BoxHost(session, record.options.get("modules")))


def _watch(looks: Iterator[InsideLook], interval: float, *, as_json: bool, verbose: bool) -> None:
    for found in looks:
        first = found.number == 1
        if as_json:
            show(found, as_json=True, indent=None)
        else:
            show(found, as_json=False, verbose=verbose, changes=not first)
        time.sleep(interval)


def _keep(found: InsideLook, path: str) -> None:
    import json

    from qemu_svm.qmp.output import Output, writing

    with Output(path) as out:
        with writing(path), open(out.writer(), "w", encoding="ascii") as file:
            json.dump(found.to_json(), file, indent=1)
            file.write("\n")
        out.commit()
