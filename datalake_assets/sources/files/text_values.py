"""What a text in a file means: which type a column of texts has, and which value a text is in a type.

The rule is that no value changes on its way. A column gets the narrowest type that holds each of its values exactly:
whole numbers, decimals of one scale, doubles where an exponent asks for them and they keep all digits, dates, times,
true and false; and text otherwise. Texts whose form would be lost in a number (``007``, ``+1``, ``0x1F``) make their
column a text column. Spaces around a number, a date or a time do not count. An empty text without quotes is null
everywhere, one with quotes only where a column is no text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.core.arrow_arrays import constant, numbers_in, of_numbers, of_texts

__all__ = [
    "DOUBLE_DIGITS",
    "EMPTY",
    "FALSE",
    "NUMBERS",
    "TEXT",
    "TRUE",
    "Kind",
    "all_kept",
    "are_double",
    "classified",
    "converted",
    "doubles",
    "joined",
    "may_have_exponents",
    "may_have_hexadecimals",
    "named_type",
    "needs_a_look",
    "times",
]

#: Texts that are true, and false; no other is.
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
#: Kinds of numbers.
NUMBERS = frozenset({"integer", "decimal", "double"})
_TRUE, _FALSE, _ZERO_LONG = constant(True), constant(False), constant(0)
#: Digits that Arrow's decimals hold, and those that most engines keep in 8 bytes.
MAX_DIGITS, SHORT_DIGITS = 38, 18
#: Digits that a double keeps of every number; of some it keeps more (IEEE 754, binary64).
DOUBLE_DIGITS = 15
#: Digits of a second that a timestamp has, in microseconds and in nanoseconds.
MICRO_DIGITS, NANO_DIGITS = 6, 9
#: Doubles below are close to those that have fewer digits.
_SMALLEST = constant(1e-290)
_LONGEST = constant(DOUBLE_DIGITS)
#: Where the first colon of a time is.
_CLOCK_COLON = constant(len("2025-01-31T10"))

_WHOLE = r"(?:0|[1-9][0-9]*)"
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = rf"{_DAY}[T ][0-9]{{2}}:[0-9]{{2}}(?::[0-9]{{2}}(?:\.[0-9]{{1,9}})?)?"
_INTEGER = rf"-?{_WHOLE}"
_DECIMAL = rf"-?(?:{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+)"
#: What Arrow's reader of CSV takes for a decimal: rows must not depend on which way their block was read.
_SCALED = rf"{_DECIMAL}(?:[eE][-+]?[0-9]+)?"
_NOT_FINITE = "NaN|nan|-?inf|-?Infinity"
_DOUBLE = rf"{_SCALED}|{_NOT_FINITE}"
_ZONE = "(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)"
_ZONED = rf"{_CLOCK}{_ZONE}"
#: What Arrow's reader of CSV takes for a time: an hour may be all.
_HOUR = rf"{_DAY}[T ][0-9]{{2}}(?::[0-9]{{2}}(?::[0-9]{{2}}(?:\.[0-9]{{1,9}})?)?)?"
#: The same where a person declared the type: the form of a number is no matter then.
_ANY_INTEGER = r"[-+]?[0-9]+"
_ANY_DECIMAL = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_ANY_DOUBLE = rf"{_ANY_DECIMAL}|NaN|nan|[-+]?inf|[-+]?Infinity"
_SPACES = " \t"

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Kind:
    """What all values so far of a column are.

    Attributes:
        name: ``null`` (there was none), ``empty`` (only empty texts in quotes), ``bool``, ``integer``, ``decimal``,
            ``double``, ``date``, ``time`` (of a day, without a zone), ``zoned``, ``text``.
        digits: Of decimals: most digits before the point; a lone 0 is none.
        scale: Of decimals, most digits behind it. Of times, of a second.
        fits_double: Of numbers: whether a double keeps all digits of each; None where nobody has looked.
        is_far: Of times: whether 64 bits hold one of them in microseconds only.
    """

    name: str = "null"
    digits: int = 0
    scale: int = 0
    fits_double: bool | None = True
    is_far: bool = False

    @property
    def is_sure(self) -> bool:
        """Whether it is known: doubles may have joined numbers at whose digits nobody has looked."""
        return self.name != "double" or self.fits_double is not None

    @property
    def type(self) -> pa.DataType:
        """The type of the column; text of one without values, and of numbers that fit no type."""
        if self.name == "decimal":
            if self.digits + self.scale > MAX_DIGITS:
                return pa.string()
            precision = SHORT_DIGITS if self.digits + self.scale <= SHORT_DIGITS else MAX_DIGITS
            return pa.decimal128(precision, self.scale)
        unit = "us" if self.scale <= MICRO_DIGITS else "ns"
        if self.name == "time":
            return pa.timestamp(unit)
        return pa.timestamp(unit, "UTC") if self.name == "zoned" else _PLAIN[self.name]


TEXT: Final = Kind("text")
EMPTY: Final = Kind("empty")
_PLAIN: Final[Mapping[str, pa.DataType]] = {
    "null": pa.string(),
    "empty": pa.string(),
    "bool": pa.bool_(),
    "integer": pa.int64(),
    "double": pa.float64(),
    "date": pa.date32(),
    "text": pa.string(),
}
#: Names that a feed's document may give a column's type, besides ``decimal(precision, scale)``.
_NAMED: Final[Mapping[str, pa.DataType]] = {
    "string": pa.string(),
    "text": pa.string(),
    "boolean": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamp_ns": pa.timestamp("ns"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "timestamptz_ns": pa.timestamp("ns", "UTC"),
}


def named_type(name: str) -> pa.DataType:
    """The type that a feed's document names.

    Raises:
        ValueError: There is none of this name.
    """
    if name in _NAMED:
        return _NAMED[name]
    inner = name.removeprefix("decimal(").removesuffix(")").split(",") if name.startswith("decimal(") else []
    try:
        precision, scale = (int(each) for each in inner)
        if 0 <= scale <= precision <= MAX_DIGITS and precision:
            return pa.decimal128(precision, scale)
    except ValueError:
        pass
    raise ValueError(f"{name!r} is no type of a column: take decimal(P, S) with P <= 38, or {', '.join(_NAMED)}")


def classified(texts: pa.Array) -> Kind:
    """What the values of a column are.

    Args:
        texts: Strings; nulls and empty texts say nothing.
    """
    values = texts.filter(pc.greater(pc.binary_length(texts), _ZERO_LONG))
    if not len(values):
        return EMPTY if texts.null_count < len(texts) else Kind()
    plain = pc.utf8_trim(values, _SPACES)
    if _all(pc.is_in(values, of_texts([*TRUE, *FALSE]))):
        return Kind("bool")
    for find in (_number, _moment):
        found = find(plain)
        if found is not None:
            return found
    return TEXT


def _number(texts: pa.Array) -> Kind | None:
    if _matches(texts, _DECIMAL):
        whole, has_point, behind = _parts(texts)
        fits = all_kept(texts, digits=whole + behind)
        if not has_point and _is_castable(texts, pa.int64()):
            return Kind("integer", digits=whole, fits_double=fits)
        return _held(Kind("decimal", whole, behind, fits))
    if not _matches(texts, _DOUBLE):
        return None
    return Kind("double") if _is_castable(texts, pa.float64()) and all_kept(texts) else None


def all_kept(numbers: pa.Array, *, digits: int | None = None) -> bool:
    """Whether a double keeps all digits of each of these numbers.

    Args:
        numbers: Texts of numbers, or numbers.
        digits: How many each has at the most, if that is known.
    """
    if digits is not None and digits <= DOUBLE_DIGITS:
        return True
    texts = numbers.cast(pa.string())
    return _are_kept(texts, texts.cast(pa.float64()))


def doubles(texts: pa.Array) -> pa.Array:
    """The numbers of texts.

    Raises:
        pa.ArrowInvalid: One is none, or has digits that a double does not keep.
    """
    values = texts.cast(pa.float64())
    if not _are_kept(texts, values):
        raise pa.ArrowInvalid("a number has more digits")
    return values


def are_double(texts: pa.Array) -> bool:
    """Whether texts are doubles that keep all digits, of texts none of which `needs_a_look`."""
    try:
        values = doubles(texts)
    except pa.ArrowInvalid:
        return False
    is_finite = pc.fill_null(pc.is_finite(values), _TRUE)
    # Arrow takes INF and NAN, too, and 1e400 for one
    return _all(is_finite) or _matches(texts.filter(pc.invert(is_finite)), _NOT_FINITE)


def times(texts: pa.Array, kind: Kind) -> Kind:
    """The kind of a column of times with some more values, of texts that are times for Arrow or not."""
    # Arrow need not have the minute
    if _all(pc.equal(pc.find_substring(texts, ":"), _CLOCK_COLON)) and _is_castable(texts, kind.type):
        return replace(kind, is_far=kind.is_far or _are_far(texts, kind))
    return joined(kind, classified(texts))


def _are_far(texts: pa.Array, kind: Kind) -> bool:
    """Whether 64 bits do not hold all of these times in nanoseconds, of such as are of a kind's type."""
    return kind.scale <= MICRO_DIGITS and not _is_castable(texts, replace(kind, scale=NANO_DIGITS).type)


def _are_kept(texts: pa.Array, values: pa.Array) -> bool:
    return all(_is_kept(each) for each in texts.take(of_numbers(_doubtful(texts, values))).to_pylist())


def _doubtful(texts: pa.Array, values: pa.Array) -> Ints:
    """Which doubles may have other digits than were written, those of all texts but few."""
    is_small = pc.less(pc.abs(values), _SMALLEST)
    is_long = pc.greater(pc.binary_length(texts), _LONGEST)
    at: Ints = np.flatnonzero(numbers_in(pc.fill_null(pc.or_(is_long, is_small), _FALSE)))
    if not len(at):
        return at
    some, found = (each.take(of_numbers(at)) if len(at) < len(each) else each for each in (texts, values))
    # most programs write the shortest text of a double, and so does Arrow
    is_same = pc.and_(pc.equal(some, found.cast(pa.string())), pc.greater_equal(pc.abs(found), _SMALLEST))
    left = np.flatnonzero(~numbers_in(is_same))
    return at[left[_doubtful_digits(some.take(of_numbers(left)), found.take(of_numbers(left)))]]


def _doubtful_digits(texts: pa.Array, values: pa.Array) -> Ints:
    """The same by the digits alone, however the number is written."""
    digits = _significant(texts)
    is_long = pc.greater(pc.binary_length(digits), _LONGEST)
    is_small = pc.and_(pc.less(pc.abs(values), _SMALLEST), pc.not_equal(digits, constant("")))
    shortest = pc.utf8_rtrim(_significant(values.cast(pa.string())), "0")
    is_same = pc.and_(pc.equal(pc.utf8_rtrim(digits, "0"), shortest), pc.greater_equal(pc.abs(values), _SMALLEST))
    doubt: Ints = np.flatnonzero(numbers_in(pc.or_(is_long, is_small)) & ~numbers_in(is_same))
    return doubt


def _significant(texts: pa.Array) -> pa.Array:
    """The digits of numbers from the first that is not 0 on."""
    mantissas = pc.replace_substring_regex(texts, r"[eE].*$", "")
    return pc.utf8_ltrim(pc.replace_substring_regex(mantissas, r"[^0-9]", ""), "0")


def _is_kept(text: str) -> bool:
    """Whether the nearest double, written with as many digits, is the same number."""
    try:
        number = Decimal(text)
    except ArithmeticError:  # an exponent of 18 digits
        return False
    count = max(1, len(number.as_tuple().digits))
    return Decimal(f"{float(text):.{count - 1}e}") == number


def _parts(texts: pa.Array) -> tuple[int, bool, int]:
    """Most digits before the point but for a lone 0, whether there is a point, and most digits behind it."""
    at = pc.find_substring(texts, ".")
    has = pc.greater_equal(at, _ZERO_LONG)
    lengths = pc.binary_length(texts)
    behind = pc.if_else(has, pc.subtract(pc.subtract(lengths, at), constant(1)), _ZERO_LONG)
    before = pc.subtract(pc.if_else(has, at, lengths), pc.cast(pc.starts_with(texts, "-"), pa.int32()))
    before = pc.if_else(pc.or_(pc.starts_with(texts, "0"), pc.starts_with(texts, "-0")), _ZERO_LONG, before)
    return pc.max(before).as_py(), bool(pc.any(has).as_py()), pc.max(behind).as_py()


def _moment(texts: pa.Array) -> Kind | None:
    for name, pattern, kind in (("date", _DAY, pa.date32()), ("time", _CLOCK, None), ("zoned", _ZONED, None)):
        if _matches(texts, pattern):
            if kind is not None:
                return Kind(name) if _is_castable(texts, kind) else None
            found = Kind(name, scale=_fraction(texts))
            return replace(found, is_far=_are_far(texts, found)) if _is_castable(texts, found.type) else None
    return None


def _fraction(texts: pa.Array) -> int:
    """Most digits of a second."""
    found = pc.struct_field(pc.extract_regex(texts, r"\.(?P<fraction>[0-9]+)"), "fraction")
    return pc.max(pc.binary_length(found)).as_py() or 0


def joined(one: Kind, other: Kind) -> Kind:
    """What a column is of which some values are the one and some the other."""
    for says_nothing in ("null", "empty"):
        if says_nothing in {one.name, other.name}:
            return other if one.name == says_nothing else one
    names = {one.name, other.name}
    digits, scale = max(one.digits, other.digits), max(one.scale, other.scale)
    fits = {one.fits_double, other.fits_double}
    fits_double = False if False in fits else None if None in fits else True
    if len(names) == 1:
        return _held(Kind(one.name, digits, scale, fits_double, one.is_far or other.is_far))
    if names == {"integer", "decimal"}:
        return _held(Kind("decimal", digits, scale, fits_double))
    if "double" in names and names <= NUMBERS and fits_double is not False:
        return Kind("double", fits_double=fits_double)
    return TEXT


def _held(kind: Kind) -> Kind:
    """A kind, or text where no type holds its values: one may be found for numbers with later ones."""
    if kind.name == "decimal" and kind.digits + kind.scale > MAX_DIGITS and kind.fits_double is False:
        return TEXT
    return TEXT if kind.scale > MICRO_DIGITS and kind.is_far else kind


def converted(texts: pa.Array, kind: pa.DataType, *, declared: bool) -> tuple[pa.Array, Mask]:
    """The values of texts in a type, null where they are none; and which texts fit.

    Args:
        texts: Strings.
        kind: The type.
        declared: A person chose the type, so that the form of a number does not matter.
    """
    if pa.types.is_string(kind):
        return texts, np.ones(len(texts), dtype=np.bool_)
    present = pc.fill_null(pc.greater(pc.binary_length(texts), _ZERO_LONG), _FALSE)
    if pa.types.is_boolean(kind):
        is_true, is_false = (pc.is_in(texts, of_texts(each)) for each in (TRUE, FALSE))
        fits = pc.or_(is_true, is_false)
        values = pc.if_else(fits, is_true, pa.nulls(1, pa.bool_())[0])
    else:
        plain = pc.utf8_trim(texts, _SPACES)
        right = pc.match_substring_regex(plain, f"^(?:{_pattern(kind, declared=declared)})$")
        plain = pc.if_else(pc.and_(present, right), plain, pa.nulls(1, pa.string())[0])
        fits, values = _cast(plain, kind)
        if pa.types.is_float64(kind) and not declared:
            kept = np.ones(len(plain), np.bool_)
            doubtful = _doubtful(plain, values)
            kept[doubtful] = [_is_kept(each) for each in plain.take(of_numbers(doubtful)).to_pylist()]
            fits = pc.and_(fits, of_numbers(kept))
    good: Mask = numbers_in(pc.fill_null(fits, _FALSE)) | ~numbers_in(present)
    return values, good


def _pattern(kind: pa.DataType, *, declared: bool) -> str:
    if pa.types.is_integer(kind):
        return _ANY_INTEGER if declared else _INTEGER
    if pa.types.is_decimal(kind):
        return _ANY_DECIMAL if declared else _SCALED
    if pa.types.is_floating(kind):
        return _ANY_DOUBLE if declared else _DOUBLE
    if pa.types.is_date(kind):
        return _DAY
    return f"{_HOUR}{_ZONE}" if kind.tz else f"{_HOUR}|{_DAY}"


def _cast(texts: pa.Array, kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """Which texts are values of a type, and these; the few that are not are found in few steps."""
    try:
        values = _exact(texts, kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return of_numbers(np.zeros(1, np.bool_)), pa.nulls(1, kind)
        middle = len(texts) // 2
        halves = [_cast(texts.slice(0, middle), kind), _cast(texts.slice(middle), kind)]
        return pa.concat_arrays([each[0] for each in halves]), pa.concat_arrays([each[1] for each in halves])
    return values.is_valid(), values


def _exact(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Casts; a finite number that becomes infinite is an error, as others are."""
    plain = pc.utf8_ltrim(texts, "+") if pa.types.is_integer(kind) else texts
    values = plain.cast(kind)
    if pa.types.is_floating(kind) and pc.any(pc.is_inf(values)).as_py():
        endless = pc.match_substring_regex(plain, "inf|Inf")
        if pc.any(pc.and_(pc.is_inf(values), pc.invert(endless))).as_py():
            raise pa.ArrowInvalid("a number is too large for its type")
    return values


def _is_castable(texts: pa.Array, kind: pa.DataType) -> bool:
    try:
        _exact(texts, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _matches(texts: pa.Array, pattern: str) -> bool:
    return _all(pc.match_substring_regex(texts, f"^(?:{pattern})$"))


def _all(mask: pa.Array) -> bool:
    return bool(pc.all(mask).as_py())


_ZERO, _LAST, _PLUS, _MINUS, _X, _LARGE_X = (ord(each) for each in "09+-xX")
_SPACE, _TAB, _LINE, _RETURN = (ord(each) for each in " \t\n\r")
_E, _POINT = ord("E"), ord(".")
#: A letter in upper case: of its byte all bits but one (ASCII).
_UPPER = 0xDF
_LOOKAHEAD = 3
#: Bytes that are looked at together.
_PIECE = 128 << 10


def needs_a_look(data: bytes, delimiter: str, quote: str) -> bool:
    """Whether a field may begin as no number is written that keeps its form: ``007``, ``0x1F``, ``+1``.

    Arrow reads these as numbers. Its answer for a block of records stands only if none of them can be there.

    Args:
        data: Whole records.
        delimiter: Between fields.
        quote: Around fields; empty if there are none.
    """
    marks = [_LINE, *(mark for mark in (*f"{delimiter}\r{quote}".encode(),) if mark in data)]
    seen = np.frombuffer(b"\n" + data + bytes(_LOOKAHEAD), np.uint8)
    pieces = (seen[begin : begin + _PIECE + _LOOKAHEAD + 1] for begin in range(0, len(data), _PIECE))
    return any(_has_odd_field(piece, marks) for piece in pieces)


def may_have_exponents(data: bytes) -> bool:
    """Whether a number with an exponent may be there, which Arrow takes for a decimal; other texts may look alike."""
    seen = np.frombuffer(data, np.uint8)
    return any(_has_exponent(seen[begin : begin + _PIECE + 1]) for begin in range(0, len(seen), _PIECE))


def may_have_hexadecimals(data: bytes) -> bool:
    """Whether ``0x`` may begin a number, which Arrow takes for an integer; other texts may have it."""
    if b"x" not in data and b"X" not in data:
        return False
    seen = np.frombuffer(data, np.uint8)
    return bool((((seen[1:] == _X) | (seen[1:] == _LARGE_X)) & (seen[:-1] == _ZERO)).any())


def _has_exponent(piece: npt.NDArray[np.uint8]) -> bool:
    before, letter = piece[:-1], piece[1:]
    # a digit and the point; in upper and lower case
    return bool((((letter & _UPPER) == _E) & ((before - _ZERO <= _LAST - _ZERO) | (before == _POINT))).any())


def _has_odd_field(piece: npt.NDArray[np.uint8], marks: Sequence[int]) -> bool:
    """The same of a piece that stays in the processor's cache; fields begin behind marks, the last bytes are more."""
    before = piece[: -_LOOKAHEAD - 1]
    begins = before == marks[0]
    for mark in marks[1:]:
        begins |= before == mark
    at = np.flatnonzero(begins) + 1
    at = at[piece[at] <= _ZERO]  # the last of all that are looked for
    if not len(at):
        return False
    # a sign or a space before it: a second one is no way to write a number that is looked for here
    at += (piece[at] == _MINUS) | (piece[at] == _SPACE) | (piece[at] == _TAB)
    digit, after = piece[at], piece[at + 1]
    zeros = (digit == _ZERO) & (((after >= _ZERO) & (after <= _LAST)) | (after == _X) | (after == _LARGE_X))
    return bool((zeros | (digit == _PLUS) | (digit == _MINUS) | (digit == _SPACE) | (digit == _TAB)).any())
