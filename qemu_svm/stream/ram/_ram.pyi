from array import array
from mmap import mmap

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
    written: bytearray | mmap,
    page_size: int,
    where: array[int],
    count: array[int],
    data: array[int],
    row: int,
    /,
) -> int: ...
def cover(where: array[int], count: array[int], kinds: bytearray, times: bytearray, /) -> None: ...
