"""A file is deleted only if it is still the one that was meant, whoever writes and whoever dies meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datalake_assets.lake.store.posix import delete_if_same


class _Died(BaseException):
    """The process is gone."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "held").mkdir()
    (tmp_path / "data").mkdir()
    written = tmp_path / "data" / "a.parquet"
    written.write_bytes(b"meant")
    return written


def delete(file: Path, meant: os.stat_result, *, before_look: Callable[[int], None] = lambda _: None) -> bool:
    """Deletes; ``before_look`` is called before each comparison, with its number."""
    looks = 0

    def is_same(status: os.stat_result) -> bool:
        nonlocal looks
        looks += 1
        before_look(looks)
        return (status.st_ino, status.st_size, status.st_mtime_ns) == (meant.st_ino, meant.st_size, meant.st_mtime_ns)

    return delete_if_same(str(file), str(file.parent.parent / "held" / "name"), is_same=is_same)


def there(file: Path) -> dict[str, bytes]:
    root = file.parent.parent
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def overwrite(file: Path, body: bytes) -> None:
    """As writers do it: whole, under another name first."""
    fresh = file.with_suffix(".new")
    fresh.write_bytes(body)
    fresh.replace(file)


def test_unchanged_file_is_deleted(file: Path):
    assert delete(file, file.stat())
    assert there(file) == {}
    assert delete(file, os.stat_result(range(10)))


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "renamed over"])
def test_overwritten_file_stays(file: Path, *, in_place: bool):
    meant = file.stat()
    if in_place:
        file.write_bytes(b"longer than it was")
    else:
        overwrite(file, b"longer than it was")

    assert not delete(file, meant)
    assert there(file) == {"data/a.parquet": b"longer than it was"}


def test_file_overwritten_between_look_and_move_is_put_back(file: Path, monkeypatch: pytest.MonkeyPatch):
    meant, rename = file.stat(), os.rename

    def overwritten_first(path: str, target: str) -> None:
        overwrite(file, b"newer")
        rename(path, target)

    monkeypatch.setattr(os, "rename", overwritten_first)

    assert not delete(file, meant)
    assert there(file) == {"data/a.parquet": b"newer"}


def test_file_written_after_the_move_stays(file: Path):
    def write(look: int) -> None:
        if look == 2:
            file.write_bytes(b"newest")

    assert delete(file, file.stat(), before_look=write)
    assert there(file) == {"data/a.parquet": b"newest"}


@pytest.mark.parametrize("newest", [None, b"newest"], ids=["alone", "overwritten again"])
@pytest.mark.parametrize("overwritten", [True, False])
@pytest.mark.parametrize("dies_at", [1, 2])
def test_death_at_any_point_is_mended_by_the_next_attempt(
    file: Path, monkeypatch: pytest.MonkeyPatch, *, dies_at: int, overwritten: bool, newest: bytes | None
):
    """Killed before the move, or before the unlink that follows it: nothing is lost but the file that was meant."""
    meant, rename, unlink, calls = file.stat(), os.rename, os.unlink, 0

    def mortal(real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **kwargs: object) -> None:
            nonlocal calls
            calls += 1
            if calls == dies_at:
                raise _Died
            real(*args, **kwargs)

        return call

    def move(path: str, target: str) -> None:
        if overwritten:
            overwrite(Path(path), b"newer")
        rename(path, target)

    monkeypatch.setattr(os, "rename", mortal(move))
    monkeypatch.setattr(os, "unlink", mortal(unlink))
    with pytest.raises(_Died):
        delete(file, meant)
    monkeypatch.undo()
    if newest:
        file.write_bytes(newest)

    moved = dies_at != 1
    delete(file, meant)

    left = newest or (b"newer" if overwritten and moved else None)
    assert there(file) == ({"data/a.parquet": left} if left else {})


def test_link_stays_with_its_target(file: Path):
    target = file.with_name("target")
    file.rename(target)
    file.symlink_to("target")

    assert not delete(file, target.stat())
    assert there(file) == {"data/target": b"meant", "data/a.parquet": b"meant"}
    assert file.is_symlink()


def test_delete_goes_on_when_the_folder_aside_was_tidied_away(file: Path):
    meant = file.stat()
    (file.parent.parent / "held").rmdir()

    assert delete(file, meant)
    assert there(file) == {}
