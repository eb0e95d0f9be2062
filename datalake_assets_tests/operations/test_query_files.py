"""What the process of a query may ask its parent for, and what is read ahead for it."""

from __future__ import annotations

import socket
import struct
import threading
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.lake import sql_files
from datalake_assets.lake.kept_files import KeptOpen
from datalake_assets.lake.sql_files import AskedFile, AskedFiles, serving

GROUPS, ROWS = 12, 2000


@pytest.fixture(scope="module")
def parquet() -> bytes:
    """A file of twelve row groups of three columns, larger than what is read of its end at first."""
    sink = pa.BufferOutputStream()
    numbers = pa.array(range(GROUPS * ROWS), pa.int64())
    table = pa.table({"a": numbers, "b": pa.array([str(each) * 5 for each in range(GROUPS * ROWS)]), "c": numbers})
    pq.write_table(table, sink, row_group_size=ROWS, use_dictionary=False, compression="none")
    return sink.getvalue().to_pybytes()


class Stored:
    """A file that notes what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.reads, self._lock = data, [], threading.Lock()

    def read_at(self, nbytes: int, offset: int) -> bytes:
        with self._lock:
            self.reads.append((offset, nbytes))
        return self.data[offset : offset + nbytes]


def opened(theirs, data):
    return AskedFile(AskedFiles(theirs), 0, len(data))


def test_file_reads_as_it_is_whatever_the_order(parquet):
    stored = Stored(parquet)
    with serving(["a"], [len(parquet)], lambda _: stored) as theirs:
        file = opened(theirs, parquet)
        for start, size in ((5, 10), (len(parquet) - 7, 100), (0, 4), (len(parquet), 5), (100, 0)):
            file.seek(start)
            assert file.read(size) == parquet[start : start + size]
        file.seek(0)
        assert file.read() == parquet
        found = pq.read_table(pa.PythonFile(AskedFile(file._asked, 0, len(parquet)), mode="r"))
        assert found.equals(pq.read_table(pa.BufferReader(parquet)))


def test_end_of_a_file_is_read_once_where_reads_are_announced(parquet):
    stored = Stored(parquet)
    with serving(["a"], [len(parquet)], lambda _: stored) as theirs:
        file = opened(theirs, parquet)
        file._asked.announce()
        file.seek(len(parquet) - (64 << 10))
        assert file.read(64 << 10) == parquet[-(64 << 10) :]
    assert stored.reads == [(len(parquet) - (64 << 10), 64 << 10)]


def test_no_file_is_read_that_nobody_asks_for(parquet):
    stored = Stored(parquet)
    with serving(["a", "b"], [len(parquet)] * 2, lambda _: stored) as theirs:
        AskedFile(AskedFiles(theirs), 1, len(parquet)).read(4)

    assert stored.reads == [(0, 4)]


def test_reads_are_announced_once(parquet):
    with serving(["a"], [len(parquet)], lambda _: Stored(parquet)) as theirs:
        asked = AskedFiles(theirs)
        asked.announce()
        asked.announce()  # whoever goes on saying so is not served

        with pytest.raises(OSError, match="nobody reads files any more"):
            AskedFile(asked, 0, len(parquet)).read(10)


def test_questions_after_the_parent_has_gone_fail_like_those_before():
    ours, theirs = socket.socketpair()
    with theirs:
        asked = AskedFiles(theirs)
        before = asked.ask(0, 0, 10)
        ours.close()
        for answer in (before, *(asked.ask(0, 0, 10) for _ in range(3))):
            with pytest.raises(OSError, match="nobody reads files any more"):
                answer.result(timeout=10)
        assert not asked._answers


def columns(parquet, name):
    """Where a column lies in each row group."""
    metadata = pq.read_metadata(pa.BufferReader(parquet))
    place = metadata.schema.names.index(name)
    found = [metadata.row_group(each).column(place) for each in range(metadata.num_row_groups)]
    return [(each.data_page_offset, each.total_compressed_size) for each in found]


def read_groups(parquet, theirs, groups):
    file = opened(theirs, parquet)
    file.seek(len(parquet) - (64 << 10))
    file.read(64 << 10)
    stretches = columns(parquet, "b")
    for group in groups:
        start, size = stretches[group]
        file.seek(start)
        assert file.read(size) == parquet[start : start + size]


def test_column_of_one_row_group_is_read_alone(parquet):
    stored = Stored(parquet)
    with serving(["a"], [len(parquet)], lambda _: stored) as theirs:
        read_groups(parquet, theirs, [3])

    assert stored.reads[1:] == [columns(parquet, "b")[3]]


@pytest.mark.parametrize("order", [range(GROUPS), [7, 0, 8, 1, 2, 11, 3, 10, 4, 9, 5, 6]])
def test_column_of_all_row_groups_is_read_ahead_and_each_once(parquet, order):
    stored = Stored(parquet)
    with serving(["a"], [len(parquet)], lambda _: stored) as theirs:
        read_groups(parquet, theirs, order)

    assert sorted(stored.reads[1:]) == sorted(columns(parquet, "b"))


def test_what_lies_in_the_end_that_is_kept_is_not_read_ahead_besides(parquet):
    """Nobody would come to take it, and it would take room from others for as long as the query runs."""
    stored = Stored(parquet)
    stretches = columns(parquet, "c")
    assert stretches[-1][0] > len(parquet) - (64 << 10)
    with serving(["a"], [len(parquet)], lambda _: stored) as theirs:
        file = opened(theirs, parquet)
        held = file._asked._left
        for start, size in [(len(parquet) - (64 << 10), 64 << 10), *stretches]:
            file.seek(start)
            assert file.read(size) == parquet[start : start + size]
        assert not file._ahead
        assert file._asked._left == held


def test_a_stretch_is_asked_for_once_though_two_ask_at_once(parquet):
    stored = Stored(parquet)
    with serving(["a"], [len(parquet)], lambda _: stored) as theirs:
        file = opened(theirs, parquet)
        held, take = file._asked._left, file._asked.take_ahead
        other = threading.Thread(target=file.ask_ahead, args=([(4, 104)],))

        def take_slowly(size_bytes):
            if other.ident is None:
                other.start()
                other.join(0.2)  # it would be done by now if it might go on
            return take(size_bytes)

        file._asked.take_ahead = take_slowly
        file.ask_ahead([(4, 104)])
        other.join()
        file.seek(4)
        assert file.read(100) == parquet[4:104]
        assert file._asked._left == held
    assert stored.reads == [(4, 100)]


def test_all_row_groups_are_asked_for_with_the_first_where_all_are_read(parquet):
    stored = Stored(parquet)
    with serving(["a"], [len(parquet)], lambda _: stored) as theirs:
        file = opened(theirs, parquet)
        file._asked.reads_all = True
        file.seek(len(parquet) - (64 << 10))
        file.read(64 << 10)
        start, size = columns(parquet, "b")[0]
        file.seek(start)
        file.read(size)
        for answers in file._ahead.values():
            [answer.result(10) for answer in answers]

    assert sorted(stored.reads[1:]) == sorted(columns(parquet, "b"))


def test_no_more_is_read_ahead_than_may_be_held(parquet, monkeypatch):
    monkeypatch.setattr(sql_files, "_AHEAD_BYTES", 0)
    stored = Stored(parquet)
    with serving(["a"], [len(parquet)], lambda _: stored) as theirs:
        read_groups(parquet, theirs, [0, 1, 2])

    assert stored.reads[1:] == columns(parquet, "b")[:3]


def test_more_may_be_asked_for_than_is_read_at_once():
    """The parent takes no question while it reads as much as it may; then who asks waits, and takes answers."""
    data = bytes(range(256)) * 256
    with serving(["a"], [1 << 30], lambda _: Stored(data)) as theirs:
        file = AskedFile(AskedFiles(theirs), 0, 1 << 30)
        asked = [file.ask(0, len(data)) for _ in range(2000)]
        assert all(answer.result(60) == data for (answer,) in asked)


@pytest.mark.parametrize(("error", "gone"), [(FileNotFoundError("gone"), True), (OSError("the store is away"), False)])
def test_file_that_cannot_be_read_is_told_apart_from_one_that_is_gone(error, gone):
    def fail(_):
        raise error

    with serving(["a"], [100], fail) as theirs:
        asked = AskedFiles(theirs)
        with pytest.raises(OSError, match="cannot be read"):
            AskedFile(asked, 0, 100).read(10)

    assert (asked.is_gone, asked.is_unreachable) == (gone, not gone)


@pytest.mark.parametrize("question", [(1, 1, 0, 10), (1, 0, 0, (4 << 20) + 1), (1, 1 << 31, 0, 0)])
def test_question_for_another_file_or_for_too_much_ends_the_answers(question):
    stored = Stored(b"x" * 100)
    with serving(["a"], [], lambda _: stored) as theirs:
        theirs.sendall(struct.pack(">IIQI", *question))

        assert theirs.recv(1) == b""
    assert stored.reads == []


def test_query_whose_parent_is_gone_fails_and_does_not_wait():
    ours, theirs = socket.socketpair()
    with theirs:
        asked = AskedFiles(theirs)
        ours.close()

        with pytest.raises(OSError, match=r"Broken pipe|nobody reads files"):
            AskedFile(asked, 0, 100).read(10)


class _Stored:
    """Files of a store: what opens one asks the store first."""

    def __init__(self, **files):
        self.files, self.asked, self.broken = files, [], set()

    def open(self, name):
        self.asked.append(name)
        if name not in self.files:
            raise FileNotFoundError(name)
        return _Open(self, name)


class _Open:
    def __init__(self, stored, name):
        self._stored, self._name = stored, name

    def read_at(self, nbytes, offset):
        if self in self._stored.broken or self._name not in self._stored.files:
            raise OSError("access denied")
        return self._stored.files[self._name][offset : offset + nbytes]


def test_a_file_that_was_read_by_one_query_is_not_opened_by_the_next():
    stored, kept = _Stored(a=b"abc", b=b"def"), KeptOpen(most=1)
    for name in "aab":
        assert kept.open(name, partial(stored.open, name)).read_at(3, 0) == stored.files[name]
    assert stored.asked == ["a", "b"]
    kept.open("a", partial(stored.open, "a"))
    assert stored.asked == ["a", "b", "a"]  # no more than one is kept


def test_a_file_whose_access_has_run_out_is_opened_again():
    stored, kept = _Stored(a=b"abc"), KeptOpen()
    opened = kept.open("a", partial(stored.open, "a"))
    stored.broken.add(opened._file)
    assert opened.read_at(2, 1) == b"bc"
    assert kept.open("a", partial(stored.open, "a")).read_at(1, 0) == b"a"
    assert stored.asked == ["a", "a"]


def test_a_file_that_is_gone_is_not_kept_open():
    stored, kept = _Stored(a=b"abc"), KeptOpen()
    opened = kept.open("a", partial(stored.open, "a"))
    del stored.files["a"]
    with pytest.raises(FileNotFoundError):
        opened.read_at(1, 0)
    with pytest.raises(FileNotFoundError):
        kept.open("a", partial(stored.open, "a"))
