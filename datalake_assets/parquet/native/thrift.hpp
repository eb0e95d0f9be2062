// The Thrift compact protocol, as far as Parquet's footers and page headers need it.
#pragma once

#include <vector>

#include "format.hpp"

namespace pagemerge {

enum ThriftType {
  T_TRUE = 1,
  T_FALSE = 2,
  T_BYTE = 3,
  T_I16 = 4,
  T_I32 = 5,
  T_I64 = 6,
  T_DOUBLE = 7,
  T_BINARY = 8,
  T_LIST = 9,
  T_SET = 10,
  T_MAP = 11,
  T_STRUCT = 12,
  T_UUID = 13
};

// Reads within [at, end), and refuses whatever would lead out of it.
struct ThriftReader {
  const u8* at;
  const u8* end;

  size_t left() const { return static_cast<size_t>(end - at); }
  u8 byte() {
    need(at < end, "its metadata ends early");
    return *at++;
  }
  u64 varint() {
    u64 value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      u8 next = byte();
      if (shift == 63 && next > 1) break;  // of the tenth byte, one bit is left
      value |= static_cast<u64>(next & 127) << shift;
      if (next < 128) return value;
    }
    refuse(PM_DAMAGED, "a number in its metadata is too long");
  }
  i64 zigzag() {
    u64 value = varint();
    return static_cast<i64>(value >> 1) ^ -static_cast<i64>(value & 1);
  }
  i32 int32() {
    i64 value = zigzag();
    need(value >= INT32_MIN && value <= INT32_MAX, "a number in its metadata is too large");
    return static_cast<i32>(value);
  }
  View binary() {
    u64 length = varint();
    need(length <= left(), "a text in its metadata is too long");
    View text{at, static_cast<size_t>(length)};
    at += length;
    return text;
  }
  // An element takes a byte at least, so that no count is larger than what is left.
  u64 list(int& type) {
    u8 head = byte();
    type = head & 15;
    u64 count = head >> 4;
    if (count == 15) count = varint();
    need(count <= left(), "a list in its metadata is too long");
    return count;
  }
  void skip(int type, int depth = 0);
  // Refuses a list here of other elements than the format has there: readers take each for what it should be, whatever
  // is stated, and what follows for something else than whoever skips it.
  void expect_elements(int type) const {
    need(at < end && (!(*at >> 4) || (*at & 15) == type), "a list in its metadata has elements of another type");
  }

  // Calls use(field, type) for each field of a struct, which reads the field, or returns false to have it skipped.
  template <class Use>
  void fields(Use use) {
    int last = 0;
    for (;;) {
      u8 head = byte();
      if (!head) return;
      int type = head & 15;
      i64 field = head >> 4 ? last + (head >> 4) : zigzag();
      need(field > last && field <= INT16_MAX, "fields of its metadata are out of order");
      last = static_cast<int>(field);
      if (!use(last, type)) skip(type);
    }
  }
};

struct ThriftWriter {
  Bytes bytes;

  void varint(u64 value) {
    for (; value > 127; value >>= 7) bytes.put_byte(static_cast<u8>(value & 127) | 128);
    bytes.put_byte(static_cast<u8>(value));
  }
  void zigzag(i64 value) { varint((static_cast<u64>(value) << 1) ^ static_cast<u64>(value >> 63)); }
  void field(int number, int type) {
    int step = number - last_;
    last_ = number;
    if (step > 0 && step <= 15) {
      bytes.put_byte(static_cast<u8>(step << 4 | type));
    } else {
      bytes.put_byte(static_cast<u8>(type));
      zigzag(number);
    }
  }
  void int32(int number, i64 value) {
    if (value < INT32_MIN || value > INT32_MAX) refuse(PM_UNSUPPORTED, "the output would be too large");
    field(number, T_I32);
    zigzag(value);
  }
  void int64(int number, i64 value) {
    field(number, T_I64);
    zigzag(value);
  }
  void int16(int number, i64 value) {
    field(number, T_I16);
    zigzag(value);
  }
  void boolean(int number, bool value) { field(number, value ? T_TRUE : T_FALSE); }
  void text(const void* data, size_t length) {
    varint(length);
    bytes.put(data, length);
  }
  void binary(int number, const void* data, size_t length) {
    field(number, T_BINARY);
    text(data, length);
  }
  void list(int number, int type, size_t count) {
    field(number, T_LIST);
    if (count < 15) {
      bytes.put_byte(static_cast<u8>(count << 4 | static_cast<size_t>(type)));
    } else {
      bytes.put_byte(static_cast<u8>(0xF0 | type));
      varint(count);
    }
  }
  void open() {
    outer_.push_back(last_);
    last_ = 0;
  }
  void open(int number) {
    field(number, T_STRUCT);
    open();
  }
  void close() {
    bytes.put_byte(0);
    last_ = outer_.back();
    outer_.pop_back();
  }
  // A struct without fields, of a union.
  void empty(int number) {
    open(number);
    close();
  }

 private:
  std::vector<int> outer_;
  int last_ = 0;
};

}  // namespace pagemerge
