"""The contract of `DocumentStore`, as a suite that every sink of rows runs against a server of its own.

class TestMySink(DocumentStoreContract):
@pytest.fixture
def documents(self):
return MySink(…)
"""

from __future__ import annotations

import pyarrow as pa

from datalake_assets.sinks.base import PARTITION_FIELD, Document, DocumentStore

__all__ = ["DocumentStoreContract", "document"]

SCHEMA = pa.schema([("n", pa.int64()), ("name", pa.string())])
DAY, OTHER_DAY = "2026-11-03", "2026-11-04"


def document(number: int, partition: str = DAY, *, n: str = "") -> Document:
    """A document of a partition."""
    body = f'{{"n":{n or number},"name":"row {number}","{PARTITION_FIELD}":"{partition}"}}'
    return Document(f"{partition}-{number}", body.encode())


class DocumentStoreContract:
    """Fixture ``documents``: an empty store, that no other test uses."""

    def test_documents_are_there_once_however_often_they_are_written(self, documents: DocumentStore) -> None:
        documents.prepare(SCHEMA)
        target = documents.target(DAY)
        for _ in range(2):
            assert list(documents.write(target, map(document, range(2_500)))) == []
        assert {each.id for each in documents.stored(DAY)} == {f"{DAY}-{number}" for number in range(2_500)}
        assert len(list(documents.stored(DAY))) == 2_500

    def test_partitions_are_told_apart(self, documents: DocumentStore) -> None:
        documents.prepare(SCHEMA)
        for day in (DAY, OTHER_DAY):
            list(documents.write(documents.target(day), [document(1, day)]))
        assert [each.id for each in documents.stored(OTHER_DAY)] == [f"{OTHER_DAY}-1"]

    def test_a_refused_document_keeps_no_other_from_being_written(self, documents: DocumentStore) -> None:
        documents.prepare(SCHEMA)
        written = [document(1), document(2, n='"no number"'), document(3)]
        (refused,) = documents.write(documents.target(DAY), written)
        assert refused.document == written[1]
        assert refused.reason
        assert {each.id for each in documents.stored(DAY)} == {written[0].id, written[2].id}

    def test_what_was_written_since_it_was_looked_at_is_not_removed(self, documents: DocumentStore) -> None:
        documents.prepare(SCHEMA)
        target = documents.target(DAY)
        list(documents.write(target, map(document, range(4))))
        seen = {each.id: each for each in documents.stored(DAY)}
        list(documents.write(target, [document(1)]))
        documents.remove([seen[document(1).id], seen[document(2).id]])
        documents.remove([seen[document(2).id]])
        left = {each.id for each in documents.stored(DAY)}
        assert left == {document(number).id for number in (0, 1, 3)}

    def test_columns_may_be_added(self, documents: DocumentStore) -> None:
        documents.prepare(SCHEMA)
        list(documents.write(documents.target(DAY), [document(1)]))
        documents.prepare(SCHEMA.append(pa.field("paid", pa.decimal128(10, 2))))
        body = f'{{"n":2,"paid":"12.50","{PARTITION_FIELD}":"{DAY}"}}'.encode()
        assert list(documents.write(documents.target(DAY), [Document("2", body)])) == []
        documents.tidy()
        assert len(list(documents.stored(DAY))) == 2
