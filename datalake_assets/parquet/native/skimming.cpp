#include "skimming.hpp"

#include <algorithm>

namespace pagemerge {
namespace {

// Of the start of a page, in which its levels are looked for: those that take more are decompressed with the page.
constexpr size_t LEVELS_BYTES = 4096;
// The same of a page that is taken apart; and parts of its values at the most.
constexpr size_t SPLIT_LEVELS_BYTES = 65536, MOST_PARTS = 32;

// Begins a part with a literal of so few bytes as a copy makes.
void put_literal(const u8* bytes, size_t count, Part& part) {
  part.head_bytes = put_literal_tag(count, part.head);
  memcpy(part.head + part.head_bytes, bytes, count);
  part.head_bytes += count;
}

// The elements of one page on their way to its end.
struct Lane {
  const u8 *at, *end;
  size_t plain, made;
  i64 source;
};

// What a lane without work stands on: the tag of a long literal, which nothing is done with.
constexpr u8 IDLE[LONGEST_TAG] = {0xFC};
constexpr size_t LANES = 4, STEPS = 32, MOST_OF_STEPS = STEPS * 61 + LONGEST_TAG;

// Some steps of all lanes at once, without a branch, since nobody can foretell what an element is: each waits for the
// element before, and the processor has time for the others. A lane stays where it meets a long literal. Returns
// the first lane in which some copy refers to before the first byte; null: there is none.
const Lane* step(Lane* lanes) {
  u64 wrong[LANES] = {};
  const u8* at[LANES];  // copies, that stay in registers
  size_t made[LANES];
  for (size_t k = 0; k < LANES; k++) {
    at[k] = lanes[k].at;
    made[k] = lanes[k].made;
  }
  for (size_t i = 0; i < STEPS; i++) {
    for (size_t k = 0; k < LANES; k++) {
      const Tag& tag = TAGS.of[*at[k]];
      const u64 distance = (load<u32>(at[k] + 1) & tag.trailing) | static_cast<u64>(tag.high) << 8;
      wrong[k] |= static_cast<u64>(distance - 1 >= made[k]) & tag.is_copy;
      made[k] += tag.advance ? tag.made : 0;
      at[k] += tag.advance;
    }
  }
  for (size_t k = 0; k < LANES; k++) {
    lanes[k].at = at[k];
    lanes[k].made = made[k];
  }
  for (size_t k = 0; k < LANES; k++) {
    if (wrong[k]) return lanes + k;
  }
  return nullptr;
}

// Goes on with care until steps can be made without, or to the end: then false.
bool may_step(Lane& lane) {
  while (lane.at < lane.end) {
    const bool is_far = static_cast<size_t>(lane.end - lane.at) >= MOST_OF_STEPS;
    if (is_far && TAGS.of[*lane.at].advance) return true;
    need(lane.made <= lane.plain && pass_one(lane.at, lane.end, lane.plain, lane.made), NOT_WHOLE);
  }
  need(lane.made == lane.plain, NOT_WHOLE);
  return false;
}

// Makes the first bytes of what elements make, so many or all that there are.
void first_bytes(View elements, size_t wanted, Bytes& to) {
  to.clear();
  to.reserve(wanted);
  for (const u8 *at = elements.data, *end = elements.end(); at < end && to.size < wanted;) {
    const u8* begin = at;
    const Tag& tag = TAGS.of[*begin];
    size_t made = 0;
    if (!tag.is_copy) {
      need(pass_one(at, end, SIZE_MAX, made), NOT_WHOLE);
      const size_t some = std::min(made, wanted - to.size);
      memcpy(to.data + to.size, at - made, some);
      to.size += some;
      continue;
    }
    made = to.size;
    need(pass_one(at, end, SIZE_MAX, made), NOT_WHOLE);
    const size_t distance = distance_of(begin);
    for (size_t some = std::min<size_t>(tag.made, wanted - to.size); some; some--, to.size++)
      to.data[to.size] = to.data[to.size - distance];
  }
}

// Whether the levels of a page of version 1 lie within its first bytes.
bool hold_levels(const Bytes& begin, const Leaf& leaf) {
  size_t at = 0;
  for (int most : {leaf.max_repetition, leaf.max_definition}) {
    if (!most) continue;
    if (begin.size - at < 4) return false;
    const size_t length = load<u32>(begin.data + at);
    if (length > begin.size - at - 4) return false;
    at += 4 + length;
  }
  return true;
}

}  // namespace

void Skimmed::add(View packed, size_t plain) {
  const View elements = elements_of(packed, plain);
  if (budget) budget->take(sizeof(Part));
  parts_.push_back({elements, plain, source});
}

void Skimmed::check() {
  Lane lanes[LANES];
  size_t next = 0, busy = 0;
  const Lane idle{IDLE, IDLE, 0, 0, -1};
  for (Lane& lane : lanes) lane = idle;
  do {
    busy = 0;
    for (Lane& lane : lanes) {
      source = lane.source;
      while (!may_step(lane)) {
        lane = idle;
        if (next == parts_.size()) break;
        const Part& part = parts_[next++];
        lane = {part.elements.data, part.elements.end(), part.plain, 0, part.source};
        source = part.source;
      }
      busy += lane.at != IDLE;
    }
    const Lane* wrong = busy ? step(lanes) : nullptr;
    if (wrong) source = wrong->source;
    need(!wrong, NOT_WHOLE);
  } while (busy);
  if (budget) budget->give(parts_.size() * sizeof(Part));
  parts_.clear();
}

bool split_page(const PageHeader& header, View body, const Leaf& leaf, Scratch& scratch, SplitPage& split) {
  const size_t plain = static_cast<size_t>(header.plain_bytes);
  const View elements = elements_of(body, plain);
  Bytes& begin = scratch.check;
  size_t front = 0, ends[2] = {};
  for (int which = 0; which < 2; which++) {
    if (!(which ? leaf.max_definition : leaf.max_repetition)) continue;
    first_bytes(elements, front + 4, begin);
    if (begin.size < front + 4) return false;
    front += 4 + static_cast<size_t>(load<u32>(begin.data + front));
    if (front > std::min(plain, SPLIT_LEVELS_BYTES)) return false;
    ends[which] = front;
  }
  first_bytes(elements, std::min(plain, front + LONGEST_COPY), begin);  // all that a copy of levels can make
  if (begin.size < front) return false;
  if (ends[0]) split.levels[0] = {begin.data + 4, ends[0] - 4};
  if (ends[1]) split.levels[1] = {begin.data + ends[0] + 4, ends[1] - ends[0] - 4};
  split.plain_bytes = plain - front;
  split.parts.clear();
  const u8 *at = elements.data, *end = elements.end();
  size_t made = 0;
  bool is_copy = false;
  while (made < front) {
    is_copy = at < end && TAGS.of[*at].is_copy;
    if (at == end || !pass_one(at, end, plain, made)) return false;
  }
  size_t of_values = made - front;
  Part part;
  part.rest.data = at;
  if (is_copy && of_values) {
    put_literal(begin.data + front, of_values, part);
  } else if (of_values) {  // a literal of which the last bytes are values
    part.head_bytes = put_literal_tag(of_values, part.head);
    part.rest.data = at - of_values;
  }
  while (at < end) {
    if (pass_one(at, end, split.plain_bytes, of_values)) continue;
    const Tag& tag = TAGS.of[*at];
    const bool is_whole = tag.is_copy && tag.advance <= end - at && tag.made <= split.plain_bytes - of_values;
    const size_t distance = is_whole ? distance_of(at) : 0;
    if (!distance || distance > front + of_values || split.parts.size() + 2 > MOST_PARTS) return false;
    part.rest.size = static_cast<size_t>(at - part.rest.data);
    split.parts.push_back(part);
    u8 copied[LONGEST_COPY];
    const u8* from = begin.data + front + of_values - distance;  // ends at what follows, or is repeated there
    for (size_t i = 0; i < tag.made; i++) copied[i] = i < distance ? from[i] : copied[i - distance];
    at += tag.advance;
    of_values += tag.made;
    put_literal(copied, tag.made, part);
    part.rest.data = at;
  }
  part.rest.size = static_cast<size_t>(end - part.rest.data);
  split.parts.push_back(part);
  return of_values == split.plain_bytes;
}

void skim_dictionary(const PageHeader& header, View body, const Leaf& leaf, Skimmed& skimmed) {
  need((header.encoding == PLAIN || header.encoding == PLAIN_DICTIONARY) && leaf.type != BOOLEAN,
       "a dictionary page is damaged");
  const size_t plain = static_cast<size_t>(header.plain_bytes), entries = static_cast<size_t>(header.values);
  need(entries <= plain / leaf.width(), "a dictionary page is damaged");
  support(entries * leaf.width() == plain, "more follows the last entry of a dictionary");
  skimmed.add(body, plain);
}

DataPage skim_page(const PageHeader& header, View body, const Chunk& chunk, const Leaf& leaf, bool first,
                   Scratch& scratch, Skimmed& skimmed) {
  if (!header.compressed) return open_page(header, body, chunk, leaf, first, scratch);
  Chunk as_plain = chunk;
  as_plain.codec = UNCOMPRESSED;
  PageHeader of_levels = header;
  if (header.type == DATA_PAGE_V2) {  // they lie before what is compressed
    of_levels.plain_bytes = header.definition_bytes + header.repetition_bytes;
    const size_t levels = static_cast<size_t>(of_levels.plain_bytes);
    const size_t plain = static_cast<size_t>(header.plain_bytes) - levels;
    const View values{body.data + levels, body.size - levels};
    if (plain || values.size) skimmed.add(values, plain);
    return open_page(of_levels, {body.data, levels}, as_plain, leaf, first, scratch);
  }
  const size_t plain = static_cast<size_t>(header.plain_bytes);
  skimmed.add(body, plain);
  first_bytes(elements_of(body, plain), std::min(plain, LEVELS_BYTES), scratch.check);
  if (!hold_levels(scratch.check, leaf)) return open_page(header, body, chunk, leaf, first, scratch);
  of_levels.plain_bytes = static_cast<i64>(scratch.check.size);
  return open_page(of_levels, {scratch.check.data, scratch.check.size}, as_plain, leaf, first, scratch);
}

void check_chunk(View file, const Chunk& chunk, const Leaf& leaf, i64 rows, pm_depth depth, Scratch& scratch,
                 PageCount& count, Skimmed& skimmed) {
  const bool skims = depth == PM_CHECK_DECOMPRESS && can_skim(chunk.codec);
  size_t entries = 0;
  i64 found_rows = 0, nulls = 0;
  auto note = [&](const PageHeader& header) {
    count.pages++;
    count.checksums += header.has_crc;
  };
  each_page(
      file, chunk,
      [&](const PageHeader& header, View body) {
        note(header);
        if (depth < PM_CHECK_DECOMPRESS) return;
        if (skims && leaf.width()) {
          skim_dictionary(header, body, leaf, skimmed);
          return;
        }
        scratch.dictionary.clear();
        entries = open_dictionary(header, body, chunk, leaf, scratch.dictionary, scratch);
      },
      [&](const PageHeader& header, View body, bool first) {
        note(header);
        if (depth < PM_CHECK_DECOMPRESS) return;
        DataPage page = skims ? skim_page(header, body, chunk, leaf, first, scratch, skimmed)
                              : open_page(header, body, chunk, leaf, first, scratch);
        nulls += static_cast<i64>(page.levels - page.values);
        if (page.repetition) found_rows += std::count(page.repetition, page.repetition + page.levels, 0);
        if (depth < PM_CHECK_DECODE) return;
        scratch.check.clear();
        if (page.encoding == RLE_DICTIONARY) {
          decode_dictionary_indices(page, chunk, entries, scratch);
        } else {
          decode_values(leaf, page.encoding, page.at, page.end, page.values, scratch.check, scratch.decode);
        }
      });
  if (depth < PM_CHECK_DECOMPRESS) return;
  need(!leaf.max_repetition || found_rows == rows, "a column has another number of rows than its row group");
  need(chunk.nulls < 0 || leaf.max_repetition || nulls == chunk.nulls,
       "a column has another number of nulls than its statistics say");
}

}  // namespace pagemerge
