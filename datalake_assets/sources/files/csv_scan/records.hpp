// Where records and their fields are.
#ifndef DATALAKE_CSVSCAN_RECORDS_HPP
#define DATALAKE_CSVSCAN_RECORDS_HPP

#include "csvscan.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace csvscan {

using u8 = uint8_t;
using u32 = uint32_t;
using u64 = uint64_t;

// Bytes that are looked at together.
constexpr int64_t WIDTH = 64;

// Bytes of four kinds, looked for many at once.
class Marks {
 public:
  Marks(u8 one, u8 two, u8 three, u8 four) : marks_{one, two, three, four} {}

  bool has(u8 byte) const { return byte == marks_[0] || byte == marks_[1] || byte == marks_[2] || byte == marks_[3]; }

  // Which of the next WIDTH bytes are such, the first in the lowest bit.
  u64 among(const u8* at) const {
    u64 found = 0;
#if defined(__SSE2__)
    for (int64_t each = 0; each < WIDTH; each += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + each));
      const __m128i some = _mm_or_si128(equal(bytes, marks_[0]), equal(bytes, marks_[1]));
      const __m128i others = _mm_or_si128(equal(bytes, marks_[2]), equal(bytes, marks_[3]));
      found |= static_cast<u64>(static_cast<u32>(_mm_movemask_epi8(_mm_or_si128(some, others)))) << each;
    }
#else
    for (int64_t each = 0; each < WIDTH; ++each) found |= static_cast<u64>(has(at[each])) << each;
#endif
    return found;
  }

  // Gives the places of all to a function, in their order, until it says no; false if it does.
  template <class Take>
  bool each(const u8* data, int64_t size, Take take) const {
    int64_t at = 0;
    for (; at + WIDTH <= size; at += WIDTH) {
      for (u64 found = among(data + at); found; found &= found - 1) {
        if (!take(at + __builtin_ctzll(found))) return false;
      }
    }
    for (; at < size; ++at) {
      if (has(data[at]) && !take(at)) return false;
    }
    return true;
  }

 private:
#if defined(__SSE2__)
  static __m128i equal(__m128i bytes, u8 byte) { return _mm_cmpeq_epi8(bytes, _mm_set1_epi8(static_cast<char>(byte))); }
#endif

  u8 marks_[4];
};

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
    const Marks marks('\n', '\r', quote_ ? quote_ : static_cast<u8>('\n'), '\n');
    if (!marks.each(data_, size_, [this](int64_t place) { return take(place); })) return CsvCut{};
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

// Finds the fields of records, all of which have as many.
class Indexer {
 public:
  Indexer(const u8* data, int64_t size, const CsvForm& form, CsvField* fields, CsvColumn* columns, int64_t count,
          int64_t room)
      : data_(data),
        size_(size),
        fields_(fields),
        columns_(columns),
        count_(count),
        room_(room),
        delimiter_(form.delimiter),
        quote_(form.quote) {}

  // How many records there are; -1: they are not such.
  int64_t records() {
    if (size_ > CS_SIZE || count_ < 1) return -1;
    for (int64_t number = 0; number < count_; ++number) columns_[number].text_bytes = 0;
    const Marks marks('\n', '\r', delimiter_, quote_ ? quote_ : delimiter_);
    if (!marks.each(data_, size_, [this](int64_t place) { return take(place); }) || is_open_) return -1;
    const bool is_ended = begin_ == size_ && !number_;
    return is_ended || (end_field(size_) && end_record()) ? record_ : -1;
  }

 private:
  bool take(int64_t place) {
    const u8 byte = data_[place];
    if (quote_ && byte == quote_) return take_quote(place);
    if (is_open_) return true;
    if (byte == delimiter_) return end_field(place);
    // a blank line, or the other half of a line's end
    if (place == begin_ && !number_) {
      ++begin_;
      return true;
    }
    return end_field(place) && end_record();
  }

  bool take_quote(int64_t place) {
    is_open_ = !is_open_;
    if (is_open_) return quotes_++ ? place == closed_ + 1 : place == begin_;
    ++quotes_;
    closed_ = place;
    return true;
  }

  bool end_field(int64_t end) {
    if (number_ >= count_ || record_ >= room_) return false;
    u32 flags = 0;
    int64_t begin = begin_;
    begin_ = end + 1;
    if (quotes_) {
      if (closed_ != --end) return false;
      ++begin;
      flags = CS_QUOTED | (quotes_ > 2 ? CS_DOUBLED : 0);
      quotes_ = 0;
    }
    columns_[number_].text_bytes += end - begin;
    fields_[number_ * room_ + record_] = CsvField{static_cast<u32>(begin), static_cast<u32>(end - begin) | flags};
    ++number_;
    return true;
  }

  bool end_record() {
    if (number_ != count_) return false;
    number_ = 0;
    ++record_;
    return true;
  }

  const u8* data_;
  int64_t size_;
  CsvField* fields_;
  CsvColumn* columns_;
  int64_t count_, room_;
  // where the field begins, its column, its record, the quotes in it, and the last of them that closed it
  int64_t begin_ = 0, number_ = 0, record_ = 0, quotes_ = 0, closed_ = 0;
  u8 delimiter_, quote_;
  bool is_open_ = false;
};

}  // namespace csvscan

#endif
