// Facts of the Parquet format that everything here rests on, and the types that all files share.
//
// Sources: apache/parquet-format, src/main/thrift/parquet.thrift, README.md, Encodings.md, Compression.md, PageIndex.md
// and BloomFilter.md; the Thrift compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md).
//
// What a file looks like:
//
//     "PAR1"  column chunk ... column chunk  [bloom filters] [column indexes] [offset indexes]  footer  length  "PAR1"
//
// - The footer is one Thrift struct (FileMetaData): the schema as a list of elements in depth-first order, row groups
//   with a column chunk for each leaf of the schema, key-values. Its length is a 32-bit number before the last magic.
// - A column chunk is a run of pages, each a Thrift header and a body of the length that the header says. A dictionary
//   page comes first, if there is one. Data pages are of version 1, whose levels are compressed together with the
//   values, or of version 2, whose levels lie uncompressed before the values.
// - Nested values are levels and values: a definition level says how much of the path to a value is there (a value
//   exists where it is the leaf's highest), a repetition level of 0 begins a row. So rows can be cut, moved and joined
//   by their levels, and nobody has to know what the nesting means.
// - PLAIN is the values' bytes one after the other, little-endian; byte arrays have a 32-bit length before each.
//   A dictionary page is PLAIN too. Therefore a dictionary that its indices go through once, from its start to its end,
//   holds the same bytes as a PLAIN page of these values: relabelled, it need not be decompressed.
// - Raw Snappy is a length and a sequence of elements that refer back by distance, never by place. So sequences that
//   are sound by themselves can be put one behind the other under the sum of their lengths. Zstandard's frames may
//   follow each other (RFC 8878, section 3.1). In this way pages are joined without being compressed again.
//
// What is not trusted: anything that comes from an input. Each length, offset and count is compared with what is left
// before it is used, each allocation counts against the merge's memory limit, recursion has a depth. Whatever is not
// understood is refused with its reason, by a `Refusal` that never crosses the C interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "pagemerge.h"

// Sizes that fuzzing makes smaller, so that small files take all ways through the code.
#ifndef PM_SMALL_PAGE_BYTES
#define PM_SMALL_PAGE_BYTES (32 << 10)
#endif
#ifndef PM_SPLIT_PAGE_BYTES
#define PM_SPLIT_PAGE_BYTES PM_SMALL_PAGE_BYTES
#endif
#ifndef PM_TRIAL_VALUES
#define PM_TRIAL_VALUES 1000
#endif

namespace pagemerge {

using u8 = uint8_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i32 = int32_t;
using i64 = int64_t;

// ---- refusals

struct Refusal {
  pm_code code;
  std::string reason;
};

[[noreturn]] inline void refuse(pm_code code, std::string reason) { throw Refusal{code, std::move(reason)}; }

// The input is damaged: it contradicts itself or ends early.
inline void need(bool sound, const char* reason) {
  if (__builtin_expect(!sound, 0)) refuse(PM_DAMAGED, reason);
}

// The input may be sound, but is not for this kernel.
inline void support(bool supported, const char* reason) {
  if (__builtin_expect(!supported, 0)) refuse(PM_UNSUPPORTED, reason);
}

// ---- memory

// What one call may allocate for data; metadata of files counts with the bytes that it is parsed from.
struct Budget {
  size_t limit = SIZE_MAX, used = 0, peak = 0;

  void take(size_t bytes) {
    if (bytes > limit - used) refuse(PM_MEMORY, "it needs more memory than is allowed");
    used += bytes;
    if (used > peak) peak = used;
  }
  void give(size_t bytes) { used -= bytes; }
};

extern thread_local Budget* budget;  // of the call that runs in this thread

// Slack behind every buffer of ours: loads of 64 bits and copies of 32 bytes may run over its end.
constexpr size_t SLACK = 64;

struct Bytes {
  u8* data = nullptr;
  size_t size = 0;

  Bytes() = default;
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  Bytes(Bytes&& other) noexcept { swap(other); }
  Bytes& operator=(Bytes&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Bytes() { drop(); }

  void swap(Bytes& other) noexcept {
    std::swap(data, other.data);
    std::swap(size, other.size);
    std::swap(capacity_, other.capacity_);
  }
  void reserve(size_t bytes) {
    if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
    if (bytes + SLACK <= capacity_) return;
    size_t grown = capacity_ + capacity_ / 2;
    size_t wanted = bytes + SLACK > grown ? bytes + SLACK : grown;
    if (budget) {  // not more than is allowed where less would do
      size_t left = budget->limit - budget->used + capacity_;
      if (wanted > left && bytes + SLACK <= left) wanted = bytes + SLACK;
      budget->take(wanted - capacity_);
    }
    u8* moved = static_cast<u8*>(realloc(data, wanted));
    if (!moved) {
      if (budget) budget->give(wanted - capacity_);
      throw std::bad_alloc();
    }
    data = moved;
    capacity_ = wanted;
  }
  u8* grow(size_t bytes) {
    reserve(size + bytes);
    u8* at = data + size;
    size += bytes;
    return at;
  }
  void put(const void* from, size_t bytes) {
    if (bytes) memcpy(grow(bytes), from, bytes);
  }
  void put_byte(u8 byte) { *grow(1) = byte; }
  void clear() { size = 0; }
  void drop() {
    free(data);
    if (budget) budget->give(capacity_);
    data = nullptr;
    size = capacity_ = 0;
  }
  // The memory is the caller's from here on.
  u8* release() {
    u8* given = data;
    if (budget) budget->give(capacity_);
    data = nullptr;
    size = capacity_ = 0;
    return given;
  }

 private:
  size_t capacity_ = 0;
};

// Numbers in a buffer of their own; their memory counts as other data does.
template <class T>
class Numbers {
 public:
  void resize(size_t count) {
    bytes_.reserve(count * sizeof(T));
    bytes_.size = count * sizeof(T);
  }
  void push(T value) { memcpy(bytes_.grow(sizeof(T)), &value, sizeof(T)); }
  void fill(size_t count, T value) {
    resize(count);
    for (size_t i = 0; i < count; i++) data()[i] = value;
  }
  void clear() { bytes_.clear(); }
  void swap(Numbers& other) { bytes_.swap(other.bytes_); }
  size_t size() const { return bytes_.size / sizeof(T); }
  T* data() { return reinterpret_cast<T*>(bytes_.data); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data); }
  T& operator[](size_t at) { return data()[at]; }
  const T& operator[](size_t at) const { return data()[at]; }

 private:
  Bytes bytes_;
};

// Bytes of somebody else.
struct View {
  const u8* data = nullptr;
  size_t size = 0;

  const u8* end() const { return data + size; }
  bool operator==(const View& other) const { return size == other.size && (!size || !memcmp(data, other.data, size)); }
  bool operator!=(const View& other) const { return !(*this == other); }
};

template <class T>
inline T load(const u8* from) {
  T value;
  memcpy(&value, from, sizeof(T));
  return value;
}

// ---- numbers of the format

enum Type { BOOLEAN, INT32, INT64, INT96, FLOAT, DOUBLE, BYTE_ARRAY, FIXED_LEN_BYTE_ARRAY };
enum Encoding {
  PLAIN = 0,
  PLAIN_DICTIONARY = 2,  // of before 2.0: RLE_DICTIONARY in data pages, PLAIN in dictionary pages
  RLE = 3,
  DELTA_BINARY_PACKED = 5,
  DELTA_LENGTH_BYTE_ARRAY = 6,
  DELTA_BYTE_ARRAY = 7,
  RLE_DICTIONARY = 8,
  BYTE_STREAM_SPLIT = 9
};
enum PageType { DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 };
enum Codec { UNCOMPRESSED, SNAPPY, GZIP, LZO, BROTLI, LZ4_HADOOP, ZSTD, LZ4_RAW };

// How values of a leaf are ordered in statistics (parquet.thrift, ColumnOrder); NONE: nobody may say a minimum.
enum class Order { NONE, SIGNED, UNSIGNED, FLOATING, BYTES, SIGNED_BIG_ENDIAN };

constexpr i64 MAX_PAGE_BYTES = 1 << 28;    // more is damage, or meant to do harm
constexpr i64 MAX_CHUNK_VALUES = 1 << 27;  // of one column chunk

}  // namespace pagemerge
