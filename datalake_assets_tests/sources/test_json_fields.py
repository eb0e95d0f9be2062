"""Objects that are read many at once are what each of them is by itself."""

from __future__ import annotations

import pytest

from datalake_assets.sources.json_fields import JsonFields, MemberRefused


@pytest.mark.parametrize(
    "texts",
    [
        [b'{"n":1}{"n":2}', b""],
        [b'{"n":1} {"n":2}', b" "],
        [b'{"n":', b'1}{"n":2}'],
        [b'{"n":1', b'}{"n":2}'],
    ],
)
def test_a_text_is_never_read_as_part_of_another(texts):
    fields = JsonFields({"n": "long"}, undeclared="keep")
    for text in texts:
        with pytest.raises(MemberRefused):
            fields.values(text)
    assert fields.arrays(texts) is None


def test_there_is_no_year_0_at_once_either():
    fields = JsonFields({"t": "timestamptz"}, undeclared="keep")
    texts = [b'{"t":"0000-06-01T00:00:00Z"}']
    with pytest.raises(MemberRefused):
        fields.values(texts[0])
    assert fields.arrays(texts) is None
    assert fields.arrays([b'{"t":"%04d-06-01T00:00:00Z"}' % year for year in (1, 10, 100, 1000, 2000, 9999)])
