"""Form 4 filings, and a queue of the demo's own that has them, for whoever speaks SQS's protocol.

What was sent stands in the lake's ``control/demo.json``, and so does what was deleted: each process that exports a demo
lake has a server of its own, and all of them have the same queue. What was deleted is written down when a server ends.
After a kill it is given again, as SQS does, under the same message ids.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

__all__ = ["FILED_BEFORE", "QUEUE", "QUEUE_REGION", "FilingsQueue", "SentFilings", "filing", "runs_of_numbers"]

QUEUE, QUEUE_REGION = "insider_filings", "us-east-1"
ISSUERS = [("ACME", "Acme Corp"), ("GLBX", "Globex Inc"), ("INIT", "Initech Group"), ("UMBR", "Umbrella plc")]
OWNERS = ["Ada Byron", "Grace Murray", "Alan Mathison", "Edsger Wybe", "Barbara Jane"]
TITLES = ["CEO", "CFO", "General Counsel", None]
CODES = "PPSSSAMF"
#: SQS limit: a queue keeps a message for 14 days at the most.
RETENTION = timedelta(days=14)
#: Filings are older than the rows of a demo's streams, so that they fill several months.
FILED_BEFORE = timedelta(days=60)
_IDS = uuid.UUID("6d1f7d0e-3c55-4d0c-9f6f-0a6b2a3c4d5e")


def filing(number: int, chance: random.Random, filed: datetime) -> dict[str, Any]:
    """A filing, made up: what a director, an officer or a large owner traded in the shares of the company.

    A Form 4 says so within two business days; the fields are those of EDGAR's own data sets.

    Args:
        number: Of the filing.
        chance: Decides who, what and how many.
        filed: When, aware UTC.
    """
    ticker, issuer = chance.choice(ISSUERS)
    title = chance.choice(TITLES)
    shares = chance.randrange(1, 50_000)
    return {
        "accession_number": f"{1_000_000_000 + number:010}-{filed:%y}-{number % 1_000_000:06}",
        "filed_at": filed.isoformat(timespec="seconds"),
        "transaction_date": f"{filed - timedelta(days=chance.randrange(3)):%Y-%m-%d}",
        "ticker": ticker,
        "issuer": issuer,
        "owner": chance.choice(OWNERS),
        "is_director": title is None,
        "is_officer": title is not None,
        "officer_title": title,
        "transaction_code": chance.choice(CODES),
        "shares": shares,
        "price": str(Decimal(chance.randrange(10_000, 5_000_000)) / 10_000),
        "shares_after": shares + chance.randrange(1_000_000),
    }


class SentFilings(BaseModel):
    """Filings that were sent to a demo's queue at once.

    Attributes:
        first: Number of the first.
        count: How many.
        since: The first was filed then or later.
        sent: When they were sent; the last was filed before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: Annotated[int, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]
    since: AwareDatetime
    sent: AwareDatetime

    def body(self, number: int, seed: int) -> str:
        """The message of one of them; always the same."""
        chance = random.Random(f"{seed}/{number}")
        filed = self.since + (self.sent - self.since) * chance.random()
        return json.dumps(filing(number, chance, filed.astimezone(UTC)))


def runs_of_numbers(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Numbers as runs, each with its first and its last."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return tuple(runs)


class _QueueError(Exception):
    """What SQS would refuse; its code."""


class FilingsQueue:
    """The queue, served on loopback while the context is open.

    It answers what reads a queue: its address and attributes, and messages are received, hidden for longer and deleted.

    Args:
        sent: What was sent.
        seed: Of the demo.
        deleted: Runs of the numbers that were deleted before.
        clock: Seconds since the epoch.

    Attributes:
        deleted: Numbers that were deleted since it was opened.
    """

    def __init__(
        self,
        sent: Sequence[SentFilings],
        *,
        seed: int,
        deleted: Sequence[tuple[int, int]] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._seed, self._clock, self._lock = seed, clock, threading.Lock()
        self.deleted: set[int] = set()
        gone = {number for first, last in deleted for number in range(first, last + 1)}
        kept = [each for each in sent if (each.sent + RETENTION).timestamp() > clock()]
        self._of = {number: each for each in kept for number in range(each.first, each.first + each.count)}
        self._there = dict.fromkeys((number for number in self._of if number not in gone), 0)
        self._visible: list[tuple[float, int]] = [(0.0, number) for number in self._there]
        self._hidden_until = dict.fromkeys(self._there, 0.0)
        heapq.heapify(self._visible)
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Of the server."""
        if self._server is None:
            raise AssertionError
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.answer))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="filings", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, operation: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What SQS answers (Amazon SQS API reference).

        Raises:
            _QueueError: It refuses.
        """
        operations: dict[str, Callable[[], dict[str, Any]]] = {
            "GetQueueUrl": lambda: {"QueueUrl": self._address(asked["QueueName"])},
            "ListQueues": lambda: {"QueueUrls": [self._address(QUEUE)]},
            "GetQueueAttributes": lambda: {"Attributes": self._attributes()},
            "ReceiveMessage": lambda: self._received(asked),
            "DeleteMessageBatch": lambda: self._each(asked, self._delete),
            "ChangeMessageVisibilityBatch": lambda: self._each(asked, self._hide),
        }
        if operation not in operations:
            raise _QueueError("UnsupportedOperation")
        if "QueueUrl" in asked:
            self._address(str(asked["QueueUrl"]).rpartition("/")[2])
        with self._lock:
            return operations[operation]()

    def _address(self, name: str) -> str:
        if name != QUEUE:
            raise _QueueError("QueueDoesNotExist")
        return f"{self.url}/000000000000/{name}"

    def _attributes(self) -> dict[str, str]:
        hidden = sum(until > self._clock() for until in self._hidden_until.values())
        return {
            "QueueArn": f"arn:aws:sqs:{QUEUE_REGION}:000000000000:{QUEUE}",
            "ApproximateNumberOfMessages": str(len(self._there) - hidden),
            "ApproximateNumberOfMessagesNotVisible": str(hidden),
            "ApproximateNumberOfMessagesDelayed": "0",
            "MessageRetentionPeriod": str(int(RETENTION.total_seconds())),
            "VisibilityTimeout": "30",
        }

    def _received(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        now = self._clock()
        until = now + int(asked.get("VisibilityTimeout", 30))
        while self._visible and len(found) < int(asked.get("MaxNumberOfMessages", 1)) and self._visible[0][0] <= now:
            at, number = heapq.heappop(self._visible)
            if self._hidden_until.get(number) != at:  # it was deleted, or hidden for longer
                continue
            self._there[number] += 1
            self._hide(number, {"VisibilityTimeout": until - now})
            found.append(self._message(number))
        return {"Messages": found} if found else {}

    def _message(self, number: int) -> dict[str, Any]:
        sent, receives = self._of[number], self._there[number]
        body = sent.body(number, self._seed)
        return {
            "MessageId": str(uuid.uuid5(_IDS, f"{self._seed}/{number}")),
            "ReceiptHandle": f"{number}/{receives}",
            "MD5OfBody": hashlib.md5(body.encode(), usedforsecurity=False).hexdigest(),
            "Body": body,
            "Attributes": {
                "SentTimestamp": str(round(sent.sent.timestamp() * 1000)),
                "ApproximateReceiveCount": str(receives),
            },
        }

    def _each(self, asked: Mapping[str, Any], change: Callable[[int, Mapping[str, Any]], None]) -> dict[str, Any]:
        for entry in asked["Entries"]:
            change(int(entry["ReceiptHandle"].partition("/")[0]), entry)
        return {"Successful": [{"Id": entry["Id"]} for entry in asked["Entries"]], "Failed": []}

    def _delete(self, number: int, _: Mapping[str, Any]) -> None:
        if self._there.pop(number, None) is not None:
            del self._hidden_until[number]
            self.deleted.add(number)

    def _hide(self, number: int, asked: Mapping[str, Any]) -> None:
        if number in self._there:
            self._hidden_until[number] = until = self._clock() + float(asked["VisibilityTimeout"])
            heapq.heappush(self._visible, (until, number))


def _handler(answer: Callable[[str, Mapping[str, Any]], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    """SQS's protocol of today: JSON, whose operation stands in a header."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # an answer in one piece: two would wait for each other (Nagle)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            try:
                status, said = 200, answer(self.headers.get("X-Amz-Target", "").rpartition(".")[2], asked)
            except _QueueError as error:
                status, said = 400, {"__type": f"com.amazonaws.sqs#{error}", "message": str(error)}
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Nothing: what is asked is nobody's news."""

    return Handler
