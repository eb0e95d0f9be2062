"""The compact protocol of Thrift, as far as Parquet footers need it: fields are found and skipped, not decoded.

No Thrift library is among our dependencies, and none would do: a footer is rewritten by replacing a few numbers in it,
and whatever else it holds, fields of future versions too, must come out byte for byte as it went in.

Input is not trusted. Every step consumes a byte or ends, lengths and counts are compared with what is left before they
are used, and nesting is bounded: damaged input costs no more than its length, and ends in `MalformedThrift`.

Source: Apache Thrift, "Thrift Compact protocol encoding" (doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = [
    "BINARY",
    "BYTE",
    "DOUBLE",
    "FALSE",
    "I16",
    "I32",
    "I64",
    "LIST",
    "MAP",
    "SET",
    "STRUCT",
    "TRUE",
    "CompactReader",
    "CompactWriter",
    "MalformedThrift",
    "UndecodableThrift",
    "leading_numbers",
    "next_field",
    "skipped",
    "varint",
    "zigzag",
]

# Kinds of values (compact protocol specification, "Struct encoding")
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = range(1, 14)
INTEGERS = (I32, I64, I16)
FIXED_BYTES = {TRUE: 0, FALSE: 0, BYTE: 1, DOUBLE: 8, UUID: 16}
VARINT_MAX_BYTES = 10  # 64 bits, seven in each byte
MAX_FIELD = 0x7FFF  # ids have 16 bits: of larger ones, others take what is left of them
MAX_INT32 = 1 << 31
SEVEN_BITS = 127  # the largest number of one byte; a byte above says that more follow
LONG_FORM = 15  # from this many elements on, a list's count follows its header; from 16 on, a field's id does
# The deepest value of a footer is about ten levels down; Python's own stack ends at about a thousand.
MAX_DEPTH = 64


class MalformedThrift(ValueError):
    """What is encoded is not what is expected, or contradicts itself."""


class UndecodableThrift(MalformedThrift):
    """The bytes are not what the compact protocol allows, or a value is of another kind than is expected there.

    Says nothing of the place: `field_names.fault` does.
    """


class CompactReader:
    """Walks over structs.

    Args:
        data: The bytes; kept, not copied.
        position: Where to begin.

    Attributes:
        position: Of the next byte.
    """

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data, self.position = data, position

    def fields(self) -> Iterator[tuple[int, int]]:
        """Id and kind of each field of the struct that begins here, in strictly rising order of their ids.

        While one is shown, `position` is that of its value: read it, or go on, and it is skipped.
        """
        data, size, last = self.data, len(self.data), 0
        while True:
            begin = self.position
            if begin >= size:
                raise UndecodableThrift("it ends early")
            header = data[begin]
            self.position = begin = begin + 1
            if header > LONG_FORM:
                field = last + (header >> 4)
            elif header:
                field = self._zigzag()
                begin = self.position
            else:
                return
            if not last < field <= MAX_FIELD:
                raise UndecodableThrift(f"field {field} after field {last}")
            last = field
            yield field, header & 15
            if self.position == begin:
                self.position = skipped(data, begin, header & 15, 0)

    def integer(self, kind: int, expected: int) -> int:
        """The number here, whose field must be of the expected kind, and which must fit into it."""
        self.expect(kind, expected)
        number = self._zigzag()
        if expected == I32 and not -MAX_INT32 <= number < MAX_INT32:  # others take what is left of it in 32 bits
            raise UndecodableThrift("a number is too large")
        return number

    def binary(self, kind: int) -> bytes:
        """The bytes or text here."""
        self.expect(kind, BINARY)
        length = self._varint()
        end = self.position + length
        if end > len(self.data):
            raise UndecodableThrift("a text is longer than what is left")
        begin, self.position = self.position, end
        return self.data[begin:end]

    def expect_elements(self, element: int) -> None:
        """Refuses a list here of other elements than these, which the format has there; the list stays to be read.

        The readers that Thrift generates take each element for what it should be, whatever kind is stated, and so all
        that follows for something else than whoever goes by what is stated.
        """
        position = self.position
        if position < len(self.data) and self.data[position] > LONG_FORM and self.data[position] & 15 != element:
            raise UndecodableThrift("a list of something else than expected")

    def structs(self, kind: int) -> int:
        """How many structs the list here has; the first begins here now."""
        return self._elements(kind, (STRUCT,))

    def bools(self, kind: int) -> bytes:
        """The list of truth values here, a byte each: `TRUE`, or another number."""
        count = self._elements(kind, (TRUE, FALSE))
        begin, self.position = self.position, self.position + count
        return self.data[begin : self.position]

    def binaries(self, kind: int) -> list[bytes]:
        """The list of texts or bytes here."""
        return [self.binary(BINARY) for _ in range(self._elements(kind, (BINARY,)))]

    def integers(self, kind: int) -> list[int]:
        """The list of 64-bit numbers here."""
        return [self._zigzag() for _ in range(self._elements(kind, (I64,)))]

    def _elements(self, kind: int, kinds: tuple[int, ...]) -> int:
        """How many elements the list here has, which are of one of these kinds; the first begins here now."""
        self.expect(kind, LIST)
        header = self._byte()
        count = header >> 4
        if count == LONG_FORM:
            count = self._varint()
        if count and header & 15 not in kinds:
            raise UndecodableThrift("a list of something else than " + ("structs" if STRUCT in kinds else "expected"))
        if count > len(self.data) - self.position:
            raise UndecodableThrift("a list is longer than what is left")
        return count

    def skip(self, kind: int) -> None:
        """Passes over the value here."""
        self.position = skipped(self.data, self.position, kind, 0)

    @staticmethod
    def expect(kind: int, expected: int) -> None:
        """Refuses a value of another kind."""
        if kind != expected:
            raise UndecodableThrift(f"a value of kind {kind} instead of {expected}")

    def _byte(self) -> int:
        position = self.position
        self.position = _within(self.data, position, 1)
        return self.data[position]

    def _varint(self) -> int:
        value, self.position = _varint(self.data, self.position)
        return value

    def _zigzag(self) -> int:
        value, self.position = _varint(self.data, self.position)
        return (value >> 1) ^ -(value & 1)


def leading_numbers(data: bytes, position: int, last: int) -> tuple[dict[int, int], int, int, int]:
    """Reads the 32-bit numbers that a struct begins with, in one loop: `CompactReader` takes several calls for each.

    Args:
        data: The bytes.
        position: Where the struct begins.
        last: Id of the last field that may be one of the numbers; those up to it must all be 32-bit numbers.

    Returns:
        The numbers by id; then the id and the kind of the first field behind them and where its value begins, which
        are 0, 0 and where the struct ends if there is none.

    Raises:
        MalformedThrift: The struct is not what the protocol allows, or a field up to ``last`` is no 32-bit number.
    """
    found: dict[int, int] = {}
    field = 0
    try:
        while True:
            if (header := data[position]) > LONG_FORM:
                field += header >> 4
                position += 1
            else:
                field, header, position = next_field(data, position, field)
            if not field or field > last:
                return found, field, header & 15, position
            if header & 15 != I32:
                raise UndecodableThrift(f"a value of kind {header & 15} instead of {I32}")
            value = data[position]
            position += 1
            if value > SEVEN_BITS:
                value, position = _varint(data, position - 1)
            found[field] = (value >> 1) ^ -(value & 1)
    except IndexError:
        raise UndecodableThrift("it ends early") from None


def next_field(data: bytes, position: int, before: int) -> tuple[int, int, int]:
    """Id and kind of the field whose header is here, and where its value begins; two zeros at the end of the struct."""
    try:
        header = data[position]
        if header > LONG_FORM:
            return before + (header >> 4), header & 15, position + 1
    except IndexError:
        raise UndecodableThrift("it ends early") from None
    if not header:
        return 0, 0, position + 1
    value, position = _varint(data, position + 1)
    field = (value >> 1) ^ -(value & 1)
    if not before < field <= MAX_FIELD:
        raise UndecodableThrift(f"field {field} after field {before}")
    return field, header & 15, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    try:
        value = byte = data[position]
        position += 1
        if byte <= SEVEN_BITS:
            return value, position
        value &= SEVEN_BITS
        shift = 7
        while byte > SEVEN_BITS:
            byte = data[position]
            position += 1
            value |= (byte & SEVEN_BITS) << shift
            shift += 7
            if shift > 7 * VARINT_MAX_BYTES:
                raise UndecodableThrift("a number is too long")
    except IndexError:
        raise UndecodableThrift("it ends early") from None
    if value >> 64:
        raise UndecodableThrift("a number is too large")
    return value, position


def skipped(data: bytes, position: int, kind: int, depth: int = 0) -> int:
    """The position after the value of this kind.

    What footers and page headers are full of is passed over by the loops of `_skip_struct` and `_skip_list` themselves:
    a call for each number would take most of the time.

    Raises:
        MalformedThrift: The value is not what the protocol allows, or is longer than the data.
    """
    if kind in INTEGERS:
        return _varint(data, position)[1]
    if kind == BINARY:
        length, position = _varint(data, position)
        return _within(data, position, length)
    if kind in FIXED_BYTES:
        return _within(data, position, FIXED_BYTES[kind])
    if depth > MAX_DEPTH:
        raise UndecodableThrift("it is nested too deeply")
    if kind == STRUCT:
        return _skip_struct(data, position, depth)
    if kind in (LIST, SET):
        return _skip_list(data, position, depth)
    if kind == MAP:
        return _skip_map(data, position, depth)
    raise UndecodableThrift(f"there is no kind {kind}")


def _within(data: bytes, position: int, length: int) -> int:
    if length > len(data) - position:
        raise UndecodableThrift("a value is longer than what is left")
    return position + length


def _skip_struct(data: bytes, position: int, depth: int) -> int:
    size = len(data)
    while position < size:
        header = data[position]
        position += 1
        if header == 0:
            return position
        if header <= LONG_FORM:
            position = _varint(data, position)[1]
        kind = header & 15
        if position < size and data[position] <= SEVEN_BITS:
            if kind in INTEGERS:
                position += 1
                continue
            if kind == BINARY:
                position += 1 + data[position]
                if position > size:
                    raise UndecodableThrift("a value is longer than what is left")
                continue
        position = skipped(data, position, kind, depth + 1)
    raise UndecodableThrift("it ends early")


def _skip_list(data: bytes, position: int, depth: int) -> int:
    if position >= len(data):
        raise UndecodableThrift("it ends early")
    header = data[position]
    count, kind = header >> 4, header & 15
    position += 1
    if count == LONG_FORM:
        count, position = _varint(data, position)
    # An element takes a byte at least, a boolean too
    end = _within(data, position, count)
    if kind in (TRUE, FALSE) or (kind in INTEGERS and data[position:end].isascii()):  # all of seven bits
        return end
    for _ in range(count):
        position = skipped(data, position, kind, depth + 1)
    return position


def _skip_map(data: bytes, position: int, depth: int) -> int:
    count, position = _varint(data, position)
    if count == 0:
        return position
    _within(data, position, count)
    kinds, position = data[position], position + 1
    for _ in range(count):
        for kind in (kinds >> 4, kinds & 15):
            position = position + 1 if kind in (TRUE, FALSE) else skipped(data, position, kind, depth + 1)
    return position


def varint(value: int) -> bytes:
    """A count or a length."""
    if value <= SEVEN_BITS:
        return bytes((value,))
    out = bytearray()
    while value > SEVEN_BITS:
        out.append(value & SEVEN_BITS | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> bytes:
    """A number with a sign."""
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


class CompactWriter:
    """One struct being written.

    Attributes:
        data: What was written.
    """

    __slots__ = ("_last", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        self._last = 0

    def field(self, field: int, kind: int, value: bytes) -> None:
        """Adds a field, whose id is above all those before, with its encoded value."""
        distance, self._last = field - self._last, field
        if distance <= LONG_FORM:
            self.data.append(distance << 4 | kind)
        else:
            self.data.append(kind)
            self.data += zigzag(field)
        self.data += value

    def end(self) -> bytes:
        """Closes the struct."""
        self.data.append(0)
        return bytes(self.data)

    @staticmethod
    def binary(value: bytes) -> bytes:
        """A text or bytes as a value."""
        return varint(len(value)) + value

    @staticmethod
    def list_header(kind: int, count: int) -> bytes:
        """What comes before the elements of a list."""
        return bytes((count << 4 | kind,)) if count < LONG_FORM else bytes((0xF0 | kind,)) + varint(count)
