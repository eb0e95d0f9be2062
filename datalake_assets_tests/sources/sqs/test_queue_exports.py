"""Messages of a queue land once each and are deleted after, whatever happens in between. On a real server."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from datalake_assets.core.batches import ReadRequest
from datalake_assets.errors import InvalidFeed, LakeUnavailable, SourceRefused, SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.sqs.given_messages import GivenMessages
from datalake_assets.sources.sqs.messages_read import MessageReader
from datalake_assets.sources.sqs.queue import Queue
from datalake_assets.sources.sqs.sqs import Sqs
from datalake_assets.sources.sqs.sqs_messages import Message, MessageLayout
from datalake_assets.sources.sqs.sqs_model import SqsSettings
from datalake_assets_tests.sources.sqs.conftest import bodies, feed_of, land, landed

pytestmark = pytest.mark.xdist_group("sqs")

SENT_AT = datetime(2026, 11, 29, 10, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def land_until(is_over, store, sqs, feed):
    """One export after the other until then: what was hidden comes again after a while. Returns their reports."""
    reports, ends = [], time.monotonic() + 60
    while not is_over():
        assert time.monotonic() < ends, reports
        reports.append(land(store, sqs, feed))
    return reports


def files(tmp_path):
    return sorted(tmp_path.rglob("streams/**/*.parquet"))


def test_messages_are_landed_and_deleted(store, sqs, queue):
    feed = feed_of(queue)
    queue.send([*bodies(range(20)), {"n": 20, "more": [1]}])

    report = land(store, sqs, feed)

    assert (report.rows_added, report.rows_read, report.rows_known) == (21, 21, 0)
    assert sorted(landed(store, feed)) == list(range(21))
    assert queue.left == (0, 0)
    assert land(store, sqs, feed).rows_read == 0


def test_a_backlog_is_one_batch_and_small_batches_come_back(store, sqs, queue, tmp_path):
    feed = feed_of(queue, batch_records=10, receivers=2)
    queue.send(bodies(range(300)))
    assert land(store, sqs, feed).rows_added == 300
    assert len(files(tmp_path)) == 1  # all that waited

    sent = threading.Thread(target=lambda: [queue.send(bodies(range(n, n + 1))) for n in range(25)])
    read = sqs.read(feed, ReadRequest())
    sizes = []
    sent.start()
    sent.join()
    for _ in range(9):
        sizes.append(sum(batch.rows.num_rows for batch in read))
        read.acknowledge()
        if not read.has_more:
            break
        queue.send(bodies(range(3)))

    assert sizes[0] == 25
    assert max(sizes[1:]) <= 10


def _first_starts(timer, receive):
    """Receives, and starts a timer once a message has come, however long a busy machine took until then."""
    begun = threading.Lock()

    def received(self, *args, **options):
        found = receive(self, *args, **options)
        if found and begun.acquire(blocking=False):
            timer.start()
        return found

    return received


@pytest.mark.parametrize(
    ("policy", "expected"),
    [({"batch_records": 7}, 7), ({"batch_bytes": 100}, 10), ({"batch_age_s": 0.4, "idle_s": 20}, 1)],
)
def test_a_batch_ends_by_records_bytes_or_age(sqs, queue, policy, expected):
    """The queue does not say that more is waiting than a batch takes: these are sent once it was asked."""
    feed = feed_of(queue, **{"batch_records": 50, **policy})
    read = sqs.read(feed, ReadRequest())
    original = Queue.attributes

    def empty(self):
        found = original(self)
        return type(found)(**{**{n: getattr(found, n) for n in found.__slots__}, "backlog": type(found.backlog)(0)})

    later = threading.Timer(8, lambda: queue.send(bodies(range(1, 9))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Queue, "attributes", empty)
        if "batch_age_s" in policy:
            queue.send(bodies(range(1)))
            patch.setattr(Queue, "receive", _first_starts(later, Queue.receive))
        else:
            queue.send(bodies(range(30)))
        assert sum(batch.rows.num_rows for batch in read) == expected
        assert read.has_more
    later.cancel()


def test_what_was_committed_and_not_deleted_comes_again_and_is_known(store, sqs, queue, sqs_server):
    feed = feed_of(queue, visibility_s=1)
    queue.send(bodies(range(30)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Queue, "delete", lambda *arguments: len(arguments[1]))
        assert land(store, sqs, feed).rows_added == 30

    others = Sqs(SqsSettings(sqs_endpoint=sqs_server.url))
    reports = land_until(lambda: queue.left == (0, 0), store, others, feed)
    others.close()

    assert [sum(each.rows_added for each in reports), sum(each.rows_known for each in reports)] == [0, 30]
    assert sorted(landed(store, feed)) == list(range(30))
    assert queue.left == (0, 0)


def test_nothing_is_deleted_if_the_lake_fails(store, sqs, queue, monkeypatch):
    feed = feed_of(queue, visibility_s=1)
    queue.send(bodies(range(5)))

    def full(self, staged):
        raise LakeUnavailable("here", "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "publish", full)
        with pytest.raises(LakeUnavailable):
            land(store, sqs, feed)
    assert sum(queue.left) == 5

    report = land(store, sqs, feed)  # finishes that commit; the same connection still holds the messages

    assert (report.rows_added, report.rows_known) == (0, 5)
    assert sorted(landed(store, feed)) == list(range(5))
    assert queue.left == (0, 0)


def test_messages_are_hidden_from_others_for_as_long_as_it_takes_to_land_them(sqs, queue):
    feed = feed_of(queue, visibility_s=2)
    queue.send(bodies(range(12)))
    read = sqs.read(feed, ReadRequest())
    assert sum(batch.rows.num_rows for batch in read) == 12

    time.sleep(4.4)  # twice as long as they were hidden for at first

    assert queue.receive() == []
    read.acknowledge()
    assert queue.left == (0, 0)


def test_poison_goes_to_quarantine_at_once_and_to_the_dead_letter_queue_after_its_receptions(
    store, sqs, queue, sqs_server
):
    dead = sqs_server.queue()
    feed = feed_of(queue, visibility_s=3, max_receives=2, dead_letter_queue=dead.name)
    (good, bad) = queue.send([{"n": 1}, '{"n": "x"}'])

    first = land(store, sqs, feed)
    assert (first.rows_added, first.rows_quarantined, sum(queue.left)) == (1, 1, 1)
    assert dead.left == (0, 0)

    again = land_until(lambda: queue.left == (0, 0), store, sqs, feed)

    assert sum(each.rows_read for each in again) == 1
    (moved,) = dead.receive()
    assert moved["Body"] == '{"n": "x"}'
    notes = {name: each["StringValue"] for name, each in moved["MessageAttributes"].items()}
    assert notes["datalake_message_id"] == bad
    assert notes["datalake_reason"].startswith("n: Expected `int`")
    quarantined = [row for _, row in open_table(store, feed).quarantined()]
    assert {(row.position, row.raw) for row in quarantined} == {(bad, '{"n": "x"}')}
    assert len({row.identity for row in quarantined}) == 1
    assert landed(store, feed, "message_id") == [good]


def test_poison_is_left_to_a_queue_that_has_a_redrive_policy(store, sqs, sqs_server):
    dead = sqs_server.queue()
    policy = {"deadLetterTargetArn": dead.attributes["QueueArn"], "maxReceiveCount": "1"}
    queue = sqs_server.queue(RedrivePolicy=json.dumps(policy))
    feed = feed_of(queue, visibility_s=3, max_receives=1)
    queue.send(["{"])
    assert land(store, sqs, feed).rows_quarantined == 1
    assert sum(queue.left) == 1

    again = land_until(lambda: queue.left == (0, 0), store, sqs, feed)

    assert (sum(each.rows_read for each in again), sum(dead.left)) == (0, 1)


def test_poison_without_any_other_queue_is_deleted_once_it_was_given_up(store, sqs, queue):
    feed = feed_of(queue, visibility_s=1, max_receives=1)
    queue.send(["{"])
    assert land(store, sqs, feed).rows_quarantined == 1
    assert queue.left == (0, 0)


def test_deletions_that_fail_for_some_messages_are_repeated(sqs, queue):
    messages = [queue.send(bodies(range(4))), queue.receive(4)][1]
    real, failed = queue.client.delete_message_batch, []

    class Failing:
        """Lets the first entry of the first request fail on the server's side."""

        def delete_message_batch(self, **request):
            first, *rest = request["Entries"]
            if failed:
                return real(**request)
            failed.append(first)
            answer = real(**{**request, "Entries": rest})
            return {**answer, "Failed": [{"Id": first["Id"], "SenderFault": False, "Code": "InternalError"}]}

    with ThreadPoolExecutor(1) as threads:
        left = Queue(Failing(), queue.url).delete([each["ReceiptHandle"] for each in messages], threads)

    assert (left, queue.left) == (0, (0, 0))
    assert len(failed) == 1


def test_order_within_groups_of_a_fifo_queue_is_kept(store, sqs, fifo):
    feed = feed_of(fifo)
    for number in range(40):
        fifo.send([{"n": number}], groups=[f"g{number % 3}"], MessageDeduplicationId=f"d{number}")

    report = land(store, sqs, feed)

    assert (report.rows_added, fifo.left) == (40, (0, 0))
    rows = open_table(store, feed).scan(columns=["n", "message_group_id", "sequence_number"]).read_all().to_pylist()
    ordered = sorted(rows, key=lambda row: row["sequence_number"])
    for group in ("g0", "g1", "g2"):
        numbers = [row["n"] for row in ordered if row["message_group_id"] == group]
        assert numbers == sorted(numbers)
        assert numbers == [row["n"] for row in rows if row["message_group_id"] == group]


def test_what_a_sender_repeats_in_a_fifo_queue_is_landed_once(store, sqs, fifo, sqs_server):
    """SQS itself drops repetitions for five minutes: a second queue stands for what comes later."""
    time_column = {"time_column": "at"}
    later = sqs_server.queue(fifo=True)
    at = {"at": "2026-11-29T10:00:00Z"}
    for queue, numbers in ((fifo, (1, 2)), (later, (2, 3))):
        for number in numbers:
            queue.send([{"n": number, **at}], groups=["g"], MessageDeduplicationId=f"d{number}")
    fields = {"n": "long", "at": "timestamptz"}
    later.send([{"n": 9, **at}], groups=["g"], MessageDeduplicationId="d1")  # no repetition: it says something else
    report = land(store, sqs, feed_of(fifo, fields=fields, feed=time_column))
    assert report.rows_added == 2
    sqs.close()

    again = land(store, sqs, feed_of(later, fields=fields, feed=time_column))

    assert (again.rows_added, again.rows_known) == (2, 1)
    assert sorted(landed(store, feed_of(later, fields=fields, feed=time_column))) == [1, 2, 3, 9]
    assert later.left == (0, 0)


def test_what_has_the_identity_of_poison_and_another_body_is_not_deleted_with_it(store, sqs, fifo, monkeypatch):
    """SQS itself drops repetitions for five minutes: here two messages stand for one and its correction much later."""
    monkeypatch.setattr(MessageReader, "item_of", lambda *_: "same")
    feed = feed_of(fifo, max_receives=1)
    fifo.send(["not JSON"], groups=["a"], MessageDeduplicationId="1")
    fifo.send([{"n": 7}], groups=["b"], MessageDeduplicationId="2")

    report = land(store, sqs, feed)

    assert (report.rows_added, report.rows_quarantined, fifo.left) == (1, 1, (0, 0))
    assert landed(store, feed) == [7]


def test_lambda_gives_again_what_has_the_identity_of_another_message_and_another_body(sqs, fifo, monkeypatch):
    monkeypatch.setattr(MessageReader, "item_of", lambda *_: "same")
    first, again, other = (Message(f"m{n}", "r", body, SENT_AT, 9) for n, body in enumerate(["no JSON"] * 2 + ["{}"]))
    given = GivenMessages(sqs, feed_of(fifo), [first, again, other])
    assert [len(batch.rejected) for batch in given] == [1]
    assert given.to_come_again() == ["m2"]


def test_a_body_that_is_no_text_in_utf_8_is_poison_and_stops_no_other():
    """AWS takes none; other servers that speak SQS do."""
    messages = [Message(f"m{number}", "r", body, SENT_AT, 1) for number, body in enumerate(('{"n": 1}', '"\ud800"'))]
    for fields in ({"n": "long"}, {}):
        source = {"type": "sqs", "queue": "q", "fields": fields}
        found = MessageLayout(Feed(name="q", kind=FeedKind.STREAM, source=source)).decoded(messages)
        assert ([each.id for each in found.messages], [each.id for each, _ in found.poison]) == (["m0"], ["m1"])


def test_what_a_feed_says_has_to_fit_its_queue(sqs, queue, fifo, sqs_server):
    sqs.check(feed_of(queue))
    sqs.check(feed_of(fifo))
    with pytest.raises(InvalidFeed, match="the queue keeps messages for 4 days"):
        sqs.check(feed_of(queue, horizon="P3D"))
    with pytest.raises(InvalidFeed, match="what is sent again has another sent_at"):
        sqs.check(feed_of(fifo, identity="deduplication"))
    with pytest.raises(SourceRefused, match="there is no such queue"):
        sqs.check(feed_of(queue, dead_letter_queue="nothere"))
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        Sqs(SqsSettings(sqs_endpoint="http://127.0.0.1:9")).check(feed_of(queue))


def test_a_rate_is_kept(sqs, queue):
    feed = feed_of(queue, messages_per_s=40)
    queue.send(bodies(range(40)))
    began = time.monotonic()
    assert sum(batch.rows.num_rows for batch in sqs.read(feed, ReadRequest())) == 40
    assert time.monotonic() - began >= 0.7


def test_several_workers_land_each_message_once(store, queue, sqs_server, tmp_path):
    feed = feed_of(queue, batch_records=20)
    queue.send(bodies(range(400)))

    def work(_):
        sqs = Sqs(SqsSettings(sqs_endpoint=sqs_server.url))
        try:
            return land(open_store(str(tmp_path)), sqs, feed).rows_added
        finally:
            sqs.close()

    with ThreadPoolExecutor(3) as workers:
        assert sum(workers.map(work, range(3))) == 400
    assert sorted(landed(store, feed)) == list(range(400))
    assert queue.left == (0, 0)
    assert len(files(tmp_path)) <= 6


def test_a_queue_may_be_kept_by_month_and_as_iceberg(store, sqs, queue):
    feed = feed_of(queue, feed={"partition_by": "month", "format": "iceberg"})
    queue.send(bodies(range(10)))
    report = land(store, sqs, feed)
    assert [len(each.key) for each in report.partitions] == [len("2026-11")]
    assert sorted(landed(store, feed)) == list(range(10))
