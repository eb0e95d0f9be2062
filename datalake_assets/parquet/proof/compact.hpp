// Thrift's compact protocol, as far as Parquet has need of it. Source: apache/thrift, thrift-compact-protocol.md.
#ifndef PAGECOMPARE_COMPACT_HPP
#define PAGECOMPARE_COMPACT_HPP

#include <climits>

#include "bytes.hpp"

namespace pagecompare {

// Kinds of values in Thrift's compact protocol.
enum Kind {
  STOP = 0,
  YES = 1,
  NO = 2,
  I8 = 3,
  I16 = 4,
  I32 = 5,
  I64 = 6,
  REAL = 7,
  BINARY = 8,
  LIST = 9,
  SET = 10,
  MAP = 11,
  STRUCT = 12
};

constexpr int DEEPEST = 48;

class Reader {
 public:
  explicit Reader(Span span) : at_(span.data), end_(span.data + span.size) {}

  const uint8_t* at() const { return at_; }

  // The next field of a structure whose last one was `id`; false at its end.
  bool next(int& id, int& kind) {
    uint8_t head = byte();
    if ((head & 15) == STOP) {
      if (head) fail();
      return false;
    }
    kind = head & 15;
    int64_t number = head >> 4 ? id + (head >> 4) : integer();
    if (number <= id || number > SHRT_MAX) fail();  // writers go up, and each is there once
    id = static_cast<int>(number);
    return true;
  }

  int64_t integer() {
    uint64_t number = varint();
    return static_cast<int64_t>(number >> 1) ^ -static_cast<int64_t>(number & 1);
  }

  int64_t integer(int kind, int wanted) {
    expect(kind, wanted);
    return integer();
  }

  bool truth(int kind) {
    if (kind != YES && kind != NO) fail();
    return kind == YES;
  }

  Span text(int kind) {
    expect(kind, BINARY);
    uint64_t size = varint();
    if (size > left()) fail();
    Span found{at_, size};
    at_ += size;
    return found;
  }

  // The number of elements in a list of structures.
  uint64_t structures(int kind) { return elements(kind, STRUCT); }

  // The number of elements in a list of this kind.
  uint64_t elements(int kind, int wanted) {
    expect(kind, LIST);
    int inner;
    uint64_t count = list(inner);
    if (count && inner != wanted && !(wanted == YES && inner == NO)) fail();
    return count;
  }

  // A truth in a list; some writers have 0 for what is false.
  bool listed_truth() { return byte() == YES; }

  void skip(int kind, int depth = 0) {
    if (depth > DEEPEST) fail();
    switch (kind) {
      case YES:
      case NO:
        return;
      case I8:
        byte();
        return;
      case I16:
      case I32:
      case I64:
        varint();
        return;
      case REAL:
        for (int i = 0; i < 8; i++) byte();
        return;
      case BINARY:
        text(kind);
        return;
      case LIST:
      case SET: {
        int inner;
        for (uint64_t count = list(inner); count; count--) element(inner, depth);
        return;
      }
      case MAP: {
        uint64_t count = varint();
        if (!count) return;
        uint8_t kinds = byte();
        if (count > left()) fail();
        for (; count; count--) element(kinds >> 4, depth), element(kinds & 15, depth);
        return;
      }
      case STRUCT: {
        int id = 0, inner;
        while (next(id, inner)) skip(inner, depth + 1);
        return;
      }
      default:
        fail();
    }
  }

  static void expect(int kind, int wanted) {
    if (kind != wanted) fail();
  }

  [[noreturn]] static void fail() { throw Unclear{"its metadata are damaged"}; }

 private:
  uint64_t left() const { return static_cast<uint64_t>(end_ - at_); }

  uint8_t byte() {
    if (at_ == end_) fail();
    return *at_++;
  }

  uint64_t varint() {
    uint64_t number = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      uint8_t next = byte();
      if (shift == 63 && next > 1) break;  // only one bit is left
      number |= uint64_t(next & 127) << shift;
      if (next < 128) return number;
    }
    fail();
  }

  uint64_t list(int& inner) {
    uint8_t head = byte();
    inner = head & 15;
    uint64_t count = head >> 4 == 15 ? varint() : head >> 4;
    if (count > left() || inner > STRUCT) fail();  // of an empty list the kind has to be one, too, for others
    return count;
  }

  // In a list, truths are bytes.
  void element(int kind, int depth) {
    if (kind == YES || kind == NO)
      byte();
    else
      skip(kind, depth + 1);
  }

  const uint8_t *at_, *end_;
};

}  // namespace pagecompare

#endif
