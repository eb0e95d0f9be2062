"""What the UI shows of a feed's columns."""

import pyarrow as pa

from datalake_assets.defs.metadata import code_version, column_schema
from datalake_assets_tests.defs.fakes import stream

NOTES = {"amount": {"description": "What was paid.", "unit": "USD", "tags": {"pii": "no"}}}


def test_columns_show_what_the_feed_says_of_them():
    schema = pa.schema([pa.field("amount", pa.int64()), pa.field("id", pa.string(), nullable=False)])

    amount, identity = column_schema(stream(columns=NOTES), schema).schema.columns

    assert (amount.name, amount.type, amount.description, amount.tags) == (
        "amount",
        "int64",
        "What was paid. [USD]",
        {"pii": "no"},
    )
    assert (identity.description, identity.tags, identity.constraints.nullable) == (None, {}, False)


def test_notes_on_columns_make_no_data_stale():
    assert code_version(stream(columns=NOTES)) == code_version(stream())
    assert code_version(stream(lateness="P2D")) != code_version(stream())
