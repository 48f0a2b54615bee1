"""The workers of a Dask cluster in place of this host: --scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import progress

if TYPE_CHECKING:
    from qemu_svm.work.cluster import Cluster

scheduler_option = click.option(
    "--scheduler", metavar="ADDRESS",
    help="Use the workers of a Dask cluster: tcp://HOST:PORT, or a scheduler file.",
)  # fmt: skip


@contextmanager
def workers(address: str, say: Callable[[str], None] = progress.note) -> Iterator[Cluster]:
    """Join a cluster for the time of the context.

    :param say: shows what a worker lacks.
    :raises EnvironmentFault: that is not possible.
    """
    from qemu_svm.work.cluster import Cluster

    cluster = Cluster(address, say=say)
    try:
        yield cluster
    finally:
        cluster.close()
