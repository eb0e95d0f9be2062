"""The contract of `Engine`, as a suite that every implementation runs.

Tasks run in other processes perhaps, so they tell what they do by files: each makes one of its own, which stands for
what a rewrite stages, and which `drop` removes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from datalake_assets.engines.base import Done, Engine, Progress, Task
from datalake_assets.errors import LakeUnavailable, TransientStoreError

__all__ = ["EngineContract", "make_file"]

MIB = 1 << 20
#: Longer than any test waits, unless a cancelled task goes on.
LONG_S = 60.0
ATTEMPT = "attempt-"


def make_file(folder: str, number: int, progress: Progress) -> str:
    """Makes a file, and returns its path."""
    progress(1)
    path = _place(folder, number)
    path.write_text(str(number))
    return str(path)


def _place(folder: str, number: int) -> Path:
    return Path(folder) / f"made-{number}-{uuid.uuid4().hex}"


def make_slowly(folder: str, number: int, progress: Progress) -> str:
    """Makes a file, and goes on until it is cancelled; removes the file then."""
    path = _place(folder, number)
    try:
        progress(1)
        path.write_text(str(number))
        until = time.monotonic() + LONG_S
        while time.monotonic() < until:
            progress(1)
            path.touch()
            time.sleep(0.01)
    except BaseException:  # `Cancelled`, or the signal that an engine sends to its workers
        path.unlink(missing_ok=True)
        raise
    return str(path)


def assert_left(engine: Engine, folder: Path, results: AbstractSet[str]) -> None:
    """Nothing but ``results`` is left, and nobody is at work.

    Elsewhere, what ended just as it was cancelled may be lost on its way, and a worker that does not stop in time is
    killed; what they leave is swept, but nobody may go on with it.
    """
    left = {str(path) for path in folder.glob("made-*")}
    if not engine.is_remote:
        assert left == results
        return
    until = time.monotonic() + LONG_S / 2
    while touched := _touched(left - results):
        assert time.monotonic() < until, f"workers go on with {touched}"


def _touched(paths: AbstractSet[str]) -> list[str]:
    """Those that somebody changes meanwhile."""
    before = {path: _changed(path) for path in paths}
    time.sleep(0.5 if paths else 0)
    return [path for path in paths if _changed(path) not in {before[path], None}]


def _changed(path: str) -> int | None:
    try:
        return Path(path).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def refuse(folder: str, number: int, _progress: Progress) -> str:
    """Fails as a lake does that a person must mend."""
    _count(folder)
    raise LakeUnavailable(f"{folder}/{number}", "no access", cure="mend it")


def fail_once(folder: str, number: int, progress: Progress) -> str:
    """Fails as a busy store does, at the first attempt."""
    if _count(folder) == 1:
        raise TransientStoreError(folder, "busy")
    return make_file(folder, number, progress)


def _count(folder: str) -> int:
    (Path(folder) / f"{ATTEMPT}{uuid.uuid4().hex}").touch()
    return len(list(Path(folder).glob(f"{ATTEMPT}*")))


class EngineContract:
    """What every engine promises.

    A subclass has the fixture ``engine``.
    """

    @pytest.fixture
    def engine(self) -> Engine:
        """The engine."""
        raise NotImplementedError

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Where tasks make their files."""
        return tmp_path

    def run(
        self, engine: Engine, folder: Path, work: Sequence[Callable[[str, int, Progress], str]]
    ) -> Generator[Done[str]]:
        """Runs tasks; results that nobody takes are removed."""
        tasks = [Task(partial(each, str(folder), number), f"task {number}") for number, each in enumerate(work)]
        share = engine.share(len(tasks), memory_bytes=64 * MIB, thread_bytes=MIB)
        return engine.run(tasks, share, on_progress=lambda _index, _done: None, drop=lambda path: Path(path).unlink())

    def test_each_result_comes_once_with_its_place(self, engine: Engine, folder: Path) -> None:
        done = list(self.run(engine, folder, [make_file] * 5))

        assert sorted(each.index for each in done) == [0, 1, 2, 3, 4]
        assert all(Path(each.result).read_text() == str(each.index) for each in done)
        assert all(each.figures.wall_s >= 0 for each in done)
        assert bool(done[0].figures.worker) is engine.is_remote

    def test_share_leaves_each_task_a_thread(self, engine: Engine) -> None:
        for tasks in (1, 3, 1000):
            share = engine.share(tasks, memory_bytes=1, thread_bytes=MIB)
            assert 1 <= share.at_once <= tasks
            assert share.threads >= 1

    def test_error_comes_as_it_was_raised_and_nothing_is_left(self, engine: Engine, folder: Path) -> None:
        results = self.run(engine, folder, [refuse, make_slowly, make_slowly])

        with pytest.raises(LakeUnavailable, match="no access; mend it") as caught:
            list(results)

        assert caught.value.reason == "no access"
        assert caught.value.cure == "mend it"
        assert len(list(folder.glob(f"{ATTEMPT}*"))) == 1, "what nothing mends is not repeated"
        assert_left(engine, folder, set())

    def test_what_may_pass_is_repeated_elsewhere(self, engine: Engine, folder: Path) -> None:
        results = self.run(engine, folder, [fail_once])
        if engine.is_remote:
            (done,) = results
            assert Path(done.result).exists()
        else:
            with pytest.raises(TransientStoreError, match="busy"):
                list(results)

    def test_closing_cancels_what_is_under_way_and_drops_what_is_done(self, engine: Engine, folder: Path) -> None:
        with closing(self.run(engine, folder, [make_file, make_file, make_slowly, make_slowly])) as results:
            taken = next(results)

        assert Path(taken.result).exists()
        assert_left(engine, folder, {taken.result})
