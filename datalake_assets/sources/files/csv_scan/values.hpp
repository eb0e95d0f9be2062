// Which texts are values of a kind, as `text_values.py` says it, and which values these are.
#ifndef DATALAKE_CSVSCAN_VALUES_HPP
#define DATALAKE_CSVSCAN_VALUES_HPP

#include <cfloat>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "csvscan.h"

namespace csvscan {

using u8 = uint8_t;
using u64 = uint64_t;
using u128 = unsigned __int128;
using i128 = __int128;

// Digits that 64 bits hold of every number with a sign; longer ones may fit.
constexpr int64_t INTEGER_DIGITS = 18;
// Of Arrow's decimals.
constexpr int64_t DECIMAL_DIGITS = 38;
// Of every double (IEEE 754, binary64), the bits of its fraction, and what is added to its exponent.
constexpr int64_t DOUBLE_DIGITS = 15;
constexpr int DOUBLE_BITS = 52, DOUBLE_BIAS = 1023;
// Powers of ten: a double keeps digits well within, and is exact for each up to the other.
constexpr int64_t FAR = 280, EXACT_TENS = 22;
// Digits of a number that is multiplied out: 64 bits hold every one of so many.
constexpr int64_t LONG_DIGITS = 19;
// Bytes of a number's text that are compared with a double's own digits.
constexpr int64_t LONGEST = 64;
// Years of which 64 bits hold some nanoseconds, and not others.
constexpr int NANOS_FIRST = 1677, NANOS_LAST = 2262;

// A field's bytes, without its quotes.
struct Field {
  const u8* at;
  const u8* end;
  int64_t size() const { return end - at; }
  bool is(const char* text, size_t length) const {
    return static_cast<size_t>(size()) == length && !std::memcmp(at, text, length);
  }
};

inline bool is_digit(u8 byte) { return static_cast<u8>(byte - '0') <= 9; }

// Passes digits, which are added to a number; that is right as long as 64 bits hold it.
inline const u8* after_digits(const u8* at, const u8* end, u64& number) {
  for (; at < end && is_digit(*at); ++at) number = number * 10 + static_cast<u64>(*at - '0');
  return at;
}

// A number as it is written: sign, digits, point, digits, exponent.
struct Number {
  const u8* begin = nullptr;  // behind the sign
  const u8* mantissa_end = nullptr;
  int64_t whole = 0, behind = 0, exponent = 0;
  u64 digits = 0;  // all of them, without the point, if they are no more than LONG_DIGITS
  bool is_negative = false, has_point = false, has_exponent = false;
};

// The exponent of a number; false: there is none, or one of too many digits.
inline bool read_exponent(const u8*& at, const u8* end, int64_t& exponent) {
  const bool is_negative = at < end && *at == '-';
  if (at < end && (*at == '-' || *at == '+')) ++at;
  const u8* begin = at;
  for (exponent = 0; at < end && is_digit(*at) && at - begin < 5; ++at) exponent = exponent * 10 + (*at - '0');
  if (is_negative) exponent = -exponent;
  return at > begin && at - begin < 5;
}

// Whether a text is a number whose form a value keeps: not 007, +1 or 0x1F.
inline bool read_number(Field field, Number& number, bool zeros_may_lead) {
  const u8 *at = field.at, *end = field.end;
  number.is_negative = at < end && *at == '-';
  at += number.is_negative;
  number.begin = at;
  at = after_digits(at, end, number.digits);
  number.whole = at - number.begin;
  if (number.whole > 1 && *number.begin == '0' && !zeros_may_lead) return false;
  number.has_point = at < end && *at == '.';
  if (number.has_point) {
    const u8* point = at++;
    at = after_digits(at, end, number.digits);
    number.behind = at - point - 1;
  }
  if (!number.whole && !number.behind) return false;
  number.mantissa_end = at;
  number.has_exponent = at < end && (*at | 0x20) == 'e';
  if (number.has_exponent && !read_exponent(++at, end, number.exponent)) return false;
  return at == end;
}

// The digits from the first that is not 0 to the last, as far as they fit into 64 bits; and how many they are.
inline int64_t significant(const Number& number, u64& digits, bool& has_rest) {
  int64_t count = 0, zeros = 0;
  digits = 0;
  for (const u8* at = number.begin; at < number.mantissa_end; ++at) {
    if (*at == '.' || (!count && *at == '0')) continue;
    if (++count <= LONG_DIGITS) digits = digits * 10 + static_cast<u64>(*at - '0');
    zeros = *at == '0' ? zeros + 1 : 0;
  }
  has_rest = count - zeros > DOUBLE_DIGITS;
  return count;
}

inline u128 power_of_ten(int64_t exponent) {
  u128 power = 1;
  for (; exponent > 0; --exponent) power *= 10;
  return power;
}

// The powers of ten, as whole numbers, and those that are exact as doubles.
struct Tens {
  u128 whole[DECIMAL_DIGITS + 1];
  double real[EXACT_TENS + 1];
  Tens() {
    for (int64_t each = 0; each <= DECIMAL_DIGITS; ++each) {
      whole[each] = power_of_ten(each);
      if (each <= EXACT_TENS) real[each] = static_cast<double>(whole[each]);
    }
  }
};
static const Tens TENS;

// Whether some double, rounded to as many digits, is digits * 10^-places; false: it may be.
//
// A double is m * 2^-s, and rounds to these digits if |digits * 2^s - m * 10^places| < 2^s / 2. All of that is whole.
inline bool is_near_double(u64 digits, int64_t places) {
  if (places < 0 || places > EXACT_TENS) return false;
  const double value = static_cast<double>(digits) / TENS.real[places];
  u64 parts = 0;
  std::memcpy(&parts, &value, sizeof parts);
  // the fraction, and what its last bit stands for; positive and far from the least, so that there is a bit before it
  const auto guess = static_cast<int64_t>((parts & ((u64{1} << DOUBLE_BITS) - 1)) | (u64{1} << DOUBLE_BITS));
  const int shift = DOUBLE_BITS + DOUBLE_BIAS - static_cast<int>(parts >> DOUBLE_BITS);
  const int bits = 64 - __builtin_clzll(digits);
  if (shift < 1 || bits + shift > 126) return false;
  const i128 scaled = static_cast<i128>(static_cast<u128>(digits) << shift), half = static_cast<i128>(1) << (shift - 1);
  const i128 ten = static_cast<i128>(TENS.whole[places]);
  for (int64_t mantissa = guess - 1; mantissa <= guess + 1; ++mantissa) {
    const i128 apart = scaled - static_cast<i128>(mantissa) * ten;
    if (mantissa <= (int64_t{1} << (DOUBLE_BITS + 1)) && apart < half && -apart < half) return true;
  }
  return false;
}

// The digits up to an exponent, from the first to the last that is not 0.
inline int64_t trimmed(const char* at, const char* end, char* digits) {
  int64_t count = 0, last = 0;
  for (; at < end && (*at | 0x20) != 'e'; ++at) {
    if (!is_digit(static_cast<u8>(*at)) || (!count && *at == '0')) continue;
    digits[count++] = *at;
    if (*at != '0') last = count;
  }
  return last;
}

// Whether a number's digits are the fewest that tell its double from all others; false: they may be.
inline bool is_shortest(Field field) {
#if defined(__cpp_lib_to_chars)
  if (field.size() > LONGEST) return false;
  const char *begin = reinterpret_cast<const char*>(field.at), *end = reinterpret_cast<const char*>(field.end);
  char shortest[LONGEST], own[LONGEST], others[LONGEST];
  double value = 0;
  const auto read = std::from_chars(begin, end, value);
  if (read.ec != std::errc() || read.ptr != end || !std::isfinite(value)) return false;
  const auto written = std::to_chars(shortest, shortest + LONGEST, value, std::chars_format::scientific);
  if (written.ec != std::errc()) return false;
  const int64_t count = trimmed(begin, end, own);
  return count == trimmed(shortest, written.ptr, others) && !std::memcmp(own, others, static_cast<size_t>(count));
#else
  (void)field;
  return false;
#endif
}

// The double of a number; false: it is none, or nobody says so here.
inline bool read_double(Field field, const Number& number, double& value) {
  const int64_t exponent = number.exponent - number.behind;
  // both of these are doubles, and so the one rounding is the right one (Clinger, PLDI 1990)
  const bool is_double = number.whole + number.behind <= LONG_DIGITS && number.digits <= u64{1} << (DOUBLE_BITS + 1);
  if (FLT_EVAL_METHOD == 0 && is_double && exponent >= -EXACT_TENS && exponent <= EXACT_TENS) {
    value = static_cast<double>(number.digits);
    value = exponent < 0 ? value / TENS.real[-exponent] : value * TENS.real[exponent];
    if (number.is_negative) value = -value;
    return true;
  }
#if defined(__cpp_lib_to_chars)
  const char *begin = reinterpret_cast<const char*>(field.at), *end = reinterpret_cast<const char*>(field.end);
  const auto read = std::from_chars(begin, end, value);
  return read.ec == std::errc() && read.ptr == end && std::isfinite(value);
#else
  (void)field;
  return false;
#endif
}

// Whether a double keeps all digits of a number; false: it may.
inline bool is_kept(Field field, const Number& number) {
  if (!number.has_exponent && number.whole + number.behind <= DOUBLE_DIGITS) return true;
  u64 digits = 0;
  bool has_rest = false;
  const int64_t count = significant(number, digits, has_rest);
  if (!count) return true;
  const int64_t places = number.behind - number.exponent, first = count - places;  // 10^(first - 1) <= value < 10^first
  if (first < -FAR || first > FAR) return false;
  if (!has_rest) return true;
  return (count <= LONG_DIGITS && is_near_double(digits, places)) || is_shortest(field);
}

inline bool is_no_number(Field field) { return field.size() == 3 && (field.is("NaN", 3) || field.is("nan", 3)); }

// Whether 64 bits with a sign hold a number without a point.
inline bool is_int64(const Number& number) {
  if (number.whole <= INTEGER_DIGITS) return true;
  return number.whole == LONG_DIGITS && number.digits <= static_cast<u64>(INT64_MAX) + number.is_negative;
}

// Whether a text is a number that a decimal may keep; its digits are noted.
inline bool take_number(Field field, CsvColumn& column, Number& number) {
  if (!read_number(field, number, column.is_settled != 0) || number.has_exponent) return false;
  if (number.whole > DECIMAL_DIGITS || number.behind > DECIMAL_DIGITS) return false;
  const bool is_doubtful = number.whole + number.behind > DOUBLE_DIGITS && !column.in_doubt;
  if (is_doubtful && (!column.is_exact || !is_kept(field, number))) column.in_doubt = 1;
  const u8* first = number.begin;
  for (; number.whole && *first == '0'; ++first) --number.whole;
  const auto whole = static_cast<int32_t>(number.whole), behind = static_cast<int32_t>(number.behind);
  if (whole > column.digits) column.digits = whole;
  if (behind > column.scale) column.scale = behind;
  if (number.has_point) column.has_point = 1;
  return true;
}

inline bool is_bool(Field field) {
  if (field.size() == 4) return field.is("true", 4) || field.is("True", 4) || field.is("TRUE", 4);
  return field.is("false", 5) || field.is("False", 5) || field.is("FALSE", 5);
}

// Two digits as a number; what they are not makes it larger than any.
inline int two_digits(const u8* at) {
  return is_digit(at[0]) && is_digit(at[1]) ? (at[0] - '0') * 10 + (at[1] - '0') : 10000;
}

inline bool is_next(const u8*& at, const u8* end, u8 byte) {
  if (at >= end || *at != byte) return false;
  ++at;
  return true;
}

// A time as it is written; the zone's offset is what its clocks are ahead.
struct Moment {
  int year = 0;
  int64_t day = 0;  // since 1970
  int64_t second = 0, fraction = 0, fraction_digits = 0, offset_s = 0;
};

// Passes a day of the calendar (ISO 8601); false: it is none.
inline bool read_day(const u8*& at, const u8* end, Moment& moment) {
  // days of a year of 365 before each month, and before the next year
  static constexpr int BEFORE[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365};
  constexpr int BEFORE_1970 = 719162;  // since the first of January of the year 1
  if (end - at < 10 || at[4] != '-' || at[7] != '-') return false;
  const int year = two_digits(at) * 100 + two_digits(at + 2), month = two_digits(at + 5), day = two_digits(at + 8);
  if (year > 9999 || year < 1 || month < 1 || month > 12) return false;
  const bool leaps = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  if (day < 1 || day > BEFORE[month] - BEFORE[month - 1] + (leaps && month == 2)) return false;
  const int years = year - 1;
  moment.year = year;
  moment.day = years * 365 + years / 4 - years / 100 + years / 400 + BEFORE[month - 1] + (leaps && month > 2) + day -
               1 - BEFORE_1970;
  at += 10;
  return true;
}

inline bool is_date(Field field, Moment& moment) {
  return read_day(field.at, field.end, moment) && field.at == field.end;
}

inline bool read_zone(const u8*& at, const u8* end, Moment& moment) {
  if (is_next(at, end, 'Z')) return true;
  if (end - at < 3 || (*at != '+' && *at != '-') || two_digits(at + 1) > 23) return false;
  const int64_t sign = *at == '-' ? -1 : 1;
  moment.offset_s = sign * two_digits(at + 1) * 3600;
  at += 3;
  if (at == end) return true;
  is_next(at, end, ':');
  if (end - at < 2 || two_digits(at) > 59) return false;
  moment.offset_s += sign * two_digits(at) * 60;
  at += 2;
  return true;
}

// Passes a fraction of a second, if there is one; false: it is none, or has more digits.
inline bool read_fraction(const u8*& at, const u8* end, int64_t most, Moment& moment) {
  if (!is_next(at, end, '.')) return true;
  const u8* begin = at;
  u64 fraction = 0;
  at = after_digits(at, end, fraction);
  moment.fraction_digits = at - begin;
  if (at == begin || moment.fraction_digits > most) return false;
  moment.fraction = static_cast<int64_t>(fraction);
  return true;
}

inline bool is_time(Field field, CsvColumn& column, Moment& moment) {
  const u8 *&at = field.at, *end = field.end;
  if (!read_day(at, end, moment)) return false;
  if (moment.year == NANOS_FIRST || moment.year == NANOS_LAST) return false;
  if (moment.year < NANOS_FIRST || moment.year > NANOS_LAST) column.is_far = 1;
  if (at == end) return column.is_settled && column.kind == CS_TIME;
  if (end - at < 6 || (*at != 'T' && *at != ' ')) return false;
  const int hour = two_digits(at + 1), minute = two_digits(at + 4);
  if (hour > 23 || at[3] != ':' || minute > 59) return false;
  moment.second = hour * 3600 + minute * 60;
  at += 6;
  if (end - at >= 3 && *at == ':') {
    const int second = two_digits(at + 1);
    if (second > 59) return false;
    moment.second += second;
    at += 3;
    if (!read_fraction(at, end, column.most, moment)) return false;
  }
  return (column.kind != CS_ZONED || read_zone(at, end, moment)) && at == end;
}

}  // namespace csvscan

#endif
