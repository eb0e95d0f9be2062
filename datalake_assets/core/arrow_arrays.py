"""Arrow arrays and scalars of texts and numbers, without `pyarrow.array`, `pyarrow.scalar` and `numpy.asarray`.

Those ask pandas whether their argument is one of its own, and so load it: 40 MiB and a quarter of a CPU second in each
process that has nothing else to do with pandas. So do functions of `pyarrow.compute` that are given a value of Python
instead of a scalar.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "constant",
    "empty_array",
    "empty_table",
    "has_floats",
    "moment",
    "moments",
    "null_of",
    "numbers_in",
    "of_numbers",
    "of_texts",
    "truths_in",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Nanoseconds of a timestamp's unit.
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def of_texts(texts: Sequence[str | None]) -> pa.StringArray:
    """Texts, None for nulls, as ``string``.

    Raises:
        UnicodeEncodeError: A text has half a surrogate pair.
        OverflowError: They have 2 GiB or more in all.
    """
    encoded = [b"" if each is None else each.encode() for each in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    if ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError("texts of 2 GiB or more")
    validity = None if None not in texts else _bits(np.array([each is not None for each in texts], np.bool_))
    buffers = [validity, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def of_numbers(numbers: npt.NDArray[Any]) -> pa.Array:
    """Numbers or truths of one dimension, in Arrow's type of the same width; numbers are not copied if they can be.

    Raises:
        TypeError: They are neither.
    """
    if numbers.ndim != 1 or numbers.dtype.kind not in "biuf":
        raise TypeError(f"{numbers.ndim} dimensions of {numbers.dtype}")
    if numbers.dtype == np.bool_:
        return pa.Array.from_buffers(pa.bool_(), len(numbers), [None, _bits(numbers)])
    whole = np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("="))
    return pa.Array.from_buffers(pa.from_numpy_dtype(whole.dtype), len(whole), [None, pa.py_buffer(whole)])


def numbers_in(array: pa.Array) -> npt.NDArray[Any]:
    """The numbers or truths of an array without nulls; numbers are where they are, and must not be changed.

    Raises:
        ValueError: It has nulls.
    """
    if array.null_count:
        raise ValueError(f"{array.null_count} nulls")
    if pa.types.is_boolean(array.type):
        return numbers_in(array.cast(pa.uint8())).view(np.bool_)
    dtype = array.type.to_pandas_dtype()
    if not len(array):
        return np.empty(0, dtype)
    buffer, width = array.buffers()[1], np.dtype(dtype).itemsize
    # of others' buffers the size need be no multiple of the width
    return np.frombuffer(buffer, dtype, len(array), array.offset * width)


def constant(value: str | bytes | bool | float) -> pa.Scalar:  # noqa: FBT001  the value itself
    """A value as ``string``, ``binary``, ``bool``, ``int64`` or ``double``."""
    if isinstance(value, str):
        return of_texts([value])[0]
    if isinstance(value, bytes):
        ends = pa.py_buffer(np.array([0, len(value)], np.int32))
        return pa.Array.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(value)])[0]
    return of_numbers(np.array([value]))[0]


def moments(values: Sequence[datetime], kind: pa.DataType) -> pa.Array:
    """Times in a type of timestamps, rounded down to its unit.

    Args:
        values: Aware.
        kind: The type; one without a zone is UTC.

    Raises:
        OverflowError: The type does not hold one.
    """
    unit = _NANOSECONDS[kind.unit]
    counts = [(each - _EPOCH) // timedelta(microseconds=1) * 1000 // unit for each in values]
    return pa.Array.from_buffers(kind, len(counts), [None, pa.py_buffer(np.array(counts, np.int64))])


def moment(value: datetime, kind: pa.DataType) -> pa.Scalar:
    """One time, as `moments` gives them."""
    return moments([value], kind)[0]


def null_of(kind: pa.DataType) -> pa.Scalar:
    """Null, in a type."""
    return pa.nulls(1, kind)[0]


def truths_in(array: pa.Array, *, null: bool = False) -> npt.NDArray[np.bool_]:
    """The truths of an array, with a truth for nulls.

    Args:
        array: Of booleans.
        null: What nulls are.
    """
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    return numbers_in(pc.fill_null(array, constant(null)) if array.null_count else array)


def empty_array(kind: pa.DataType) -> pa.Array:
    """An array without values."""
    return pa.nulls(0, kind)


def empty_table(schema: pa.Schema) -> pa.Table:
    """A table without rows; `pyarrow.Schema.empty_table` makes arrays of lists."""
    return pa.Table.from_batches([], schema)


def _bits(truths: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(truths, bitorder="little"))


def has_floats(kind: pa.DataType) -> bool:
    """Whether values of a type, or parts of them, may be "not a number", of which no bound says anything."""
    if pt.is_nested(kind):
        return any(has_floats(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pt.is_floating(kind) or (pt.is_dictionary(kind) and pt.is_floating(kind.value_type)))
