"""Where a sink listens: [HOST]:PORT, the loopback interface unless a host is named."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgemm.errors import UsageError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """A host to bind to and a port; port 0 takes one that is free."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def reachable(self) -> str:
        """As written in a URL: an address that stands for every interface becomes the machine's name."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return str(Address(host, self.port))


def parse(text: str, option: str) -> Address:
    """Read "[HOST]:PORT" or "PORT". Raises UsageError in the name of `option`."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host, port = "", ""  # an IPv6 address without brackets: its end is no port
    if not port.isdecimal() or int(port) > 65535:
        raise UsageError(f'{option} is "{text}", expected [HOST]:PORT, such as :8080 or 0.0.0.0:8080.')
    return Address(host or LOOPBACK, int(port))


def names_loopback(host: str | None) -> bool:
    """True if a Host header names this machine by a loopback name or address, with any port or none.

    A page that has its own name resolve to 127.0.0.1 (DNS rebinding) is known by this: browsers send the name.
    """
    if not host:
        return False
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and Address(name, 0).is_loopback
