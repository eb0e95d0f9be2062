// The encodings of Parquet, each undone by itself: runs and bit-packed numbers, differences, split bytes.
// Source: apache/parquet-format, Encodings.md.
#ifndef PAGECOMPARE_DECODING_HPP
#define PAGECOMPARE_DECODING_HPP

#include <climits>

#include "layout.hpp"

namespace pagecompare {

// So many bits hold a number up to `most`.
inline uint32_t bits_for(uint32_t most) {
  uint32_t bits = 0;
  while (most >> bits) bits++;
  return bits;
}

// Numbers of `width` bits (up to 64) that follow each other, the lowest bit first; `at` has all of their bytes.
template <typename T>
void unpack_bits(Span at, uint32_t width, uint64_t count, T* to) {
  const uint64_t mask = width == 64 ? ~uint64_t(0) : (uint64_t(1) << width) - 1;
  uint64_t bit = 0, i = 0;
  if (width <= 56 && at.size >= 8) {
    const uint64_t last = (at.size - 8) * 8;  // up to here, eight bytes can be loaded at once
    for (; i < count && bit <= last; i++, bit += width) {
      uint64_t word;
      memcpy(&word, at.data + (bit >> 3), 8);
      to[i] = static_cast<T>(word >> (bit & 7) & mask);
    }
  }
  for (; i < count; i++, bit += width) {
    unsigned __int128 word = 0;
    for (uint64_t byte = bit >> 3, shift = 0; shift < width + (bit & 7); byte++, shift += 8)
      word |= static_cast<unsigned __int128>(at.data[byte]) << shift;
    to[i] = static_cast<T>(static_cast<uint64_t>(word >> (bit & 7)) & mask);
  }
}

// A number in base 128, and how many bytes it takes of `at`.
inline uint64_t varint_at(Span at, uint64_t& place) {
  uint64_t number = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (place >= at.size) throw Unclear{"an encoded page ends early"};
    uint8_t next = at.data[place++];
    if (shift == 63 && next > 1) break;  // only one bit is left
    number |= uint64_t(next & 127) << shift;
    if (next < 128) return number;
  }
  throw Unclear{"a number in an encoded page is too long"};
}

// The hybrid of runs and bit-packed numbers, of exactly `count` numbers up to `most`. All bytes have to belong to it:
// readers differ in what they make of runs that are cut off, and of what follows the last one. A bit-packed run may go
// on after the last number, as DuckDB fills up the last one to 32 numbers: readers unpack as many as they want of what
// is there, or all of it. Numbers of no bits may not, beyond a group of eight: no bytes say that they are there. A
// repeated value may not either, since no writer makes such a run. So many zeros may follow, which are no run.
template <typename T>
void decode_runs(Span at, uint32_t width, uint32_t count, uint32_t most, T* to, uint64_t zeros = 0) {
  uint64_t place = 0;
  uint32_t done = 0, largest = 0;
  while (done < count) {
    uint64_t head = varint_at(at, place);
    if (head >> 1 == 0 || head >> 1 > (head & 1 ? INT_MAX / 8 : INT_MAX)) throw Unclear{"a run has no length"};
    if (head & 1) {
      const uint64_t left = count - done, whole = (head >> 1) * 8, some = whole < left ? whole : left;
      if (!width && whole - some > 7) throw Unclear{"a run is longer than its page"};
      Span bits = at.part(place, (head >> 1) * width);
      place += bits.size;
      unpack_bits(bits, width, some, to + done);
      uint32_t seen = 0;
      for (uint64_t i = 0; i < some; i++) seen = to[done + i] > seen ? to[done + i] : seen;
      largest = seen > largest ? seen : largest;
      done += static_cast<uint32_t>(some);
    } else {
      uint64_t some = head >> 1;
      if (some > count - done) throw Unclear{"a run is longer than its page"};
      uint32_t bytes = (width + 7) / 8, value = 0;
      Span held = at.part(place, bytes);
      for (uint32_t i = 0; i < bytes; i++) value |= uint32_t(held.data[i]) << (8 * i);
      place += bytes;
      largest = value > largest ? value : largest;
      if (value > most) break;
      for (uint64_t i = 0; i < some; i++) to[done + i] = static_cast<T>(value);
      done += static_cast<uint32_t>(some);
    }
  }
  if (largest > most) throw Unclear{"a level, or an index, is larger than there are any"};
  if (at.size - place > zeros) throw Unclear{"an encoded page goes on after its end"};
  for (; place < at.size; place++)
    if (at.data[place]) throw Unclear{"an encoded page goes on after its end"};
}

// DELTA_BINARY_PACKED: exactly `count` numbers, modulo 2 to the power of 64. Returns how many bytes they take.
uint64_t decode_differences(Span at, uint32_t count, uint32_t widest, uint64_t* to);

// Values in one of the encodings that are neither PLAIN nor a dictionary's, as PLAIN has them.
class Plainer {
 public:
  explicit Plainer(Allowance& allowance) : numbers_(allowance), more_(allowance), values_(allowance) {}

  Span plain(Encoding encoding, Span at, const Leaf& leaf, uint32_t count);

 private:
  Span differences(Span at, uint32_t width, uint32_t count);
  Span lengths(Span at, uint32_t count);
  Span prefixes(Span at, const Leaf& leaf, uint32_t count);
  Span split(Span at, uint32_t width, uint32_t count);

  Array<uint64_t> numbers_, more_;
  Array<uint8_t> values_;
};

}  // namespace pagecompare

#endif
