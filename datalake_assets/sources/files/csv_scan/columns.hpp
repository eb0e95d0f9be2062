// What the fields of a column are, and their values in Arrow's layout.
#ifndef DATALAKE_CSVSCAN_COLUMNS_HPP
#define DATALAKE_CSVSCAN_COLUMNS_HPP

#include "values.hpp"

namespace csvscan {

constexpr int64_t DAY_S = 86400, MICRO_DIGITS = 6, NANO_DIGITS = 9;

// The fields of one column.
struct Texts {
  const u8* data;
  const u8* data_end;
  const CsvForm* form;
  const CsvField* fields;
  int64_t records;

  Field field(const CsvField& each) const {
    const u8* at = data + each.at;
    return Field{at, at + (each.size & CS_SIZE)};
  }

  bool is_null(Field field) const {
    const u8* text = form->nulls;
    for (int64_t each = 0; each < form->null_count; text += form->null_sizes[each++]) {
      const int64_t size = form->null_sizes[each];
      if (field.size() == size && !std::memcmp(field.at, text, static_cast<size_t>(size))) return true;
    }
    return false;
  }
};

// Bytes of a value; 0 of those that have no bytes of their own.
inline int64_t width_of(int32_t target) {
  switch (target) {
    case CS_INT32:
    case CS_DAYS:
      return 4;
    case CS_DECIMAL:
      return 16;
    case CS_NO_VALUES:
    case CS_TEXTS:
    case CS_BITS:
      return 0;
    default:
      return 8;
  }
}

inline void clear_bit(u8* bits, int64_t number) { bits[number >> 3] &= static_cast<u8>(~(1u << (number & 7))); }

inline void set_bit(u8* bits, int64_t number) { bits[number >> 3] |= static_cast<u8>(1u << (number & 7)); }

inline size_t bytes_of_bits(int64_t count) { return static_cast<size_t>((count + 7) >> 3); }

template <class Value>
inline void store(const CsvColumn& column, int64_t row, Value value) {
  std::memcpy(column.data + row * static_cast<int64_t>(sizeof value), &value, sizeof value);
}

// What was seen cannot be written as what is wanted.
inline void give_up(CsvColumn& column) { column.target = CS_NO_VALUES; }

// Gives each value that is neither null nor empty to a function, with its row; false as soon as that says so.
template <class Take>
inline bool each_value(const Texts& texts, CsvColumn& column, Take take) {
  const int64_t width = width_of(column.target);
  for (int64_t row = 0; row < texts.records; ++row) {
    const CsvField& each = texts.fields[row];
    const Field field = texts.field(each);
    const bool is_quoted = each.size & CS_QUOTED;
    if (!field.size() || (!is_quoted && texts.form->null_count && texts.is_null(field))) {
      if (is_quoted && column.kind == CS_NOTHING) return false;
      if (column.target == CS_NO_VALUES) continue;
      ++column.nulls;
      clear_bit(column.validity, row);
      std::memset(column.data + row * width, 0, static_cast<size_t>(width));
      continue;
    }
    ++column.values;
    // a quote that is written twice is one
    if (each.size & CS_DOUBLED || !take(row, field)) return false;
  }
  return true;
}

inline Field without_spaces(Field field) {
  while (field.at < field.end && (*field.at == ' ' || *field.at == '\t')) ++field.at;
  while (field.at < field.end && (field.end[-1] == ' ' || field.end[-1] == '\t')) --field.end;
  return field;
}

inline bool read_bools(const Texts& texts, CsvColumn& column) {
  if (column.target == CS_BITS) std::memset(column.data, 0, bytes_of_bits(texts.records));
  return each_value(texts, column, [&](int64_t row, Field field) {
    if (!is_bool(field)) return false;
    if (column.target == CS_BITS && (*field.at | 0x20) == 't') set_bit(column.data, row);
    return true;
  });
}

inline void store_whole(CsvColumn& column, int64_t row, const Number& number) {
  const bool fits = !number.has_point && is_int64(number);
  const auto value = static_cast<int64_t>(number.is_negative ? 0 - number.digits : number.digits);
  if (!fits || (column.target == CS_INT32 && value != static_cast<int32_t>(value))) return give_up(column);
  if (column.target == CS_INT32) return store(column, row, static_cast<int32_t>(value));
  store(column, row, value);
}

inline void store_decimal(CsvColumn& column, int64_t row, const Number& number) {
  const int64_t more = column.places - number.behind;
  if (more < 0 || more > DECIMAL_DIGITS || number.whole > column.precision - column.places) return give_up(column);
  u128 value = number.digits;
  if (number.whole + number.behind > LONG_DIGITS) {
    value = 0;
    for (const u8* at = number.begin; at < number.mantissa_end; ++at) {
      if (*at != '.') value = value * 10 + static_cast<u64>(*at - '0');
    }
  }
  if (more) value *= TENS.whole[more];
  store(column, row, number.is_negative ? 0 - value : value);
}

// Whether numbers are ones that a decimal, or 64 bits, are sure to hold.
inline bool read_numbers(const Texts& texts, CsvColumn& column) {
  bool are_short = true;
  const bool is_right = each_value(texts, column, [&](int64_t row, Field field) {
    Number number;
    if (!take_number(without_spaces(field), column, number)) return false;
    are_short = are_short && is_int64(number);
    switch (column.target) {
      case CS_INT32:
      case CS_INT64:
        store_whole(column, row, number);
        break;
      case CS_DECIMAL:
        store_decimal(column, row, number);
        break;
      default:
        give_up(column);
    }
    return true;
  });
  return is_right && (column.has_point ? column.digits + column.scale <= DECIMAL_DIGITS : are_short);
}

inline bool read_doubles(const Texts& texts, CsvColumn& column) {
  return each_value(texts, column, [&](int64_t row, Field field) {
    const Field text = without_spaces(field);
    Number number;
    double value = std::numeric_limits<double>::quiet_NaN();
    if (read_number(text, number, column.is_settled != 0)) {
      if (!column.is_settled && !is_kept(text, number)) return false;
      if (column.target == CS_REAL && !read_double(text, number, value)) return false;
    } else if (!is_no_number(text)) {
      return false;
    }
    if (column.target == CS_REAL) store(column, row, value);
    return true;
  });
}

inline bool read_dates(const Texts& texts, CsvColumn& column) {
  return each_value(texts, column, [&](int64_t row, Field field) {
    Moment moment;
    if (!is_date(without_spaces(field), moment)) return false;
    if (column.target == CS_DAYS) store(column, row, static_cast<int32_t>(moment.day));
    return true;
  });
}

inline int64_t small_power_of_ten(int64_t exponent) {
  static constexpr int64_t POWERS[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000};
  return POWERS[exponent];
}

inline void store_time(CsvColumn& column, int64_t row, const Moment& moment) {
  const int64_t digits = column.target == CS_NANOS ? NANO_DIGITS : MICRO_DIGITS;
  const bool is_out = column.target == CS_NANOS && (moment.year <= NANOS_FIRST || moment.year >= NANOS_LAST);
  if (is_out || moment.fraction_digits > digits) return give_up(column);
  const int64_t seconds = moment.day * DAY_S + moment.second - moment.offset_s;
  const int64_t fraction = moment.fraction * small_power_of_ten(digits - moment.fraction_digits);
  store(column, row, seconds * small_power_of_ten(digits) + fraction);
}

inline bool read_times(const Texts& texts, CsvColumn& column) {
  return each_value(texts, column, [&](int64_t row, Field field) {
    Moment moment;
    if (!is_time(without_spaces(field), column, moment)) return false;
    if (column.target != CS_NO_VALUES) store_time(column, row, moment);
    return true;
  });
}

// Bytes of a text to where there is room for them and CS_SLACK more; most are few.
inline u8* copy_text(const Texts& texts, Field field, u8* to) {
  if (field.size() <= CS_SLACK && texts.data_end - field.at >= CS_SLACK) {
    std::memcpy(to, field.at, CS_SLACK);
  } else {
    std::memcpy(to, field.at, static_cast<size_t>(field.size()));
  }
  return to + field.size();
}

// The same, and of two quotes one.
inline u8* copy_quoted(Field field, u8 quote, u8* to) {
  for (const u8* at = field.at; at < field.end; ++at) {
    *to++ = *at;
    if (*at == quote) ++at;
  }
  return to;
}

inline void write_texts(const Texts& texts, CsvColumn& column) {
  u8* to = column.data;
  column.offsets[0] = 0;
  for (int64_t row = 0; row < texts.records; ++row) {
    const CsvField& each = texts.fields[row];
    const Field field = texts.field(each);
    if (!(each.size & CS_QUOTED) && (!field.size() || (texts.form->null_count && texts.is_null(field)))) {
      ++column.nulls;
      clear_bit(column.validity, row);
    } else {
      to = each.size & CS_DOUBLED ? copy_quoted(field, texts.form->quote, to) : copy_text(texts, field, to);
    }
    column.offsets[row + 1] = static_cast<int32_t>(to - column.data);
  }
  column.text_bytes = to - column.data;
}

inline bool read_kind(const Texts& texts, CsvColumn& column) {
  switch (column.kind) {
    case CS_ANY:
      give_up(column);
      return true;
    case CS_BOOL:
      return read_bools(texts, column);
    case CS_NUMBER:
      return read_numbers(texts, column);
    case CS_DOUBLE:
      return read_doubles(texts, column);
    case CS_DATE:
      return read_dates(texts, column);
    case CS_TIME:
    case CS_ZONED:
      return read_times(texts, column);
    default:
      return each_value(texts, column, [](int64_t, Field) { return false; });
  }
}

// Whether a target is one that a kind's values can be written as.
inline bool suits(int32_t kind, int32_t target) {
  switch (kind) {
    case CS_BOOL:
      return target == CS_BITS;
    case CS_NUMBER:
      return target == CS_INT32 || target == CS_INT64 || target == CS_DECIMAL;
    case CS_DOUBLE:
      return target == CS_REAL;
    case CS_DATE:
      return target == CS_DAYS;
    case CS_TIME:
    case CS_ZONED:
      return target == CS_MICROS || target == CS_NANOS;
    default:
      return false;
  }
}

// Whether all values are of a column's kind; what is to be known of them is noted there, and they are written.
inline bool read_column(const Texts& texts, CsvColumn& column) {
  // a copy, which no byte that is written can be part of
  CsvColumn own = column;
  own.digits = own.scale = own.has_point = own.in_doubt = own.is_far = 0;
  own.values = own.nulls = 0;
  const bool are_texts = own.target == CS_TEXTS;
  if (are_texts || !suits(own.kind, own.target)) own.target = CS_NO_VALUES;
  if (column.target != CS_NO_VALUES) std::memset(own.validity, 0xFF, bytes_of_bits(texts.records));
  const bool is_right = own.kind == CS_ANY || read_kind(texts, own);
  if (is_right && are_texts) {
    own.target = CS_TEXTS;
    write_texts(texts, own);
  }
  column = own;
  return is_right;
}

}  // namespace csvscan

#endif
