#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace pagemerge {
namespace {

template <class T>
std::string bytes_of(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T value_of(const std::string& text) {
  return load<T>(reinterpret_cast<const u8*>(text.data()));
}

template <class T>
MinMax of_integers(const u8* at, size_t count) {
  if (!count) return {};
  T low = load<T>(at), high = low;
  for (size_t i = 1; i < count; i++) {
    T value = load<T>(at + i * sizeof(T));
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  return {true, bytes_of(low), bytes_of(high)};
}

template <class T>
MinMax of_floats(const u8* at, size_t count) {
  T low = std::numeric_limits<T>::infinity(), high = -low;
  bool found = false;
  for (size_t i = 0; i < count; i++) {
    T value = load<T>(at + i * sizeof(T));
    found |= value == value;
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  if (!found) return {};
  if (low == 0) low = -static_cast<T>(0);
  if (high == 0) high = 0;
  return {true, bytes_of(low), bytes_of(high)};
}

int compare_bytes(const u8* one, size_t size, const u8* other, size_t other_size) {
  int order = memcmp(one, other, std::min(size, other_size));
  return order ? order : size < other_size ? -1 : size > other_size;
}

// Two's complement, the most significant byte first.
int compare_big_endian(const u8* one, const u8* other, size_t size) {
  int high = static_cast<int8_t>(one[0]), other_high = static_cast<int8_t>(other[0]);
  if (high != other_high) return high < other_high ? -1 : 1;
  return memcmp(one + 1, other + 1, size - 1);
}

MinMax of_byte_arrays(const u8* at, size_t count) {
  if (!count) return {};
  View low, high;
  for (size_t i = 0; i < count; i++) {
    View value{at + 4, load<u32>(at)};
    at = value.end();
    if (!i) {
      low = high = value;
    } else if (compare_bytes(value.data, value.size, low.data, low.size) < 0) {
      low = value;
    } else if (compare_bytes(value.data, value.size, high.data, high.size) > 0) {
      high = value;
    }
  }
  auto text = [](View value) { return std::string(reinterpret_cast<const char*>(value.data), value.size); };
  return {true, text(low), text(high)};
}

MinMax of_fixed(const Leaf& leaf, const u8* at, size_t count) {
  if (!count) return {};
  size_t width = leaf.width();
  bool is_number = leaf.order == Order::SIGNED_BIG_ENDIAN;
  auto before = [&](const u8* one, const u8* other) {
    return (is_number ? compare_big_endian(one, other, width) : memcmp(one, other, width)) < 0;
  };
  const u8 *low = at, *high = at;
  for (size_t i = 1; i < count; i++) {
    const u8* value = at + i * width;
    if (before(value, low)) low = value;
    if (before(high, value)) high = value;
  }
  auto text = [&](const u8* value) { return std::string(reinterpret_cast<const char*>(value), width); };
  return {true, text(low), text(high)};
}

template <class T>
int compare_as(const std::string& one, const std::string& other) {
  T a = value_of<T>(one), b = value_of<T>(other);
  return a < b ? -1 : a > b;
}

template <class T>
void widen(std::string& min, std::string& max) {
  if (value_of<T>(min) == 0) min = bytes_of(-static_cast<T>(0));
  if (value_of<T>(max) == 0) max = bytes_of(static_cast<T>(0));
}

}  // namespace

MinMax min_max(const Leaf& leaf, const u8* plain, size_t count) {
  switch (leaf.order) {
    case Order::NONE:
      return {};
    case Order::SIGNED:
      return leaf.type == INT32 ? of_integers<i32>(plain, count) : of_integers<i64>(plain, count);
    case Order::UNSIGNED:
      if (leaf.type == BOOLEAN) return of_integers<u8>(plain, count);
      return leaf.type == INT32 ? of_integers<u32>(plain, count) : of_integers<u64>(plain, count);
    case Order::FLOATING:
      return leaf.type == FLOAT ? of_floats<float>(plain, count) : of_floats<double>(plain, count);
    default:
      return leaf.type == BYTE_ARRAY ? of_byte_arrays(plain, count) : of_fixed(leaf, plain, count);
  }
}

int compare(const Leaf& leaf, const std::string& one, const std::string& other) {
  const u8 *a = reinterpret_cast<const u8*>(one.data()), *b = reinterpret_cast<const u8*>(other.data());
  switch (leaf.order) {
    case Order::SIGNED:
      return leaf.type == INT32 ? compare_as<i32>(one, other) : compare_as<i64>(one, other);
    case Order::UNSIGNED:
      if (leaf.type == BOOLEAN) return compare_as<u8>(one, other);
      return leaf.type == INT32 ? compare_as<u32>(one, other) : compare_as<u64>(one, other);
    case Order::FLOATING:
      return leaf.type == FLOAT ? compare_as<float>(one, other) : compare_as<double>(one, other);
    case Order::SIGNED_BIG_ENDIAN:
      return compare_big_endian(a, b, one.size());
    default:
      return compare_bytes(a, one.size(), b, other.size());
  }
}

bool is_number(const Leaf& leaf, const std::string& value) {
  return leaf.type == FLOAT ? !std::isnan(value_of<float>(value)) : !std::isnan(value_of<double>(value));
}

void widen_zeros(const Leaf& leaf, std::string& min, std::string& max) {
  if (leaf.type == FLOAT) {
    widen<float>(min, max);
  } else {
    widen<double>(min, max);
  }
}

bool stated_min_max(const Leaf& leaf, const Chunk& chunk, MinMax& stated) {
  if (leaf.order == Order::NONE || !chunk.has_min || !chunk.has_max) return false;
  if (leaf.type != BYTE_ARRAY && (chunk.min.size != leaf.width() || chunk.max.size != leaf.width())) return false;
  stated.min.assign(reinterpret_cast<const char*>(chunk.min.data), chunk.min.size);
  stated.max.assign(reinterpret_cast<const char*>(chunk.max.data), chunk.max.size);
  if (leaf.order == Order::FLOATING) {
    if (!is_number(leaf, stated.min) || !is_number(leaf, stated.max)) return false;
    widen_zeros(leaf, stated.min, stated.max);
  }
  stated.exact = chunk.says_exact || leaf.type != BYTE_ARRAY;
  stated.found = compare(leaf, stated.min, stated.max) <= 0;
  return stated.found;
}

// ---- bloom filters

namespace {

constexpr u32 SALT[8] = {0x47b6137bU, 0x44974d91U, 0x8824ad5bU, 0xa2b7289dU,  // BloomFilter.md
                         0x705495c7U, 0x2df1424bU, 0x9efc4947U, 0x5c6bfb31U};
constexpr size_t FILTER_BLOCK_BYTES = 32, MAX_FILTER_BYTES = 128 << 20;
constexpr double FALSE_POSITIVES = 0.05;  // Parquet's default, and the one of our other encoder

// Bytes for so many distinct values, a power of two.
size_t filter_bytes(size_t distinct) {
  double bits = -8.0 * static_cast<double>(distinct) / std::log(1 - std::pow(FALSE_POSITIVES, 1.0 / 8));
  size_t bytes = FILTER_BLOCK_BYTES;
  while (bytes < MAX_FILTER_BYTES && static_cast<double>(bytes) * 8 < bits) bytes *= 2;
  return bytes;
}

}  // namespace

void BloomFilter::add(const Leaf& leaf, const u8* plain, size_t count) {
  size_t width = leaf.width(), before = hashes_.size();
  hashes_.resize(before + count);
  for (size_t i = 0; i < count; i++) {
    size_t size = width;
    if (!width) {
      size = load<u32>(plain);
      plain += 4;
    }
    hashes_[before + i] = XXH64(plain, size, 0);
    plain += size;
  }
}

void BloomFilter::write(Bytes& out) {
  u64* begin = hashes_.data();
  std::sort(begin, begin + hashes_.size());
  size_t distinct = static_cast<size_t>(std::unique(begin, begin + hashes_.size()) - begin);
  size_t size = filter_bytes(distinct);
  ThriftWriter header;
  header.open();
  header.int32(1, static_cast<i64>(size));
  for (int choice = 2; choice <= 4; choice++) {  // split block, xxHash, uncompressed: the only ones
    header.open(choice);
    header.empty(1);
    header.close();
  }
  header.close();
  out.put(header.bytes.data, header.bytes.size);
  u8* filter = out.grow(size);
  memset(filter, 0, size);
  u64 blocks = size / FILTER_BLOCK_BYTES;
  for (size_t i = 0; i < distinct; i++) {
    u8* block = filter + (((begin[i] >> 32) * blocks) >> 32) * FILTER_BLOCK_BYTES;
    u32 key = static_cast<u32>(begin[i]);
    for (size_t word = 0; word < 8; word++) {
      u32 bits = load<u32>(block + 4 * word) | 1u << ((key * SALT[word]) >> 27);
      memcpy(block + 4 * word, &bits, 4);
    }
  }
}

}  // namespace pagemerge
