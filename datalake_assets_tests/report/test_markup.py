"""Templates show what people wrote as text, and are there wherever the package is installed."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from datalake_assets.report.plots import escaped, macro, rendered

PROJECT = Path(__file__).parents[2]
EVIL = "</title><script>\"'&\x00\x1b\ufffe"
SAFE = "&lt;/title&gt;&lt;script&gt;&#34;&#39;&amp;\ufffd\ufffd\ufffd"


def test_escaped_leaves_markup_alone_and_nothing_of_none():
    assert escaped(EVIL) == SAFE
    assert escaped(Markup("<b>")) == "<b>"
    assert escaped(None) == ""
    assert escaped(12) == "12"


def test_a_macro_escapes_what_it_is_given_but_for_markup():
    drawn = macro("plots.svg.j2", "svg", title=EVIL, body=Markup("<g/>"), height=1)
    assert f"<title>{SAFE}</title><g/>" in drawn
    assert isinstance(drawn, Markup)


def test_an_attribute_cannot_be_left():
    row = {"name": EVIL, "suffix": "", "value": EVIL, "label": EVIL, "bars": [(EVIL, EVIL)], "mark": EVIL}
    drawn = macro("plots.svg.j2", "rows", rows=[row], row_height=1, label_height=1, bar_height=1)
    assert "<script" not in drawn
    assert f'class="{SAFE}"' in drawn


def test_a_template_that_lacks_a_value_fails():
    with pytest.raises(UndefinedError):
        rendered("page.html.j2")


def test_every_file_of_the_package_is_installed():
    """A template that is not package data is there in a checkout, and missing for everybody else."""
    globs = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = PROJECT / "datalake_assets"
    packed = {path for glob in globs["datalake_assets"] for path in package.glob(glob)}
    compiled = {".py", ".pyc", ".cpp", ".hpp", ".h", ".so"}  # before it is installed, or there
    there = {path for path in package.rglob("*") if path.is_file() and path.suffix not in compiled}
    assert there <= packed
    assert resources.files("datalake_assets.report").joinpath("templates/page.html.j2").is_file()
