#include "snappy.hpp"

namespace pagemerge {

Tags::Tags() {
  for (u32 tag = 0; tag < 256; tag++) {
    const u8 upper = static_cast<u8>(tag >> 2), length = static_cast<u8>(upper + 1);
    switch (tag & 3) {
      case 0:
        of[tag] = {static_cast<u8>(length <= 60 ? 1 + length : 0), length, 0, 0, 0};
        break;
      case 1:
        of[tag] = {2, static_cast<u8>((upper & 7) + 4), 1, static_cast<u8>(tag >> 5), 0xFF};
        break;
      case 2:
        of[tag] = {3, length, 1, 0, 0xFFFF};
        break;
      default:
        of[tag] = {5, length, 1, 0, 0xFFFFFFFF};
    }
  }
}

const Tags TAGS;

View elements_of(View packed, size_t plain) {
  const u8* at = packed.data;
  u64 length = 0;
  for (int shift = 0;; shift += 7) {
    need(at < packed.end() && shift < 35, NOT_WHOLE);
    length |= static_cast<u64>(*at & 127) << shift;
    if (*at++ < 128) break;
  }
  need(length == plain, NOT_WHOLE);
  return {at, static_cast<size_t>(packed.end() - at)};
}

bool pass_one(const u8*& at, const u8* end, size_t plain, size_t& made) {
  const Tag& tag = TAGS.of[*at];
  size_t left = static_cast<size_t>(end - at);
  if (!tag.advance) {
    size_t extra = static_cast<size_t>(tag.made) - 60, length = 0;
    if (left < 1 + extra) return false;
    for (size_t i = 0; i < extra; i++) length |= static_cast<size_t>(at[1 + i]) << (8 * i);
    length++;
    if (length > left - 1 - extra || length > plain - made) return false;
    at += 1 + extra + length;
    made += length;
    return true;
  }
  if (tag.advance > left || tag.made > plain - made) return false;
  if (tag.is_copy) {
    const size_t distance = distance_of(at);
    if (!distance || distance > made) return false;
  }
  at += tag.advance;
  made += tag.made;
  return true;
}

size_t put_literal_tag(size_t length, u8* to) {
  if (length <= 60) {
    to[0] = static_cast<u8>((length - 1) << 2);
    return 1;
  }
  size_t extra = 0;
  for (size_t left = length - 1; left; left >>= 8) to[++extra] = static_cast<u8>(left);
  to[0] = static_cast<u8>((59 + extra) << 2);
  return 1 + extra;
}

size_t put_copy(size_t distance, size_t length, u8* to) {
  if (length >= 4 && length <= 11 && distance < 2048) {
    to[0] = static_cast<u8>(1 | (length - 4) << 2 | (distance >> 8) << 5);
    to[1] = static_cast<u8>(distance);
    return 2;
  }
  const size_t bytes = distance < 65536 ? 2 : 4;
  to[0] = static_cast<u8>((bytes == 2 ? 2 : 3) | (length - 1) << 2);
  for (size_t i = 0; i < bytes; i++) to[1 + i] = static_cast<u8>(distance >> (8 * i));
  return 1 + bytes;
}

}  // namespace pagemerge
