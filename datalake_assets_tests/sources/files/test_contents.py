"""What a file holds is prepared to be read: its text is in UTF-8, or it is refused."""

from __future__ import annotations

import io
from contextlib import closing
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalake_assets.sources.files import contents as file_contents
from datalake_assets.sources.files.contents import BadFile
from datalake_assets_tests.sources.files.dropping import contents


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        ("ü,1\n".encode(), None, "ü,1\n"),
        ("ü,1\n".encode("latin-1"), None, "ü,1\n"),
        ("ü,1\n".encode("utf-16-le"), None, "ü,1\n"),
        ("ü,1\n".encode("utf-16-be"), None, "ü,1\n"),
        ("Ж,Ц\nЮ,1\n".encode("utf-16-le"), None, "Ж,Ц\nЮ,1\n"),
        ("Ж,Ц\r\nЮ,1\r\n".encode("utf-16-be"), None, "Ж,Ц\r\nЮ,1\r\n"),
        (b"a,b\n1,\0\n2,\0\n", None, "a,b\n1,\0\n2,\0\n"),
        ("ü,1\n".encode("utf-32"), None, "ü,1\n"),
        ("€,1\n".encode("cp1252"), "cp1252", "€,1\n"),
        (("é" * 600_000 + "\n").encode(), None, "é" * 600_000 + "\n"),
    ],
)
def test_texts_are_in_utf8_afterwards(data, encoding, text):
    ready = contents(data, encoding)
    assert (ready.rewound().read().decode(), ready.is_utf8) == (text, True)
    ready.close()


@pytest.mark.parametrize("encoding", [None, "utf-8"])
def test_a_text_that_is_utf8_but_for_some_bytes_is_known_as_such(encoding):
    with closing(contents("é,1\n".encode() + b"\xff,2\n", encoding)) as ready:
        assert (ready.encoding, ready.is_utf8) == ("utf-8", False)


@pytest.mark.parametrize("data", [b"\x80\x9f,1\n", "ü".encode("utf-16")[:-1], b"PAR1,\xc3\xbc\n\0\xff\n"])
def test_what_is_in_no_encoding_is_refused(data):
    with pytest.raises(BadFile):
        contents(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12) | st.text("aé€😀", max_size=8).map(str.encode), st.integers(1, 5))
def test_utf8_is_told_as_python_tells_it_however_it_is_read(data, size):
    with patch.object(file_contents, "PIECE_BYTES", size):
        found = file_contents._is_utf8(io.BytesIO(data))
    try:
        data.decode()
    except UnicodeDecodeError:
        assert not found
    else:
        assert found
