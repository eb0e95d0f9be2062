"""Ports of the loopback for servers that have to be told one before they start."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

__all__ = ["free_port"]

#: Below those that Linux gives to connections, and to servers that take any (net.ipv4.ip_local_port_range): of these
#: one that is free now may be somebody's before the server has it, or while it is started again.
_PORTS = range(12_000, 32_000)
#: Of the system: a seed that a test sets would give all processes the same ports.
_chance = random.SystemRandom()


def free_port() -> int:
    """A port that nobody listens on, and that no connection takes."""
    while True:
        port = _chance.choice(_PORTS)
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
