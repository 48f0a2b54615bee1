"""Addresses of QMP sockets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.errors import QmpError
from qemu_svm.qmp.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/vm.qmp", Address("/run/vm.qmp")),
        ("unix:/run/vm.qmp,server=on,wait=off", Address("/run/vm.qmp")),
        ("/run/vm.qmp", Address("/run/vm.qmp")),
        ("vm.qmp", Address("vm.qmp")),
        ("./odd:4444", Address("./odd:4444")),
        ("tcp:localhost:4444", Address(host="localhost", port=4444)),
        ("tcp:127.0.0.1:4444,server=on", Address(host="127.0.0.1", port=4444)),
        (":4444", Address(host="localhost", port=4444)),
        ("[::1]:4444", Address(host="::1", port=4444)),
    ],
)
def test_forms(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "tcp:host",
        "host:0",
        "host:65536",
        "/" + "a" * 120,
        "h:" + "1" * 5000,
        "/\ud800",
    ],
)
def test_no_address(text: str) -> None:
    with pytest.raises(QmpError):
        parse_address(text)


@given(st.text(st.characters(exclude_categories=())))
def test_only_our_error(text: str) -> None:
    try:
        parse_address(text)
    except QmpError:
        return
