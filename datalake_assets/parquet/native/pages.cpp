#include "pages.hpp"

namespace pagemerge {

namespace {

constexpr const char* HEADER_DAMAGED = "a page header is damaged";
constexpr const char* LEVELS_END_EARLY = "levels end early";
constexpr const char* DICTIONARY_DAMAGED = "a dictionary page is damaged";

void parse_kind(ThriftReader& reader, PageHeader& header, int kind) {
  u32 there = 0;
  reader.fields([&](int field, int type) {
    if (kind == 8 && field == 7) {
      need(type == T_TRUE || type == T_FALSE, HEADER_DAMAGED);
      header.compressed = type == T_TRUE;
      return false;
    }
    if (type != T_I32) return false;
    there |= 1u << std::min(field, 31);
    i32 value = reader.int32();
    if (field == 1) header.values = value;
    if (kind == 5 || kind == 7) {  // DataPageHeader, DictionaryPageHeader
      if (field == 2) header.encoding = value;
      if (kind == 5 && field == 3) header.definition_encoding = value;
      if (kind == 5 && field == 4) header.repetition_encoding = value;
    } else {  // DataPageHeaderV2
      if (field == 2) header.nulls = value;
      if (field == 3) header.rows = value;
      if (field == 4) header.encoding = value;
      if (field == 5) header.definition_bytes = value;
      if (field == 6) header.repetition_bytes = value;
    }
    return true;
  });
  u32 required = kind == 5 ? 4 : kind == 7 ? 2 : 6;  // the fields from 1 on that are not optional
  need((there >> 1 & ((1u << required) - 1)) == (1u << required) - 1, HEADER_DAMAGED);
}

}  // namespace

PageHeader parse_header(ThriftReader& reader) {
  PageHeader header;
  int kind = 0;
  reader.fields([&](int field, int type) {
    need(type == T_I32 || field < 1 || field > 4, HEADER_DAMAGED);
    need(type == T_STRUCT || (field != 5 && field != 7 && field != 8), HEADER_DAMAGED);
    if (type == T_I32) {
      i32 value = reader.int32();
      if (field == 1) header.type = value;
      if (field == 2) header.plain_bytes = value;
      if (field == 3) header.bytes = value;
      if (field == 4) {
        header.has_crc = true;
        header.crc = static_cast<u32>(value);
      }
      return true;
    }
    if (type == T_STRUCT && (field == 5 || field == 7 || field == 8)) {
      need(!kind, HEADER_DAMAGED);
      kind = field;
      parse_kind(reader, header, field);
      return true;
    }
    return false;
  });
  need(header.type >= 0 && header.plain_bytes >= 0 && header.bytes >= 0, HEADER_DAMAGED);
  support(header.plain_bytes <= MAX_PAGE_BYTES && header.bytes <= MAX_PAGE_BYTES, "a page is too large");
  int wanted = header.type == DATA_PAGE         ? 5
               : header.type == DICTIONARY_PAGE ? 7
               : header.type == DATA_PAGE_V2    ? 8
                                                : kind;
  need(kind == wanted && (header.type == INDEX_PAGE || header.values >= 0), HEADER_DAMAGED);
  if (header.type == DATA_PAGE_V2) {
    need(header.definition_bytes >= 0 && header.repetition_bytes >= 0, LEVELS_END_EARLY);
    i64 levels = header.definition_bytes + header.repetition_bytes;
    need(levels <= header.bytes && levels <= header.plain_bytes, LEVELS_END_EARLY);
  }
  return header;
}

PageHeader next_page(ThriftReader& chunk, View& body) {
  PageHeader header = parse_header(chunk);
  need(static_cast<size_t>(header.bytes) <= chunk.left(), "a page ends early");
  body = {chunk.at, static_cast<size_t>(header.bytes)};
  chunk.at += header.bytes;
  need(!header.has_crc || crc32_of(body.data, body.size) == header.crc, "a page's checksum is wrong");
  return header;
}

void decode_repetition(const Leaf& leaf, const u8* at, const u8* end, size_t count, bool first, u8* out) {
  decode_hybrid<u8>(at, end, bits_for(static_cast<u64>(leaf.max_repetition)), out, count);
  u8 highest = 0;
  for (size_t i = 0; i < count; i++) highest = std::max(highest, out[i]);
  need(highest <= leaf.max_repetition && (!first || !count || !out[0]), "a level is too high");
}

size_t decode_definition(const Leaf& leaf, const u8* at, const u8* end, size_t count, u8* out) {
  decode_hybrid<u8>(at, end, bits_for(static_cast<u64>(leaf.max_definition)), out, count);
  size_t values = 0;
  u8 top = static_cast<u8>(leaf.max_definition), highest = 0;
  for (size_t i = 0; i < count; i++) {
    values += out[i] == top;
    highest = std::max(highest, out[i]);
  }
  need(highest <= top, "a level is too high");
  return values;
}

DataPage open_page(const PageHeader& header, View body, const Chunk& chunk, const Leaf& leaf, bool first,
                   Scratch& scratch) {
  DataPage page;
  page.levels = page.values = static_cast<size_t>(header.values);
  bool indexed = header.encoding == PLAIN_DICTIONARY || header.encoding == RLE_DICTIONARY;
  page.encoding = indexed ? RLE_DICTIONARY : header.encoding;
  size_t of_repetition = leaf.max_repetition ? page.levels : 0, of_definition = leaf.max_definition ? page.levels : 0;
  scratch.levels.clear();
  u8* repetition = scratch.levels.grow(of_repetition + of_definition);
  u8* definition = repetition + of_repetition;
  View levels[2];  // repetition, definition
  if (header.type == DATA_PAGE) {
    size_t plain = static_cast<size_t>(header.plain_bytes);
    scratch.page.reserve(plain);
    scratch.codecs.decompress(chunk.codec, body.data, body.size, scratch.page.data, plain);
    page.at = scratch.page.data;
    page.end = page.at + plain;
    for (int which = 0; which < 2; which++) {
      if (!(which ? leaf.max_definition : leaf.max_repetition)) continue;
      support((which ? header.definition_encoding : header.repetition_encoding) == RLE,
              "its levels are in an encoding of old");
      need(page.end - page.at >= 4, LEVELS_END_EARLY);
      u32 length = load<u32>(page.at);
      page.at += 4;
      need(length <= static_cast<size_t>(page.end - page.at), LEVELS_END_EARLY);
      levels[which] = {page.at, length};
      page.at += length;
    }
  } else {
    size_t of_levels = static_cast<size_t>(header.definition_bytes + header.repetition_bytes);
    size_t plain = static_cast<size_t>(header.plain_bytes) - of_levels, bytes = body.size - of_levels;
    levels[0] = {body.data, static_cast<size_t>(header.repetition_bytes)};
    levels[1] = {levels[0].end(), static_cast<size_t>(header.definition_bytes)};
    scratch.page.reserve(plain);
    if (plain || bytes) {
      int codec = header.compressed ? chunk.codec : static_cast<int>(UNCOMPRESSED);
      scratch.codecs.decompress(codec, body.data + of_levels, bytes, scratch.page.data, plain);
    }
    page.at = scratch.page.data;
    page.end = page.at + plain;
  }
  if (leaf.max_repetition) {
    decode_repetition(leaf, levels[0].data, levels[0].end(), page.levels, first, repetition);
    page.repetition = repetition;
  }
  if (leaf.max_definition) {
    page.values = decode_definition(leaf, levels[1].data, levels[1].end(), page.levels, definition);
    page.definition = definition;
  }
  if (header.type == DATA_PAGE_V2) {
    i64 rows = page.repetition ? std::count(page.repetition, page.repetition + page.levels, 0) : header.values;
    need(header.rows == rows, "a page has another number of rows than it says");
  }
  if (header.nulls >= 0 && !leaf.max_repetition) {
    need(static_cast<i64>(page.levels - page.values) == header.nulls,
         "a page has another number of nulls than it says");
  }
  return page;
}

size_t open_dictionary(const PageHeader& header, View body, const Chunk& chunk, const Leaf& leaf, Bytes& to,
                       Scratch& scratch) {
  need((header.encoding == PLAIN || header.encoding == PLAIN_DICTIONARY) && leaf.type != BOOLEAN, DICTIONARY_DAMAGED);
  size_t plain = static_cast<size_t>(header.plain_bytes), entries = static_cast<size_t>(header.values);
  size_t width = leaf.width();
  need(entries <= plain / (width ? width : 4), DICTIONARY_DAMAGED);
  to.reserve(to.size + plain);
  u8* at = to.data + to.size;
  scratch.codecs.decompress(chunk.codec, body.data, body.size, at, plain);
  if (!width) {
    scratch.ends.resize(entries + 1);
    scratch.ends[0] = 0;
    walk_byte_arrays(at, at + plain, entries, scratch.ends.data() + 1);
  }
  // whatever is relabelled as a PLAIN page has to end with its last value
  support((width ? entries * width : scratch.ends[entries]) == plain, "more follows the last entry of a dictionary");
  return entries;
}

void decode_dictionary_indices(const DataPage& page, const Chunk& chunk, size_t entries, Scratch& scratch) {
  scratch.indices.resize(page.values);
  if (!page.values) return;
  need(page.at < page.end, "a page ends early");
  u32* indices = scratch.indices.data();
  int bits = page.at[0];
  // an index of no bits proves nothing of a dictionary that the footer does not state: see docs/adr/017
  support(bits || chunk.has_dictionary(), "its indices do not prove that its dictionary is one");
  decode_hybrid<u32>(page.at + 1, page.end, bits, indices, page.values);
  u32 highest = 0;
  for (size_t i = 0; i < page.values; i++) highest = std::max(highest, indices[i]);
  need(highest < entries, "an index lies outside its dictionary");
}

}  // namespace pagemerge
