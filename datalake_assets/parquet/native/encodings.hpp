// Encodings of levels, indices and values (parquet-format, Encodings.md). What is decoded is PLAIN, booleans a byte
// each.
#pragma once

#include <algorithm>

#include "footer.hpp"

namespace pagemerge {

inline int bits_for(u64 largest) { return largest ? 64 - __builtin_clzll(largest) : 0; }

// Decodes exactly `count` numbers of the hybrid of runs and bit-packing; returns where it stopped reading.
// Loads 64 bits at a time: seven bytes behind `end` have to be readable, whatever they hold.
template <class T>
const u8* decode_hybrid(const u8* at, const u8* end, int bits, T* out, size_t count) {
  need(bits >= 0 && bits <= 32, "numbers are packed too wide");
  u64 mask = (1ull << bits) - 1;
  size_t run_bytes = (static_cast<size_t>(bits) + 7) / 8;
  while (count) {
    ThriftReader reader{at, end};
    u64 head = reader.varint();
    at = reader.at;
    size_t left = static_cast<size_t>(end - at);
    if (head & 1) {
      u64 groups = head >> 1;
      need(groups && groups <= INT32_MAX / 8, "a run is too long");
      size_t taken = static_cast<size_t>(std::min<u64>(groups * 8, count));
      size_t bytes = static_cast<size_t>(groups) * static_cast<size_t>(bits);
      if (bytes > left) {  // writers may cut the last group off
        need((taken * static_cast<size_t>(bits) + 7) / 8 <= left, "a run ends early");
        bytes = left;
      }
      if (bits) {
        u64 bit = 0;
        for (size_t i = 0; i < taken; i++, bit += static_cast<u64>(bits)) {
          out[i] = static_cast<T>((load<u64>(at + (bit >> 3)) >> (bit & 7)) & mask);
        }
      } else {  // of no bits: there are as many as their runs say, and all are zero
        std::fill_n(out, taken, T{0});
      }
      at += bytes;
      out += taken;
      count -= taken;
    } else {
      u64 run = head >> 1;
      need(run && left >= run_bytes, "a run ends early");
      need(run <= INT32_MAX, "a run is too long");
      u64 value = 0;
      memcpy(&value, at, run_bytes);
      at += run_bytes;
      need(value <= mask, "a repeated number is too large");
      size_t taken = static_cast<size_t>(std::min<u64>(run, count));
      std::fill_n(out, taken, static_cast<T>(value));
      out += taken;
      count -= taken;
    }
  }
  return at;
}

void encode_levels(const u8* levels, size_t count, int bits, Bytes& out);
void encode_indices(const u32* indices, size_t count, int bits, Bytes& out);

// Buffers that decoding needs again and again.
struct DecodeScratch {
  Numbers<i64> numbers, more_numbers;
};

// Appends a page's values to `out` as PLAIN; not for indices into a dictionary.
void decode_values(const Leaf& leaf, int encoding, const u8* at, const u8* end, size_t count, Bytes& out,
                   DecodeScratch& scratch);

// The bytes of `count` PLAIN byte arrays; notes in `ends` where each of them ends, if given.
size_t walk_byte_arrays(const u8* at, const u8* end, size_t count, u32* ends);

}  // namespace pagemerge
