#include "csvscan.h"

#include "values.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define CS_EXPORT __attribute__((visibility("default")))

namespace csvscan {
namespace {

constexpr int64_t WIDTH = 16;

// Bytes of three kinds, looked for many at once.
class Marks {
 public:
  Marks(u8 one, u8 two, u8 three) : one_(one), two_(two), three_(three) {}

  bool has(u8 byte) const { return byte == one_ || byte == two_ || byte == three_; }

  // Which of the next WIDTH bytes are such, the first in the lowest bit.
  unsigned among(const u8* at) const {
#if defined(__SSE2__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return static_cast<unsigned>(
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(equal(bytes, one_), equal(bytes, two_)), equal(bytes, three_))));
#else
    unsigned found = 0;
    for (int64_t each = 0; each < WIDTH; ++each) found |= static_cast<unsigned>(has(at[each])) << each;
    return found;
#endif
  }

  const u8* next(const u8* at, const u8* end) const {
    while (end - at >= WIDTH) {
      if (const unsigned found = among(at)) return at + __builtin_ctz(found);
      at += WIDTH;
    }
    while (at < end && !has(*at)) ++at;
    return at;
  }

 private:
#if defined(__SSE2__)
  static __m128i equal(__m128i bytes, u8 byte) { return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(static_cast<char>(byte))); }
#endif

  u8 one_, two_, three_;
};

// A field, and what follows it; false: its quotes are not where they may be.
bool read_field(const u8*& at, const u8* end, u8 quote, const Marks& marks, Field& field, bool& is_quoted) {
  is_quoted = quote && at < end && *at == quote;
  if (!is_quoted) {
    field.at = at;
    at = marks.next(at, end);
    field.end = at;
    return true;
  }
  field.at = ++at;
  while (true) {
    at = static_cast<const u8*>(std::memchr(at, quote, static_cast<size_t>(end - at)));
    if (!at) return false;
    if (at + 1 == end || at[1] != quote) break;
    at += 2;
  }
  field.end = at++;
  return at == end || marks.has(*at);
}

bool is_null(Field field, const CsvForm& form) {
  const u8* text = form.nulls;
  for (int64_t each = 0; each < form.null_count; text += form.null_sizes[each++]) {
    const int64_t size = form.null_sizes[each];
    if (field.size() == size && !std::memcmp(field.at, text, static_cast<size_t>(size))) return true;
  }
  return false;
}

// Passes the end of a line; both of its bytes, if it has two.
void skip_line_end(const u8*& at, const u8* end) {
  if (at >= end) return;
  const bool is_return = *at++ == '\r';
  if (is_return && at < end && *at == '\n') ++at;
}

bool take(Field field, bool is_quoted, const CsvForm& form, CsvColumn& column) {
  if (column.kind == CS_ANY) return true;
  if (!field.size()) return !is_quoted || column.kind != CS_NOTHING;
  if (!is_quoted && form.null_count && is_null(field, form)) return true;
  // a quote that is written twice is one
  if (is_quoted && std::memchr(field.at, form.quote, static_cast<size_t>(field.size()))) return false;
  ++column.values;
  return fits(field, column);
}

bool read_record(const u8*& at, const u8* end, const CsvForm& form, const Marks& marks, CsvColumn* columns,
                 int64_t count) {
  for (int64_t number = 0; number < count; ++number) {
    Field field{};
    bool is_quoted = false;
    if (!read_field(at, end, form.quote, marks, field, is_quoted)) return false;
    if (!take(field, is_quoted, form, columns[number])) return false;
    const bool has_more = at < end && *at == form.delimiter;
    if (has_more != (number + 1 < count)) return false;
    if (has_more) ++at;
  }
  skip_line_end(at, end);
  return true;
}

// Whether numbers are ones that a decimal, or 64 bits, are sure to hold.
bool holds(const CsvColumn& column) {
  return column.kind != CS_NUMBER ||
         column.digits + column.scale <= (column.has_point ? DECIMAL_DIGITS : INTEGER_DIGITS);
}

// The places of quotes, one after the other: whether each stands where it may.
class Quotes {
 public:
  Quotes(const u8* data, int64_t size, u8 delimiter) : data_(data), size_(size), delimiter_(delimiter) {}

  bool are_open() const { return are_open_; }

  bool take(int64_t place) {
    are_open_ = !are_open_;
    if (!are_open_) {
      closed_ = place;
      const int64_t after = place + 1;
      // another quote may follow, which opens again
      return after == size_ || data_[after] == data_[place] || is_mark(data_[after]);
    }
    return place == 0 || place == closed_ + 1 || is_mark(data_[place - 1]);
  }

 private:
  bool is_mark(u8 byte) const { return byte == delimiter_ || byte == '\n' || byte == '\r'; }

  const u8* data_;
  int64_t size_, closed_ = -2;
  u8 delimiter_;
  bool are_open_ = false;
};

// Finds where records end, by the quotes and the ends of lines before.
class Cutter {
 public:
  Cutter(const u8* data, int64_t size, const CsvForm& form, bool is_end)
      : data_(data), size_(size), quote_(form.quote), is_end_(is_end), quotes_(data, size, form.delimiter) {}

  CsvCut cut() {
    // without quotes, a line's end stands for one
    const Marks marks('\n', '\r', quote_ ? quote_ : static_cast<u8>('\n'));
    int64_t at = 0;
    for (; at + WIDTH <= size_; at += WIDTH) {
      for (unsigned found = marks.among(data_ + at); found; found &= found - 1) {
        if (!take(at + __builtin_ctz(found))) return CsvCut{};
      }
    }
    for (; at < size_; ++at) {
      if (marks.has(data_[at]) && !take(at)) return CsvCut{};
    }
    if (is_end_ && !quotes_.are_open()) {
      cut_ = size_;
      lines_ = seen_;
    }
    return CsvCut{cut_, lines_, 1, 0};
  }

 private:
  bool take(int64_t place) {
    if (quote_ && data_[place] == quote_) return quotes_.take(place);
    // a carriage return may be half of a line's end
    if (data_[place] == '\r' && (place + 1 < size_ ? data_[place + 1] == '\n' : !is_end_)) return true;
    ++seen_;
    if (!quotes_.are_open()) {
      cut_ = place + 1;
      lines_ = seen_;
    }
    return true;
  }

  const u8* data_;
  int64_t size_, cut_ = 0, lines_ = 0, seen_ = 0;
  u8 quote_;
  bool is_end_;
  Quotes quotes_;
};

}  // namespace
}  // namespace csvscan

extern "C" {

CS_EXPORT int32_t cs_version(void) { return CS_VERSION; }

CS_EXPORT void cs_cut(const uint8_t* data, int64_t size, const CsvForm* form, int32_t is_end, CsvCut* cut) {
  *cut = csvscan::Cutter(data, size, *form, is_end != 0).cut();
}

CS_EXPORT int64_t cs_scan(const uint8_t* data, int64_t size, const CsvForm* form, CsvColumn* columns, int64_t count) {
  const csvscan::Marks marks('\n', '\r', form->delimiter);
  const uint8_t *at = data, *end = data + size;
  int64_t records = 0;
  while (at < end) {
    if (*at == '\n' || *at == '\r') {
      ++at;
      continue;
    }
    if (!csvscan::read_record(at, end, *form, marks, columns, count)) return -1;
    ++records;
  }
  for (int64_t number = 0; number < count; ++number) {
    if (!csvscan::holds(columns[number])) return -1;
  }
  return records;
}
}
