"""Addresses that a server listens at."""

import contextlib
import errno
import ipaddress
import os
import socket


def address(host: str, port: int) -> str:
    """Returns a host and a port as URLs and gRPC have them: IPv6 in brackets.

    Example:
        >>> address("127.0.0.1", 8501), address("::1", 8501)
        ('127.0.0.1:8501', '[::1]:8501')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Returns whether only programs of this machine can reach a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> list[socket.socket]:
    """Returns sockets of all addresses that a host has; they are bound and do not listen yet.

    Those that the system does not have, such as IPv6 where it is off, are left out.

    Args:
        host: A name or an address.
        port: The port; 0 for one that is free.

    Raises:
        OSError: There is no such host, it is another machine, or the port is taken.
    """
    with contextlib.ExitStack() as unless_all:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            sockets: list[socket.socket] = []
            missing = []
            for family, _, _, _, (name, _, *rest) in dict.fromkeys(found):
                # Of a port that is chosen, all have the first one's.
                at = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(unless_all.enter_context(_bound(family, (name, at, *rest))))
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
                    missing.append(error)
            if not sockets:
                raise missing[0]
        except OSError as error:
            raise OSError(
                f"A server cannot listen at {address(host, port)} ({error}): choose another port, "
                "or an address of this machine."
            ) from error
        unless_all.pop_all()
    return sockets


_NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def _bound(family: int, where: tuple) -> socket.socket:
    with contextlib.ExitStack() as unless_bound:
        bound = unless_bound.enter_context(socket.socket(family, socket.SOCK_STREAM))
        if os.name != "nt":  # where it would let two servers have one port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # a host that has IPv4, too, has a socket for it
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(where)
        unless_bound.pop_all()
    return bound
