"""Ways in which a file named ``.parquet`` comes to be none that can be read."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

__all__ = ["DAMAGES", "ROWS", "encrypted", "good"]

ROWS = 400
MAGIC = b"PAR1"


def good(first_id: int = 0, **options: Any) -> bytes:
    """A file of ``ROWS`` rows from this id on."""
    ids = range(first_id, first_id + ROWS)
    table = pa.table({"id": pa.array(ids, pa.int64()), "text": [f"text number {number}" for number in ids]})
    sink = BytesIO()
    pq.write_table(table, sink, **{"use_dictionary": False, "compression": "snappy", **options})
    return sink.getvalue()


GOOD = good()


def _footer_at(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _page_of(data: bytes, column: int) -> tuple[int, int]:
    chunk = pq.read_metadata(BytesIO(data)).row_group(0).column(column)
    return chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size


def _over(data: bytes, start: int, change: bytes) -> bytes:
    return data[:start] + change + data[start + len(change) :]


def _flipped(data: bytes) -> bytes:
    """One bit in the values of the second column's page."""
    start, end = _page_of(data, 1)
    middle = (start + end) // 2
    return _over(data, middle, bytes([data[middle] ^ 0x01]))


def _garbled_page(data: bytes) -> bytes:
    """Nothing of the page but its header is left."""
    start, end = _page_of(data, 1)
    return _over(data, start + 64, b"\xff" * (end - start - 64))


def _garbled_page_header(data: bytes) -> bytes:
    start, _ = _page_of(data, 1)
    return _over(data, start, b"\xff" * 16)


class _Kms(pe.KmsClient):
    """Keeps no secret: the wrapped key is the key."""

    def __init__(self, config: pe.KmsConnectionConfig) -> None:
        super().__init__()

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def encrypted(*, plaintext_footer: bool) -> bytes:
    """A file with an encrypted column, and the footer too unless it is plain text."""
    factory = pe.CryptoFactory(_Kms)
    settings = pe.EncryptionConfiguration(
        footer_key="footer", column_keys={"columns": ["text"]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
    return good(encryption_properties=properties)


DAMAGES: Mapping[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"P",
    "magic alone": lambda: MAGIC,
    "magic twice": lambda: MAGIC * 2,
    "foreign text": lambda: b"id,text\n1,one\n2,two\n" * 20,
    "zeros": lambda: bytes(4096),
    "cut in the magic": lambda: GOOD[:-1],
    "cut in the footer": lambda: GOOD[:-100],
    "cut in a page": lambda: GOOD[: len(GOOD) // 2],
    "cut at the start": lambda: GOOD[100:],
    "footer too long": lambda: GOOD[:-8] + (1 << 31).to_bytes(4, "little") + MAGIC,
    "footer of no length": lambda: GOOD[:-8] + bytes(4) + MAGIC,
    "footer too short": lambda: GOOD[:-8] + (20).to_bytes(4, "little") + MAGIC,
    "footer garbled": lambda: _over(GOOD, _footer_at(GOOD) + 4, b"\xff" * 60),
    "footer zeroed": lambda: _over(GOOD, _footer_at(GOOD), bytes(60)),
    "page header garbled": lambda: _garbled_page_header(GOOD),
    "page garbled": lambda: _garbled_page(GOOD),
    "bit of a page with a checksum": lambda: _flipped(good(write_page_checksum=True, compression="none")),
    "encrypted": lambda: encrypted(plaintext_footer=False),
}
