"""The write API: programs that are no feeds create tables, write records, and ask about them, per tenant.

One dispatcher (`Operations`) takes every request, wherever it comes from: Python, ``datalake ops``, HTTP, AWS Lambda.
"""

from __future__ import annotations

from datalake_assets.operations.answers import Code
from datalake_assets.operations.dispatcher import Operations
from datalake_assets.operations.requests import MAX_REQUEST_BYTES

__all__ = ["MAX_REQUEST_BYTES", "Code", "Operations"]
