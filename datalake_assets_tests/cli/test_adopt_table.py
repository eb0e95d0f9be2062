"""``datalake adopt`` of tables that others write: what ``docs/how-to/adopt-a-table.md`` shows, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/how-to/adopt-a-table.md"


def test_how_to_does_what_it_says(run, lake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    begin = next(number for number, (language, _) in enumerate(blocks) if language == "python")
    names: dict[str, object] = {}
    answers: dict[str, str] = {}
    for language, block in blocks[begin:]:
        if language == "python":
            exec(block, names)  # noqa: S102  the page's own
        for line in block.splitlines() if not language else ():
            result = run(*shlex.split(line.replace("$PWD", str(tmp_path)))[1:])
            assert (result.exit_code, result.stderr) == (0, ""), line
            answers[line] = result.stdout
    assert answers['datalake sql "select count(*) as n from orders"'].split()[-1] == "100"
    assert "folders/orders" in answers["datalake report"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table's folder; its catalog is beside it."""
    from datalake_assets_tests.lake.iceberg.iceberg_tables import create, rows, sqlite_catalog  # noqa: PLC0415

    with sqlite_catalog(tmp_path) as catalog:
        create(catalog).append(rows(0, 10))
    return tmp_path / "warehouse/n/t"


def test_a_table_by_its_folder_is_only_looked_at_and_says_so(run, lake, table):
    result = run("adopt", str(table), "--name", "t", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["partitions"], document["rows"]) == (0, 2, 10)
    assert document["not_compacted"] == "it was adopted by its metadata, and a commit takes its catalog"
    assert "looked at, and not compacted: it was adopted" in run("adopt", str(table), "--name", "t").stdout
    assert run("compact", "t", "--dry-run").exit_code == 0
    refused = run("compact", "t")
    assert (refused.exit_code, refused.stdout, refused.stderr) == (
        1,
        "",
        f"Error: feed 't' is only looked at, and not compacted: {document['not_compacted']}\n",
    )
    assert run("verify", "t", "--deep").exit_code == 0
    assert run("feeds", "check").stdout == "t: ok\n"
    listed = run("feeds", "list").stdout
    assert re.search(r"^t +iceberg +/.*/warehouse/n/t +others +partitions", listed, re.MULTILINE)


def test_nothing_is_exported_to_it(run, lake, table):
    run("adopt", str(table), "--name", "t")
    result = run("export", "--stream", "t")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "feed 't' is an adopted Iceberg table: nothing is exported to it" in result.stderr


def test_it_is_not_added_but_adopted(run, lake, tmp_path):
    document = tmp_path / "feed.json"
    document.write_text(
        json.dumps({"name": "t", "kind": "folder", "source": {"type": "iceberg", "table": "sales.orders"}})
    )
    result = run("feeds", "add", "--file", str(document))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "an Iceberg table is not added but adopted: 'datalake adopt iceberg:sales.orders --name t'" in result.stderr
