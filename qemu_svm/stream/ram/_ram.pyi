from array import array
from collections.abc import Sequence

INTERFACE: int

def scan(
    data: bytes,
    at: int,
    base: int,
    pages: tuple[int, int],
    rows_data: array[int],
    rows_where: array[int],
    rows_count: array[int],
    /,
) -> tuple[int, int, tuple[int, int, int, int]]: ...
def scan_file(
    fd: int,
    start: int,
    step: int,
    offset: int,
    pages: tuple[int, int],
    rows_data: array[int],
    rows_where: array[int],
    rows_count: array[int],
    /,
) -> tuple[int, int, tuple[int, int, int, int]]: ...
def copy(
    inputs: array[int],
    target: int,
    first: int,
    length: int,
    page_size: int,
    where: Sequence[int],
    count: Sequence[int],
    data: Sequence[int],
    row: int,
    /,
) -> int: ...
def settle(
    where: Sequence[int],
    count: Sequence[int],
    data: Sequence[int],
    page_size: int,
    times: Sequence[int] | None = None,
    /,
) -> tuple[bytes, bytes, bytes, bytes] | None: ...
def tally(
    runs: tuple[Sequence[int], Sequence[int], Sequence[int] | None],
    pages: tuple[int, int],
    rows: tuple[int, int],
    /,
) -> tuple[tuple[int, ...], int, int]: ...
