"""No test opens a connection: in every Python that finds this folder, a socket to another machine
is an error that names where it was opened."""

import ipaddress
import socket
import sys
import traceback

ALLOWED = (
    ipaddress.ip_network("127.0.0.0/8"),
    ipaddress.ip_network("::1/128"),
    ipaddress.ip_network("10.77.0.0/24"),  # our own network namespaces
)


class OutsideConnection(BaseException):
    """Not an Exception: code that falls back when it is offline must not hide that it asked."""


def is_inside(host: str) -> bool:
    """Return whether a host is this machine, by address or by name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("", "localhost", socket.gethostname())
    return address.is_unspecified or any(address in network for network in ALLOWED)


def guard(event: str, given: tuple) -> None:
    """Refuse to look up or reach another machine; the message ends with the calling line."""
    if event in ("socket.connect", "socket.sendto"):
        host = given[1][0] if isinstance(given[1], tuple) else ""
    elif event == "socket.getaddrinfo":
        host = given[0] or ""
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if not is_inside(host):
        calls = [call for call in traceback.extract_stack() if call.filename != __file__]
        ours = [call for call in calls if "socket.py" not in call.filename][-1]
        raise OutsideConnection(f"{ours.filename}:{ours.lineno} asks for {host}")


sys.addaudithook(guard)
