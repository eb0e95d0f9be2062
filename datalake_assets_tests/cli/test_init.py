"""`datalake init`: a new lake where none was, and nothing anywhere else."""

from __future__ import annotations

import pytest

ORDERS = ("feeds", "add", "--name", "orders", "--kind", "table", "--object", "ORDERS")


def test_a_fresh_machine_is_told_what_to_do_and_it_works(run, tmp_path):
    refused = run(*ORDERS)
    assert (refused.exit_code, (tmp_path / "lake").exists()) == (1, False)
    assert "'datalake init' makes a new lake there" in refused.stderr

    made = run("init")

    assert (made.exit_code, made.stdout) == (0, f"{tmp_path}/lake is a new lake\n")
    assert run(*ORDERS).exit_code == 0
    assert run("init").stdout == f"{tmp_path}/lake is a lake with 1 feed\n"


def test_what_is_there_is_not_called_new(run, registry, lake):
    assert run("init").stdout == f"{lake} is a new lake\n"
    (lake / "somebody's").mkdir()
    assert run("init").stdout == f"{lake} is a new lake\n"
    (lake / "somebody's" / "notes.txt").write_text("theirs")
    assert run("init").stdout == f"{lake} is a lake without feeds; what lies there stays as it is\n"

    run(*ORDERS)
    run("feeds", "archive", "orders")
    (lake / "feeds" / "odd.json").write_text("{")
    for name in ("a", "b"):
        run(*ORDERS[:3], name, *ORDERS[4:])
    assert run("init").stdout == f"{lake} is a lake with 2 feeds, 1 archived feed, 1 invalid feed\n"
    assert (lake / "somebody's" / "notes.txt").read_text() == "theirs"


@pytest.mark.parametrize("lake", ["/dev/null/x", "/proc/x", "file"])
def test_an_impossible_place_is_one_line(run, tmp_path, lake):
    (tmp_path / "file").write_text("")
    result = run("init", "--lake", lake)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "unexpected" not in result.stderr


@pytest.mark.s3
def test_a_place_in_a_bucket_is_probed(run, s3_lake, s3_store):
    assert run("init", "--lake", s3_lake).stdout == f"{s3_lake} is a new lake\n"
    s3_store.put("theirs/notes.txt", b"theirs")
    found = "is a lake without feeds; what lies there stays as it is"
    assert run("init", "--lake", s3_lake).stdout == f"{s3_lake} {found}\n"
