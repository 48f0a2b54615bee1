"""Callbacks of options that take sizes and ranges."""

from __future__ import annotations

import click


def size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Return bytes; the number may end in K, M, G or T."""
    from qemu_svm.limits import parse_size

    if value is None:
        return None
    try:
        found = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if not 1 <= found < 1 << 62:
        raise click.BadParameter(f"invalid size '{value}' (expected e.g. 64M)")
    return found


def span(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Return the start and end of ``START:END``, of which either may be missing."""
    if value is None:
        return None
    start, colon, end = value.partition(":")
    try:
        found = int(start or "0", 0), int(end, 0) if end else 1 << 63
    except ValueError:
        found = (1, 0)
    if not colon or not 0 <= found[0] < found[1]:
        raise click.BadParameter("expected START:END, such as 0x100000:0x200000")
    return found
