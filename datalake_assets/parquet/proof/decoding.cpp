#include "decoding.hpp"

namespace pagecompare {

namespace {

void put32(uint8_t* to, uint32_t number) {
  for (int i = 0; i < 4; i++) to[i] = static_cast<uint8_t>(number >> (8 * i));
}

int64_t signed_of(uint64_t number) { return static_cast<int64_t>(number >> 1) ^ -static_cast<int64_t>(number & 1); }

// A number of so many bits at the most: Arrow takes no more bytes for it than these need, be the rest zeros.
uint64_t number_at(Span at, uint64_t& place, uint32_t bits) {
  const uint64_t from = place, number = varint_at(at, place);
  if (bits == 32 && (place - from > 5 || number > UINT32_MAX)) throw Unclear{"differences have too long a number"};
  return number;
}

// A length of a text; the widest that there is has 31 bits.
uint32_t length_of(uint64_t number) {
  if (number > INT_MAX) throw Unclear{"a text has no length"};
  return static_cast<uint32_t>(number);
}

}  // namespace

uint64_t decode_differences(Span at, uint32_t count, uint32_t widest, uint64_t* to) {
  uint64_t place = 0;
  uint64_t per_block = number_at(at, place, 32), parts = number_at(at, place, 32), total = number_at(at, place, 32);
  uint64_t value = static_cast<uint64_t>(signed_of(number_at(at, place, widest)));
  if (!per_block || per_block % 128 || per_block > (1 << 24) || !parts || parts > per_block || per_block % parts ||
      (per_block / parts) % 32 || total != count)
    throw Unclear{"differences have a head that does not add up"};
  const uint64_t per_part = per_block / parts;
  uint64_t done = 0;
  if (count) to[done++] = value;
  while (done < count) {
    uint64_t least = static_cast<uint64_t>(signed_of(number_at(at, place, widest)));
    Span widths = at.part(place, parts);
    place += parts;
    for (uint64_t part = 0; part < parts && done < count; part++) {
      uint32_t width = widths.data[part];
      if (width > widest) throw Unclear{"differences are wider than their values"};
      Span bits = at.part(place, per_part * width / 8);
      place += bits.size;
      uint64_t some = per_part < count - done ? per_part : count - done;
      unpack_bits(bits, width, some, to + done);
      for (uint64_t i = 0; i < some; i++, done++) to[done] = value += least + to[done];
    }
  }
  return place;
}

Span Plainer::plain(Encoding encoding, Span at, const Leaf& leaf, uint32_t count) {
  const bool is_integer = leaf.type == Type::INT32 || leaf.type == Type::INT64;
  if (encoding == Encoding::DELTA_BINARY_PACKED && is_integer) return differences(at, leaf.width, count);
  if (encoding == Encoding::DELTA_LENGTH && leaf.type == Type::TEXT) return lengths(at, count);
  if (encoding == Encoding::DELTA_PREFIX && (leaf.type == Type::TEXT || leaf.type == Type::FIXED))
    return prefixes(at, leaf, count);
  if (encoding == Encoding::BYTE_STREAM_SPLIT && leaf.width > 1 && leaf.type != Type::INT96)
    return split(at, leaf.width, count);
  throw Unclear{"its values have an encoding that is not known here"};
}

Span Plainer::differences(Span at, uint32_t width, uint32_t count) {
  uint64_t* numbers = numbers_.room(count);
  decode_differences(at, count, width * 8, numbers);
  uint8_t* values = values_.room(uint64_t(count) * width);
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t j = 0; j < width; j++) values[uint64_t(i) * width + j] = static_cast<uint8_t>(numbers[i] >> (8 * j));
  return {values, uint64_t(count) * width};
}

Span Plainer::lengths(Span at, uint32_t count) {
  uint64_t* sizes = numbers_.room(count);
  Span texts = at.from(decode_differences(at, count, 32, sizes));
  uint64_t total = 0;
  for (uint32_t i = 0; i < count; i++) total += length_of(sizes[i]);
  if (total > texts.size) throw Unclear{"an encoded page ends early"};
  uint8_t *values = values_.room(total + uint64_t(count) * 4), *to = values;
  const uint8_t* from = texts.data;
  for (uint32_t i = 0; i < count; i++) {
    put32(to, static_cast<uint32_t>(sizes[i]));
    if (sizes[i]) memcpy(to + 4, from, sizes[i]);
    to += 4 + sizes[i];
    from += sizes[i];
  }
  return {values, static_cast<uint64_t>(to - values)};
}

Span Plainer::prefixes(Span at, const Leaf& leaf, uint32_t count) {
  uint64_t *shared = numbers_.room(count), *sizes = more_.room(count);
  Span rest = at.from(decode_differences(at, count, 32, shared));
  Span texts = rest.from(decode_differences(rest, count, 32, sizes));
  const uint32_t head = leaf.type == Type::TEXT ? 4 : 0;
  uint64_t total = 0, own = 0, before = 0;
  for (uint32_t i = 0; i < count; i++) {
    uint64_t size = uint64_t(length_of(shared[i])) + length_of(sizes[i]);
    if (shared[i] > before || size > INT_MAX || (!head && size != leaf.width)) throw Unclear{"a text has no beginning"};
    own += sizes[i];
    total += head + size;
    before = size;
  }
  if (own > texts.size) throw Unclear{"an encoded page ends early"};
  uint8_t *values = values_.room(total), *to = values;
  const uint8_t *from = texts.data, *last = values;
  for (uint32_t i = 0; i < count; i++) {
    if (head) put32(to, static_cast<uint32_t>(shared[i] + sizes[i]));
    to += head;
    if (shared[i]) memcpy(to, last, shared[i]);
    if (sizes[i]) memcpy(to + shared[i], from, sizes[i]);
    last = to;
    to += shared[i] + sizes[i];
    from += sizes[i];
  }
  return {values, total};
}

Span Plainer::split(Span at, uint32_t width, uint32_t count) {
  const uint64_t size = uint64_t(count) * width;
  if (at.size != size) throw Unclear{"split values have another length than there are any"};
  uint8_t* values = values_.room(size);
  for (uint32_t j = 0; j < width; j++)
    for (uint64_t i = 0; i < count; i++) values[i * width + j] = at.data[uint64_t(j) * count + i];
  return {values, size};
}

}  // namespace pagecompare
