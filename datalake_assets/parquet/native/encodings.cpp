#include "encodings.hpp"

namespace pagemerge {
namespace {

constexpr size_t MAX_PACKED_GROUPS = 32;  // of eight: see `encode_hybrid`
constexpr const char* TEXT_ENDS_EARLY = "a byte array ends early";
constexpr const char* PAGE_ENDS_EARLY = "a page ends early";

void put_varint(u64 value, Bytes& out) {
  for (; value > 127; value >>= 7) out.put_byte(static_cast<u8>(value & 127) | 128);
  out.put_byte(static_cast<u8>(value));
}

void pack_eight(const u32* values, int bits, u8* out) {
  u64 held = 0;
  int have = 0;
  for (int i = 0; i < 8; i++) {
    held |= static_cast<u64>(values[i]) << have;
    have += bits;
    for (; have >= 8; have -= 8, held >>= 8) *out++ = static_cast<u8>(held);
  }
}

template <class T>
void put_packed(const T* values, size_t count, int bits, Bytes& out) {
  size_t done = 0;
  while (done < count) {
    size_t groups = std::min<size_t>((count - done + 7) / 8, MAX_PACKED_GROUPS);
    out.put_byte(static_cast<u8>(groups << 1 | 1));
    u8* at = out.grow(groups * static_cast<size_t>(bits));
    for (size_t g = 0; g < groups; g++, done += 8, at += bits) {
      u32 eight[8] = {};
      size_t have = std::min<size_t>(8, count - done);
      for (size_t i = 0; i < have; i++) eight[i] = static_cast<u32>(values[done + i]);
      pack_eight(eight, bits, at);
    }
  }
}

// Runs of eight equal numbers and more become runs, all else is packed, as 256 numbers at the most. DuckDB unpacks 32
// at once from where a run begins, and one by one from where it stopped within such a block: whatever it stops for,
// with short runs of whole blocks it goes on so for the rest of one.
template <class T>
void encode_hybrid(const T* values, size_t count, int bits, Bytes& out) {
  if (!bits) {
    if (count) put_varint(static_cast<u64>(count) << 1, out);
    return;
  }
  size_t run_bytes = (static_cast<size_t>(bits) + 7) / 8;
  size_t at = 0, packed_from = 0;
  while (at < count) {
    T value = values[at];
    size_t limit = std::min(count, at + 8), same = at + 1;
    while (same < limit && values[same] == value) same++;
    if (same - at < 8) {
      at = limit;
      continue;
    }
    while (same < count && values[same] == value) same++;
    put_packed(values + packed_from, at - packed_from, bits, out);  // whole groups of eight: see the step above
    put_varint(static_cast<u64>(same - at) << 1, out);
    u64 wide = value;
    out.put(&wide, run_bytes);
    at = packed_from = same;
  }
  put_packed(values + packed_from, count - packed_from, bits, out);
}

// A number of so many bits at the most: other readers take no more bytes for it than these need, be the rest zeros.
u64 read_number(ThriftReader& reader, int bits) {
  const u8* from = reader.at;
  u64 number = reader.varint();
  need(bits > 32 || (reader.at - from <= 5 && number <= UINT32_MAX), "a number among differences is too long");
  return number;
}

i64 signed_of(u64 number) { return static_cast<i64>(number >> 1) ^ -static_cast<i64>(number & 1); }

// DELTA_BINARY_PACKED: blocks of miniblocks of bit-packed differences, of numbers of 32 or 64 bits.
const u8* decode_delta(const u8* at, const u8* end, Numbers<i64>& out, size_t expected, int of_bits) {
  ThriftReader reader{at, end};
  u64 block = read_number(reader, 32), minis = read_number(reader, 32), total = read_number(reader, 32);
  i64 first = signed_of(read_number(reader, of_bits));
  need(block && block % 128 == 0 && block <= (1 << 20) && minis && minis <= 512 && block % minis == 0 &&
           (block / minis) % 8 == 0,
       "the head of differences is damaged");
  need(total == expected, "there is another number of differences");
  size_t per_mini = static_cast<size_t>(block / minis);
  out.resize(total);
  if (!total) return reader.at;
  out[0] = first;
  size_t done = 1;
  u64 value = static_cast<u64>(first);
  while (done < total) {
    u64 least = static_cast<u64>(signed_of(read_number(reader, of_bits)));
    need(reader.left() >= minis, "differences end early");
    const u8* widths = reader.at;
    reader.at += minis;
    for (u64 mini = 0; mini < minis && done < total; mini++) {
      unsigned bits = widths[mini];
      need(bits <= 64, "differences are packed too wide");
      size_t bytes = per_mini * bits / 8, taken = std::min(per_mini, total - done);
      if (bytes > reader.left()) {
        need((taken * bits + 7) / 8 <= reader.left(), "differences end early");
        bytes = reader.left();
      }
      u64 bit = 0;
      for (size_t i = 0; i < taken; i++, bit += bits) {
        u64 difference = 0;
        if (bits) {
          const u8* from = reader.at + (bit >> 3);
          unsigned shift = bit & 7;
          difference = load<u64>(from) >> shift;
          if (shift && bits > 64 - shift) difference |= static_cast<u64>(from[8]) << (64 - shift);
          if (bits < 64) difference &= (1ull << bits) - 1;
        }
        value += least + difference;
        out[done++] = static_cast<i64>(value);
      }
      reader.at += bytes;
    }
  }
  return reader.at;
}

void decode_plain(const Leaf& leaf, const u8* at, const u8* end, size_t count, Bytes& out) {
  size_t left = static_cast<size_t>(end - at);
  if (leaf.type == BOOLEAN) {
    need(left >= (count + 7) / 8, PAGE_ENDS_EARLY);
    u8* to = out.grow(count);
    for (size_t i = 0; i < count; i++) to[i] = at[i >> 3] >> (i & 7) & 1;
  } else if (leaf.type == BYTE_ARRAY) {
    out.put(at, walk_byte_arrays(at, end, count, nullptr));  // more may follow: fastparquet fills pages up
  } else {
    need(left / leaf.width() >= count, PAGE_ENDS_EARLY);
    out.put(at, count * leaf.width());
  }
}

void decode_lengths_and_texts(const u8* at, const u8* end, size_t count, Bytes& out, DecodeScratch& scratch) {
  at = decode_delta(at, end, scratch.numbers, count, 32);
  for (size_t i = 0; i < count; i++) {
    i64 length = scratch.numbers[i];
    need(length >= 0 && length <= end - at, TEXT_ENDS_EARLY);
    u32 head = static_cast<u32>(length);
    u8* to = out.grow(4 + head);
    memcpy(to, &head, 4);
    memcpy(to + 4, at, head);
    at += head;
  }
}

// DELTA_BYTE_ARRAY: each value begins with a part of the one before.
void decode_prefixed(const Leaf& leaf, const u8* at, const u8* end, size_t count, Bytes& out, DecodeScratch& scratch) {
  at = decode_delta(at, end, scratch.numbers, count, 32);
  at = decode_delta(at, end, scratch.more_numbers, count, 32);
  size_t head_bytes = leaf.type == BYTE_ARRAY ? 4 : 0;
  size_t last = 0, last_bytes = 0;
  for (size_t i = 0; i < count; i++) {
    i64 prefix = scratch.numbers[i], suffix = scratch.more_numbers[i];
    need(prefix >= 0 && static_cast<u64>(prefix) <= last_bytes && suffix >= 0 && suffix <= end - at, TEXT_ENDS_EARLY);
    size_t length = static_cast<size_t>(prefix) + static_cast<size_t>(suffix);
    need(length <= MAX_PAGE_BYTES && (head_bytes || length == leaf.width()), "a value has another length");
    u8* to = out.grow(head_bytes + length);
    u32 head = static_cast<u32>(length);
    memcpy(to, &head, head_bytes);
    to += head_bytes;
    if (prefix) memcpy(to, out.data + last, static_cast<size_t>(prefix));
    if (suffix) memcpy(to + prefix, at, static_cast<size_t>(suffix));
    at += suffix;
    last = static_cast<size_t>(to - out.data);
    last_bytes = length;
  }
}

}  // namespace

void encode_levels(const u8* levels, size_t count, int bits, Bytes& out) { encode_hybrid(levels, count, bits, out); }
void encode_indices(const u32* indices, size_t count, int bits, Bytes& out) {
  encode_hybrid(indices, count, bits, out);
}

size_t walk_byte_arrays(const u8* at, const u8* end, size_t count, u32* ends) {
  const u8* begin = at;
  for (size_t i = 0; i < count; i++) {
    need(end - at >= 4, TEXT_ENDS_EARLY);
    u32 length = load<u32>(at);
    at += 4;
    need(length <= static_cast<size_t>(end - at), TEXT_ENDS_EARLY);
    at += length;
    if (ends) ends[i] = static_cast<u32>(at - begin);
  }
  return static_cast<size_t>(at - begin);
}

void decode_values(const Leaf& leaf, int encoding, const u8* at, const u8* end, size_t count, Bytes& out,
                   DecodeScratch& scratch) {
  size_t width = leaf.width();
  if (encoding == PLAIN) {
    decode_plain(leaf, at, end, count, out);
  } else if (encoding == RLE && leaf.type == BOOLEAN) {
    need(end - at >= 4, PAGE_ENDS_EARLY);
    u32 length = load<u32>(at);
    at += 4;
    need(length <= static_cast<size_t>(end - at), PAGE_ENDS_EARLY);
    decode_hybrid<u8>(at, at + length, 1, out.grow(count), count);
  } else if (encoding == DELTA_BINARY_PACKED && (leaf.type == INT32 || leaf.type == INT64)) {
    decode_delta(at, end, scratch.numbers, count, static_cast<int>(width) * 8);
    u8* to = out.grow(count * width);
    for (size_t i = 0; i < count; i++)
      memcpy(to + i * width, &scratch.numbers[i], width);  // little-endian: the low half
  } else if (encoding == DELTA_LENGTH_BYTE_ARRAY && leaf.type == BYTE_ARRAY) {
    decode_lengths_and_texts(at, end, count, out, scratch);
  } else if (encoding == DELTA_BYTE_ARRAY && (leaf.type == BYTE_ARRAY || leaf.type == FIXED_LEN_BYTE_ARRAY)) {
    decode_prefixed(leaf, at, end, count, out, scratch);
  } else if (encoding == BYTE_STREAM_SPLIT && width && leaf.type != BOOLEAN) {
    need(static_cast<size_t>(end - at) == count * width, "a split page has another size");
    u8* to = out.grow(count * width);
    for (size_t b = 0; b < width; b++) {
      for (size_t i = 0; i < count; i++) to[i * width + b] = at[b * count + i];
    }
  } else {
    refuse(PM_UNSUPPORTED, "it has an encoding that is not known");
  }
}

}  // namespace pagemerge
