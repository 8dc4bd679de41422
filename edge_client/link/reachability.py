"""Whether anybody answers at an address, before something costly tries to connect to it."""

from __future__ import annotations

import socket
import ssl
from urllib.request import getproxies_environment, proxy_bypass

LOOPBACK = ("127.0.0.1", "localhost")
CLOSED_SECONDS = 0.5
"""Whoever takes a connection without TLS only to close it, does so within this time."""


def why_unreachable(address: str, tls: bool, seconds: float) -> str:
    """Why nobody answers there, in one line; empty if somebody does, whoever it is, or if a proxy leads there.

    No certificate is checked, and nothing is sent but a TLS greeting: whether who answers is to be trusted, is for the
    connection itself to find out.

    Args:
        address: HOST:PORT, or [IPV6]:PORT.
        tls: whether TLS is spoken there. A relay may take connections for a server that is down, but greets nobody.
        seconds: at most, for the connection and for the greeting each.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if _has_proxy(host, "https" if tls else "http"):
        return ""
    try:
        with socket.create_connection((host, int(port)), seconds) as plain:
            return _greeted(plain, host) if tls else _kept_open(plain)
    except TimeoutError:
        return "no answer"
    except UnicodeError:  # of a name with two dots in a row, or a part above 63 letters
        return "no name of a host"
    except OSError as error:
        return error.strerror or str(error)


def _has_proxy(host: str, scheme: str) -> bool:
    """By ``https_proxy`` and the like, which Flower's client follows."""
    found = getproxies_environment()
    led = bool({scheme, "all"} & found.keys())
    return led and host not in LOOPBACK and not proxy_bypass(host)


def _greeted(plain: socket.socket, host: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        context.wrap_socket(plain, server_hostname=host).close()
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return "the connection is closed at once"
    except ssl.SSLError:  # somebody answers, but speaks no TLS
        return ""
    return ""


def _kept_open(plain: socket.socket) -> str:
    plain.settimeout(CLOSED_SECONDS)
    try:
        return "" if plain.recv(1) else "the connection is closed at once"
    except TimeoutError:  # HTTP servers wait for a request
        return ""
