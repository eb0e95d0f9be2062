// The elements of raw Snappy: literals, and copies of what was made before. Source: google/snappy,
// format_description.txt.
#pragma once

#include "codecs.hpp"

namespace pagemerge {

// What a tag says: how many bytes its element takes, how many it makes, and the distance of a copy.
struct Tag {
  u8 advance;  // for a literal, with its bytes; 0: a long one, whose length follows
  u8 made;
  u8 is_copy;
  u8 high;       // of the distance, above the lowest byte that follows
  u32 trailing;  // a mask of the distance's bytes that follow
};

struct Tags {
  Tag of[256];

  Tags();
};

extern const Tags TAGS;

constexpr size_t LONGEST_TAG = 5, LONGEST_COPY = 64;

// Gives the elements behind the length of all that they make, which has to be `plain`.
View elements_of(View packed, size_t plain);

// How far back a copy refers, all of which is there.
inline size_t distance_of(const u8* copy) {
  const Tag& tag = TAGS.of[*copy];
  size_t distance = static_cast<size_t>(tag.high) << 8;
  for (size_t i = 1; i < tag.advance; i++) distance |= static_cast<size_t>(copy[i]) << (8 * (i - 1));
  return distance;
}

// An element that is read with all care. Returns false if it is not sound.
bool pass_one(const u8*& at, const u8* end, size_t plain, size_t& made);

// Writes the tag of a literal of so many bytes, and its length where that does not fit into it.
size_t put_literal_tag(size_t length, u8* to);

// Writes a copy of at most `LONGEST_COPY` bytes.
size_t put_copy(size_t distance, size_t length, u8* to);

}  // namespace pagemerge
