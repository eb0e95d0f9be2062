"""The package can be held in the head: no modules in a circle, no file name twice."""

from __future__ import annotations

import pytest

from datalake_assets_tests.structure import cycle, read_modules, repeated_names


@pytest.fixture(scope="module")
def modules():
    return read_modules()


def test_modules_do_not_import_each_other_in_a_circle(modules):
    assert cycle(modules) == []


def test_no_file_name_stands_in_two_folders(modules):
    assert repeated_names(modules) == {}
