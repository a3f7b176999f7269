from __future__ import annotations

import socket

import pytest

from edgemm.errors import UsageError
from edgemm.stream.sinks.address import Address, names_loopback, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9090", Address("127.0.0.1", 9090)),
        ("9090", Address("127.0.0.1", 9090)),
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("kitchen.local:0", Address("kitchen.local", 0)),
        ("[::1]:8080", Address("::1", 8080)),
    ],
)
def test_an_address(text: str, address: Address) -> None:
    assert parse(text, "--view") == address
    assert parse(str(address), "--view") == address


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":70000", "::1:80", ":-1", "a:b", "out.edgemm", "http://x/"]
)
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "--metrics")
    assert str(caught.value) == f'--metrics is "{text}", expected [HOST]:PORT, such as :8080 or 0.0.0.0:8080.'


def test_loopback() -> None:
    assert all(Address(host, 1).is_loopback for host in ("127.0.0.1", "127.3.2.1", "localhost", "::1"))
    assert not any(Address(host, 1).is_loopback for host in ("0.0.0.0", "::", "192.168.1.7", "localhost.evil.example"))


def test_an_address_of_every_interface_is_reachable_by_name() -> None:
    assert Address("0.0.0.0", 80).reachable() == f"{socket.gethostname()}:80"
    assert Address("::1", 80).reachable() == "[::1]:80"


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("localhost", True),
        ("localhost:8080", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@127.0.0.1", True),  # a user before an address: the host is the address
        ("127.0.0.1@evil.example", False),
        ("[::1", False),
        ("", False),
        (None, False),
    ],
)
def test_names_of_loopback(host: str | None, is_loopback: bool) -> None:
    assert names_loopback(host) == is_loopback
