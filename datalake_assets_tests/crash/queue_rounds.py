"""Rounds of a queue: workers are killed at drawn steps, deletions get lost, messages come to two workers at once.

The messages are sent once, by boto3, and a list says what was sent. What stands in the end is read by pyarrow and by
the json module from the plain files: no code of the product takes part in it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.sqs.queue import Queue
from datalake_assets.sources.sqs.sqs import Sqs
from datalake_assets.sources.sqs.sqs_model import SqsSettings
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.sources.sqs.sqs_server import SqsServer, TestQueue

__all__ = ["Load", "QueueRounds", "consume"]

KILLED = -signal.SIGKILL
#: What changes the lake, or the queue, and how many times a part of a batch does it.
OPERATIONS: dict[tuple[type, str], int] = {
    (LocalStore, "stage"): 1,
    (LocalStore, "create"): 1,
    (LocalStore, "swap"): 4,
    (LocalStore, "put"): 1,
    (LocalStore, "publish"): 2,
    (LocalStore, "delete"): 1,
    (Queue, "receive"): 16,
    (Queue, "delete"): 2,
    (Queue, "hide"): 1,
    (Queue, "send"): 2,
}
SELDOM = frozenset({"hide", "send", "create"})
#: One message in so many cannot be decoded; so many percent of deletions are lost, and of publications slow.
POISON_EVERY, LOST_PERCENT, SLOW_PERCENT = 100, 10, 5
VISIBILITY_S, WORKERS, GROUPS = 1, 2, 40
MOST_FAILED = 20
#: Bytes of bodies in a part, which is some hundred messages.
PART_BYTES = 7_000
#: Seconds that a worker goes on: those that live must leave messages enough for others to be killed at.
RUN_S = 2


@dataclass(frozen=True, slots=True)
class Load:
    """How much is sent, and how often a worker is killed at the least."""

    messages: int = 20_000
    deaths: int = 100
    fifo: bool = False


def feed_of(queue: str, dead: str) -> Feed:
    """A stream of a queue by the time of the message's own, over three months."""
    source = {
        "type": "sqs",
        "queue": queue,
        "fields": {"n": "long not null", "at": "timestamptz not null"},
        "visibility_s": VISIBILITY_S,
        "idle_s": 1,
        "run_s": RUN_S,
        "batch_bytes": PART_BYTES,
        "receivers": 2,
        "max_receives": 2,
        "dead_letter_queue": dead,
    }
    document = {"name": "queued", "kind": "stream", "source": source, "time_column": "at", "partition_by": "month"}
    return parse_feed(json.dumps(document))


def consume(*, lake: str, url: str, queue: str, dead: str, name: str, number: int, moment: str, seed: int) -> None:
    """One export by a worker that dies before or after its ``number``-th operation ``name``; 0 for never."""
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    _mistreat(random.Random(seed), name, number, moment)
    table = open_table(open_store(lake), feed_of(queue, dead))
    sqs = Sqs(SqsSettings(sqs_endpoint=url))
    plan = table.plan()
    table.write(sqs.read(table.feed, plan.request), partitions=plan.partitions, run_id=f"worker {os.getpid()}")


def _mistreat(chance: random.Random, name: str, number: int, moment: str) -> None:
    left = [number]

    def around(operation: str, real: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if operation == name:
            left[0] -= 1
        dies = operation == name and left[0] == 0
        if dies and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if operation == "LocalStore.publish" and chance.randrange(100) < SLOW_PERCENT:
            time.sleep(1.5 * VISIBILITY_S)  # by then others may have them too
        if operation == "Queue.hide" or (operation == "Queue.delete" and chance.randrange(100) < LOST_PERCENT):
            result: Any = 0  # SQS took the request, and it came to nothing
        else:
            result = real(*given, **named)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    for owner, operation in OPERATIONS:
        real, full = getattr(owner, operation), f"{owner.__name__}.{operation}"
        setattr(owner, operation, lambda *given, _o=full, _r=real, **named: around(_o, _r, *given, **named))


class QueueRounds:
    """Sends, kills and counts; the interface of the campaign's other rounds.

    Args:
        lakes: A folder.
        forker: Starts the workers.
        seed: Of what is drawn.
        load: How much.
        server: One that others use too; by default one of its own.
    """

    #: Those of which enough are killed in a full campaign; the others happen seldom.
    steps = tuple(f"{owner.__name__}.{name}" for owner, name in OPERATIONS if name not in SELDOM)

    def __init__(
        self,
        lakes: str,
        forker: Forker,
        *,
        seed: int = 0,
        load: Load,
        server: SqsServer | None = None,
        endpoint: str | None = None,
    ) -> None:
        assert endpoint is None, "the queue's campaign works on a local lake"
        self._lake, self._forker, self._load, self._rng = f"{lakes}/queue", forker, load, random.Random(seed)
        Path(self._lake).mkdir()
        self._own = ExitStack()
        self._server = server or self._own.enter_context(SqsServer())
        #: How many at the most: until enough were killed.
        self.rounds = 10 * load.deaths
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self._good: dict[str, int] = {}
        self._poison: dict[str, str] = {}
        self._poison_ids: set[str] = set()
        self._began = time.monotonic()

    def prepare(self) -> None:
        """Sends all messages."""
        self._queue = self._server.queue(fifo=self._load.fifo)
        self._dead = self._server.queue(fifo=self._load.fifo)
        numbers = range(self._load.messages)
        bodies = [_body(number) for number in numbers]
        sent = _sent_in_order(self._queue, bodies) if self._load.fifo else self._queue.send(bodies)
        for number, body, message_id in zip(numbers, bodies, sent, strict=True):
            if _is_poison(number):
                # a FIFO queue's are known by the sender's ids
                self._poison[str(number) if self._load.fifo else message_id] = body
                self._poison_ids.add(message_id)
            else:
                self._good[message_id] = number

    @property
    def is_done(self) -> bool:
        """Whether the queue is empty, or enough were killed: the rest is landed in peace."""
        return self.hits.total() >= self._load.deaths or self._queue.left == (0, 0)

    def round(self) -> str:
        """Two workers at once, each with an operation to die at."""
        points = [self._point() for _ in range(WORKERS)]
        children = [self._start(*point) for point in points]
        for child, (name, _, moment) in zip(children, points, strict=True):
            code = self._forker.wait(child)
            if code == KILLED:
                self.hits[name] += 1
                self.moments[moment] += 1
            elif code:  # two workers may have so many messages in common that one gives up
                self.happened["failed"] += 1
                assert self.happened["failed"] < MOST_FAILED, "workers fail"
        visible, in_flight = self._queue.left
        return f"{self.hits.total()} killed, {visible:,} messages wait, {in_flight:,} are in flight"

    def _point(self) -> tuple[str, int, str]:
        # those that were reached seldom so far come more often
        seldom = [1 / (1 + self.hits[f"{owner.__name__}.{name}"]) for owner, name in OPERATIONS]
        (((owner, name), most),) = self._rng.choices(list(OPERATIONS.items()), seldom)
        return f"{owner.__name__}.{name}", self._rng.randint(1, most), self._rng.choice(("before", "after"))

    def _start(self, name: str, number: int, moment: str) -> int:
        return self._forker.start(
            "consume",
            lake=self._lake,
            url=self._server.url,
            queue=self._queue.name,
            dead=self._dead.name,
            name=name,
            number=number,
            moment=moment,
            seed=self._rng.randrange(1 << 30),
        )

    def close(self) -> None:
        """Lands the rest, and compares what stands with what was sent.

        Raises:
            CrashError: A message is missing, or there twice.
        """
        try:
            self._finish()
            self._compare()
        finally:
            self._own.close()

    def _finish(self) -> None:
        for _ in range(200):
            if self._queue.left == (0, 0):
                return
            assert self._forker.wait(self._start("", 0, "")) == 0
            time.sleep(VISIBILITY_S / 4)
        raise CrashError(f"the queue does not get empty: {self._queue.left}")

    def _compare(self) -> None:
        files = sorted(Path(self._lake, "streams", "queued").rglob("*.parquet"))
        tables = [pq.read_table(file, columns=["message_id", "n"], partitioning=None) for file in files]
        landed: Counter[Any] = Counter()
        for table in tables:
            landed.update(zip(table["message_id"].to_pylist(), table["n"].to_pylist(), strict=True))
        sent = Counter(self._good.items())
        _require(landed == sent, "messages in the lake", landed, sent)
        lines = [
            json.loads(line)
            for file in Path(self._lake, "quarantine", "streams", "queued").rglob("*.jsonl")
            for line in file.read_text().splitlines()
        ]
        # a sender's id has a digest of the content behind it
        aside = {each["position"].partition(" ")[0]: each["raw"] for each in lines}
        _require(aside == self._poison, "messages in quarantine", aside, self._poison)
        moved = _drained(self._dead)
        _require(moved == self._poison_ids, "messages in the dead-letter queue", moved, self._poison_ids)
        self.happened |= Counter(landed=len(landed), quarantined=len(aside), files=len(files))


def _require(holds: bool, what: str, found: Any, expected: Any) -> None:  # noqa: FBT001
    if not holds:
        missing = [each for each in expected if each not in found][:5]
        twice = [each for each, count in Counter(found).items() if isinstance(count, int) and count > 1][:5]
        raise CrashError(f"{what}: {len(found):,} for {len(expected):,}; missing {missing}, twice {twice}")


def _is_poison(number: int) -> bool:
    return number % POISON_EVERY == POISON_EVERY - 1


def _body(number: int) -> str:
    if _is_poison(number):
        return ("not JSON", '{"n": "x"}', "[]", '{"at": "2026-01-01T00:00:00Z"}')[number // POISON_EVERY % 4]
    return json.dumps({"n": number, "at": f"2026-{1 + number % 3:02}-{1 + number % 28:02}T00:00:00Z", "pad": "x" * 20})


def _sent_in_order(queue: TestQueue, bodies: list[str]) -> list[str]:
    ids = []
    for begin in range(0, len(bodies), 10):
        entries = [
            {
                "Id": str(number),
                "MessageBody": bodies[number],
                "MessageGroupId": f"g{number % GROUPS}",
                "MessageDeduplicationId": str(number),
            }
            for number in range(begin, min(begin + 10, len(bodies)))
        ]
        answer = queue.client.send_message_batch(QueueUrl=queue.url, Entries=entries)
        sent = {each["Id"]: each["MessageId"] for each in answer["Successful"]}
        ids += [sent[each["Id"]] for each in entries]
    return ids


def _drained(queue: TestQueue) -> set[str]:
    """What was moved to a queue, by the ids of the messages that it was."""
    found: set[str] = set()
    while messages := queue.receive():
        found |= {each["MessageAttributes"]["datalake_message_id"]["StringValue"] for each in messages}
        for each in messages:
            queue.client.delete_message(QueueUrl=queue.url, ReceiptHandle=each["ReceiptHandle"])
    return found
