from __future__ import annotations

import hashlib

import pytest
import xxhash

from datalake_assets.parquet.sinks import checksum_like, new_checksum


def test_new_checksum_is_xxh3():
    checksum = new_checksum()
    checksum.update(b"some ")
    checksum.update(memoryview(b"bytes"))

    assert str(checksum) == "xxh3-128:" + xxhash.xxh3_128(b"some bytes").hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "xxh3-128:" + xxhash.xxh3_128(b"bytes").hexdigest(),
        "blake2b-16:" + hashlib.blake2b(b"bytes", digest_size=16).hexdigest(),
    ],
)
def test_checksum_like_another_can_be_compared_with_it(text):
    checksum = checksum_like(text)
    checksum.update(b"bytes")

    assert str(checksum) == text


@pytest.mark.parametrize("text", ["", "md5:0123", "0123"])
def test_checksum_of_an_unknown_kind_is_refused(text):
    with pytest.raises(ValueError, match="unknown digest"):
        checksum_like(text)
