"""A broker that asks who is there: a front before the usual one, which speaks neither TLS nor SASL.

What it checks, it checks by others' code: certificates by OpenSSL, SCRAM by scramp, tokens by joserfc, and it reads and
writes Kafka's frames by kio, whose types are generated from Kafka's own. Nothing of who is not known yet comes to the
broker but the question which versions it has, which Kafka answers to everybody.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

import trustme
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from kio.static.primitive import i64Timedelta
from scramp import ScramException, ScramMechanism

from datalake_assets_tests.sources.kafka.kafka_server import Broker

__all__ = ["FETCH", "MECHANISMS", "BrokerFront", "TokenServer"]

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
#: Numbers of what is asked (Kafka protocol guide, "Api Keys").
FETCH, METADATA, FIND_COORDINATOR, HANDSHAKE, API_VERSIONS, AUTHENTICATE, DESCRIBE_CLUSTER = 1, 3, 10, 17, 18, 36, 60
#: Those whose answers say where brokers are.
_NAMES_BROKERS = {METADATA, FIND_COORDINATOR, DESCRIBE_CLUSTER}
#: Versions of what the front answers itself.
_OWN_VERSIONS = {HANDSHAKE: (0, 1), AUTHENTICATE: (0, 1)}
#: Where the front is: as long as the broker's own address, in whose place it is written.
_HOST, _BROKERS_HOST = "127.0.0.2", "127.0.0.1"


class BrokerFront:
    """Stands before a broker, under another address, while the context is open.

    Args:
        broker: The broker.
        folder: Where certificates are written.
        users: Passwords by user; None: nobody is asked.
        mechanisms: Those that users may be known by.
        token_key: What tokens are signed with.
        tls: Whether it speaks TLS.
        asks_certificate: Whether clients have to show a certificate.
        drops: How often it goes away instead of looking at credentials.
        session_s: Seconds after which clients are told to show their credentials again (KIP-368); 0: never.

    Attributes:
        servers: Where it is.
        authority: File of the authority that signed its certificate; and ``strange_authority`` of one that did not.
        certificate: File of a client's certificate, and ``key`` of its key.
        refused: Why clients were refused, one after another.
        asked: Numbers of what clients asked of the broker.
        connections: How many clients opened.
        sessions: How often they were let in.
    """

    def __init__(
        self,
        broker: Broker,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        mechanisms: tuple[str, ...] = MECHANISMS,
        token_key: str = "",
        tls: bool = False,
        asks_certificate: bool = False,
        drops: int = 0,
        session_s: float = 0.0,
    ) -> None:
        self.port = int(broker.servers.rpartition(":")[2])
        self.servers = f"{_HOST}:{self.port}"
        self.users, self.mechanisms, self.token_key = users, mechanisms, token_key
        self.drops_left, self.session_s = drops, session_s
        self.authority: Path | None = None
        self.refused: list[str] = []
        self.asked: list[int] = []
        self.connections = self.sessions = 0
        self._context = self._certified(folder, asks=asks_certificate) if tls else None
        self._clients: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def _certified(self, folder: Path, *, asks: bool) -> ssl.SSLContext:
        authority, stranger = trustme.CA(), trustme.CA()
        self.authority, self.strange_authority = folder / "authority.pem", folder / "stranger.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        stranger.cert_pem.write_to_path(str(self.strange_authority))
        client = authority.issue_cert("lake.test")
        self.certificate, self.key = folder / "client.pem", folder / "client.key"
        self.certificate.write_bytes(b"".join(each.bytes() for each in client.cert_chain_pems))
        client.private_key_pem.write_to_path(str(self.key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(_HOST).configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
        return context

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, _HOST, self.port, ssl=self._context)
        self._started.set()
        await self._stopping.wait()
        server.close()
        self._drop()

    def drop(self) -> None:
        """Ends all connections."""
        self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        for each in self._clients:
            each.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            from_broker, to_broker = await asyncio.open_connection(_BROKERS_HOST, self.port)
            self._clients.add(writer)
            self.connections += 1
            client = _Client(self, writer, to_broker)
            answering = asyncio.ensure_future(client.answer(from_broker))
            try:
                while await client.asks(await _frame(reader)):
                    pass
            finally:
                answering.cancel()
                self._clients.discard(writer)
                writer.close()
                to_broker.close()


class _Client:
    """A connection of a client's, and what it waits for."""

    def __init__(self, front: BrokerFront, writer: asyncio.StreamWriter, to_broker: asyncio.StreamWriter) -> None:
        self._front, self._writer, self._to_broker = front, writer, to_broker
        self._waits: dict[int, tuple[int, int]] = {}
        self._mechanism = ""
        self._scram: Any = None
        self._is_known = front.users is None

    def _let_in(self) -> None:
        self._is_known = True
        self._front.sessions += 1

    async def asks(self, frame: bytes) -> bool:
        """What it asks goes to the broker, or is answered here; False where it is to go."""
        key, version, number = struct.unpack_from(">hhi", frame)
        if key in _OWN_VERSIONS:
            return await self._is_let_in(key, version, frame)
        if not self._is_known and key != API_VERSIONS:
            self._front.refused.append(f"{key} before it was known")
            return False
        self._front.asked.append(key)
        self._waits[number] = (key, version)
        await _send(self._to_broker, frame)
        return True

    async def answer(self, from_broker: asyncio.StreamReader) -> None:
        """Hands on what the broker answers, with the front's address in place of its own."""
        try:
            while frame := await _frame(from_broker):
                key, version = self._waits.pop(struct.unpack_from(">i", frame)[0])
                if key in _NAMES_BROKERS:
                    frame = frame.replace(_BROKERS_HOST.encode(), _HOST.encode())
                if key == API_VERSIONS and self._front.users is not None:
                    frame = _with_own_versions(frame, version)
                await _send(self._writer, frame)
        except (OSError, asyncio.IncompleteReadError):
            self._writer.transport.abort()  # the broker is gone

    async def _is_let_in(self, key: int, version: int, frame: bytes) -> bool:
        """Answers one step of SASL; False where the client is refused."""
        kind = load_request_schema(key, version)
        header, size = entity_reader(kind.__header_schema__)(frame, 0)
        request: Any = entity_reader(kind)(frame, size)[0]
        answer, error = {}, ErrorCode.none
        try:
            if key == HANDSHAKE:
                answer["mechanisms"] = self._front.mechanisms
                self._begin(request.mechanism)
            else:
                if self._front.drops_left:
                    self._front.drops_left -= 1
                    return False
                answer |= {"error_message": None, "auth_bytes": b""}
                answer["auth_bytes"] = self._step(request.auth_bytes)
                answer["session_lifetime"] = i64Timedelta.parse(timedelta(seconds=self._front.session_s))
        except _Refused as refusal:
            self._front.refused.append(str(refusal))
            error = ErrorCode.unsupported_sasl_mechanism if key == HANDSHAKE else ErrorCode.sasl_authentication_failed
            if key == AUTHENTICATE:
                answer["error_message"] = str(refusal)
        kind_of_answer = load_response_schema(key, version)
        await _send(self._writer, _written(kind_of_answer, header.correlation_id, error_code=error, **answer))
        return error is ErrorCode.none

    def _begin(self, mechanism: str) -> None:
        if mechanism not in self._front.mechanisms:
            raise _Refused(f"mechanism {mechanism}")
        self._mechanism = mechanism
        if mechanism.startswith("SCRAM"):
            scram = ScramMechanism(mechanism)
            known = {name: scram.make_auth_info(password) for name, password in (self._front.users or {}).items()}
            self._scram = scram.make_server(known.get)

    def _step(self, sent: bytes) -> bytes:
        """The answer to one message of the mechanism's (RFC 4616, RFC 5802, RFC 7628)."""
        if self._mechanism == "PLAIN":
            _, user, password = sent.decode().split("\0")
            if (self._front.users or {}).get(user) != password:
                raise _Refused("Authentication failed: Invalid username or password")
        elif self._mechanism == "OAUTHBEARER":
            self._check_token(sent)
        else:
            return self._scram_step(sent.decode())
        self._let_in()
        return b""

    def _scram_step(self, sent: str) -> bytes:
        try:
            if self._scram.stage is None:
                self._scram.set_client_first(sent)
                return str(self._scram.get_server_first()).encode()
            self._scram.set_client_final(sent)
        except ScramException as error:
            reason = f"Authentication failed during authentication due to invalid credentials with {self._mechanism}"
            raise _Refused(reason) from error
        self._let_in()
        return str(self._scram.get_server_final()).encode()

    def _check_token(self, sent: bytes) -> None:
        bearer = next((part for part in sent.decode().split("\x01") if part.startswith("auth=Bearer ")), "")
        try:
            token = jwt.decode(bearer.removeprefix("auth=Bearer "), OctKey.import_key(self._front.token_key))
            jwt.JWTClaimsRegistry(exp={"essential": True}, scope={"essential": True, "value": "lake"}).validate(
                token.claims
            )
        except (JoseError, ValueError) as error:
            raise _Refused("Authentication failed: the token is not valid") from error


class TokenServer:
    """Where clients get tokens for their id and secret (RFC 6749, section 4.4), on loopback while the context is open.

    Args:
        clients: Secrets by client id.
        valid_s: Seconds for which a token is valid.

    Attributes:
        url: Where it is.
        key: What it signs tokens with.
        tokens: How many it gave.
    """

    def __init__(self, clients: Mapping[str, str], *, valid_s: int = 300) -> None:
        self.key, self._valid_s, self.tokens = secrets.token_hex(32), valid_s, 0
        server = self

        class _Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                basic = self.headers.get("Authorization", "").removeprefix("Basic ")
                client, _, secret = base64.b64decode(basic).decode().partition(":")
                is_known = clients.get(client) == secret and asked["grant_type"] == ["client_credentials"]
                told = server._token(client, asked) if is_known else {"error": "invalid_client"}
                body = json.dumps(told).encode()
                self.send_response(200 if is_known else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _token(self, client: str, asked: Mapping[str, list[str]]) -> dict[str, Any]:
        now = int(time.time())
        self.tokens += 1
        claims = {"sub": client, "iat": now, "exp": now + self._valid_s, "scope": asked.get("scope", [""])[0]}
        token = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(self.key))
        return {"access_token": token, "token_type": "Bearer", "expires_in": self._valid_s}


class _Refused(Exception):
    """Why a client is not let in."""


async def _frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(*struct.unpack(">i", await reader.readexactly(4)))


async def _send(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(struct.pack(">i", len(frame)) + frame)
    await writer.drain()


def _written(kind: Any, number: Any, **fields: Any) -> bytes:
    known = kind.__dataclass_fields__
    return _written_whole(kind, number, kind(**{name: value for name, value in fields.items() if name in known}))


def _written_whole(kind: Any, number: Any, body: Any) -> bytes:
    buffer = BytesIO()
    header = kind.__header_schema__
    entity_writer(header)(buffer, header(correlation_id=number))
    entity_writer(kind)(buffer, body)
    return buffer.getvalue()


def _with_own_versions(frame: bytes, version: int) -> bytes:
    """The broker's answer, with what the front has in its place."""
    kind: Any = load_response_schema(API_VERSIONS, version)
    header, size = entity_reader(kind.__header_schema__)(frame, 0)
    body: Any = entity_reader(kind)(frame, size)[0]
    one = type(body.api_keys[0])
    others = [each for each in body.api_keys if each.api_key not in _OWN_VERSIONS]
    own = [one(api_key=key, min_version=low, max_version=high) for key, (low, high) in _OWN_VERSIONS.items()]
    return _written_whole(kind, header.correlation_id, replace(body, api_keys=(*others, *own)))
