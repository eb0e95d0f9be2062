"""A broker that speaks TLS and asks for certificates: a proxy in front of the usual one, which does neither."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

import trustme

from datalake_assets_tests.sources.kafka.kafka_server import KafkaServer


class TlsProxy:
    """Speaks TLS in front of a broker, under another address, and asks for a certificate.

    A broker tells clients its own address; the proxy writes the other one over it, which is as long.

    Args:
        server: The broker.
        folder: Where certificates are written.
    """

    def __init__(self, server: KafkaServer, folder: Path) -> None:
        self._authority, self.stranger = trustme.CA(), trustme.CA()
        host, port = "127.0.0.2", int(server.servers.rpartition(":")[2])
        self.servers, self._broker = f"{host}:{port}", ("127.0.0.1", port)
        self.authority, self.strange_authority = folder / "authority.pem", folder / "stranger.pem"
        self._authority.cert_pem.write_to_path(str(self.authority))
        self.stranger.cert_pem.write_to_path(str(self.strange_authority))
        client = self._authority.issue_cert("lake.test")
        self.certificate, self.key = folder / "client.pem", folder / "client.key"
        self.certificate.write_bytes(b"".join(each.bytes() for each in client.cert_chain_pems))
        client.private_key_pem.write_to_path(str(self.key))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(host).configure_cert(self._context)
        self._authority.configure_trust(self._context)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server((host, port))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(self._broker) as broker,
        ):
            threading.Thread(target=_copy, args=(client, broker), daemon=True).start()
            _copy(broker, client, (b"127.0.0.1", b"127.0.0.2"))


def _copy(source: socket.socket, target: socket.socket, change: tuple[bytes, bytes] = (b"", b"")) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data.replace(*change) if change[0] else data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
