"""The documentation says what is so: generated pages are up to date, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from datalake_assets.cli.app import app
from datalake_assets_tests import docs_reference

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def test_settings_reference_is_up_to_date():
    written = docs_reference.PATH.read_text(encoding="utf-8")

    assert written == docs_reference.render(), "run: python -m datalake_assets_tests.docs_reference"


def test_settings_reference_describes_every_field():
    undescribed = [line for line in docs_reference.render().splitlines() if line.endswith("|  |")]

    assert undescribed == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_links_to_what_is_there(page: Path):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))

    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_shows_commands_that_exist(page: Path):
    for command in _commands(page.read_text(encoding="utf-8")):
        _resolve(app, shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_names_modules_that_exist(page: Path):
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text(encoding="utf-8"))
    missing = [name for name in named if not any((root / name).is_file() for root in (ROOT, ROOT / "datalake_assets"))]
    assert missing == []


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _commands(text: str) -> list[str]:
    """Lines of code blocks that begin with ``datalake``, their continuations joined, and their pipes cut off."""
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    return [re.split(r" [|>&]", line.removeprefix("$ "))[0] for line in lines if re.match(r"(\$ )?datalake ", line)]


def _resolve(command: click.Command, words: list[str]) -> None:
    """Fails on a subcommand or an option that there is not."""
    while isinstance(command, click.Group):
        assert words, f"{command.name} needs a subcommand"
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    # click keeps the help option that it makes for the first context
    parameters = command.get_params(click.Context(command, help_option_names=["-h", "--help"]))
    known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known | {"--help"}]
    assert unknown == []
