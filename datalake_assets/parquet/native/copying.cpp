// Pages that are copied: they are found, proven, joined and written, but never decoded.
#include "writer.hpp"

namespace pagemerge {
namespace {

// Of PLAIN values in a part of a joined page; fewer are decoded quickly.
constexpr i64 MIN_PART_BYTES = PM_SMALL_PAGE_BYTES / 64;

}  // namespace

// Values that lie in one piece, compressed as the output wants them: in a PLAIN page, or in a dictionary page that the
// indices go through once, as in small files of values that do not repeat.
struct ChunkWriter::Found {
  View compressed;         // of the values, or of the whole page where `as_is`
  size_t plain_bytes = 0;  // of the same
  size_t levels = 0, values = 0;
  bool as_is = false;  // a page of version 1, whose levels are compressed with its values, and stay with them
};

bool ChunkWriter::find(View file, const Chunk& chunk, Found& found) {
  ThriftReader reader{file.data + chunk.start(), file.data + chunk.start() + chunk.bytes};
  View body;
  PageHeader header = next_page(reader, body);
  i64 entries = -1;
  if (header.type == DICTIONARY_PAGE) {
    if (!chunk.has_dictionary() || header.plain_bytes < MIN_PART_BYTES) return false;
    if (header.encoding != PLAIN && header.encoding != PLAIN_DICTIONARY) return false;
    if (header.plain_bytes > static_cast<i64>(settings_.page_bytes)) return false;
    entries = header.values;
    found.compressed = body;
    found.plain_bytes = static_cast<size_t>(header.plain_bytes);
    if (reader.at == reader.end) return false;
    header = next_page(reader, body);
    if (header.encoding != PLAIN_DICTIONARY && header.encoding != RLE_DICTIONARY) return false;
  } else if (header.encoding != PLAIN || header.plain_bytes < MIN_PART_BYTES || !header.compressed ||
             header.plain_bytes > 2 * static_cast<i64>(settings_.page_bytes)) {
    return false;
  }
  if (!header.is_data() || header.values != chunk.values || reader.at != reader.end) return false;
  found.levels = static_cast<size_t>(header.values);
  bool has_dictionary = entries >= 0;
  if (header.type == DATA_PAGE && !has_dictionary && leaf_.max_definition) {
    bool is_small = header.plain_bytes < static_cast<i64>(SMALL_PAGE_BYTES) && can_read(chunk.codec);
    if (is_small || chunk.nulls < 0 || header.definition_encoding != RLE) return false;
    found.as_is = true;
    found.values = found.levels - static_cast<size_t>(chunk.nulls);
    found.compressed = body;
    found.plain_bytes = static_cast<size_t>(header.plain_bytes);
    return true;
  }
  scratch_.kept.clear();
  if (has_dictionary) {  // indices are small: they are decoded, to see whether they count up
    DataPage page = open_page(header, body, chunk, leaf_, true, scratch_);
    if (page.values != static_cast<size_t>(entries)) return false;
    decode_dictionary_indices(page, chunk, page.values, scratch_);
    if (!counts_up(scratch_.indices.data(), page.values)) return false;
    found.values = page.values;
    if (page.definition) scratch_.kept.put(page.definition, page.levels);
  } else if (header.type == DATA_PAGE) {
    found.values = found.levels;
    found.compressed = body;
    found.plain_bytes = static_cast<size_t>(header.plain_bytes);
  } else {
    if (header.repetition_bytes || header.rows != header.values) return false;
    size_t of_levels = static_cast<size_t>(header.definition_bytes);
    found.compressed = {body.data + of_levels, body.size - of_levels};
    found.plain_bytes = static_cast<size_t>(header.plain_bytes) - of_levels;
    found.values = found.levels;
    if (leaf_.max_definition) {
      u8* definition = scratch_.kept.grow(found.levels);
      found.values = decode_definition(leaf_, body.data, body.data + header.definition_bytes, found.levels, definition);
    }
    if (header.nulls >= 0) {
      need(static_cast<i64>(found.levels - found.values) == header.nulls,
           "a page has another number of nulls than it says");
    }
  }
  return leaf_.type == BYTE_ARRAY || found.plain_bytes == found.values * leaf_.width();
}

// Where nobody vouches for the bytes, the values have to decode at least.
void ChunkWriter::prove(const Chunk& chunk, const Found& found, bool proven) {
  need(chunk.nulls < 0 || static_cast<i64>(found.levels - found.values) == chunk.nulls,
       "a column has another number of nulls than its statistics say");
  if (proven) return;
  if (found.as_is) {
    PageHeader header;
    header.type = DATA_PAGE;
    header.values = static_cast<i64>(found.levels);
    header.encoding = PLAIN;
    header.plain_bytes = static_cast<i64>(found.plain_bytes);
    DataPage page = open_page(header, found.compressed, chunk, leaf_, true, scratch_);
    need(page.values == found.values, "a column has another number of nulls than its statistics say");
    scratch_.check.clear();
    decode_values(leaf_, PLAIN, page.at, page.end, page.values, scratch_.check, scratch_.decode);
    return;
  }
  scratch_.check.clear();
  scratch_.check.reserve(found.plain_bytes);
  u8* plain = scratch_.check.data;
  scratch_.codecs.decompress(chunk.codec, found.compressed.data, found.compressed.size, plain, found.plain_bytes);
  if (leaf_.type == BYTE_ARRAY) {
    need(walk_byte_arrays(plain, plain + found.plain_bytes, found.values, nullptr) == found.plain_bytes,
         "a page ends early");
  }
}

bool ChunkWriter::copy(View file, const Chunk& chunk, i64 rows, bool proven, Column& before) {
  if (!settings_.copy || chunk.codec != settings_.codec) return false;
  bool only_way = !can_read(chunk.codec);  // whatever cannot be decompressed can still be copied
  if (before.has_dictionary && (before.levels || !only_way)) return false;
  if (before.levels && before.plain.size < SMALL_PAGE_BYTES && !only_way) return false;
  if (leaf_.type == BOOLEAN || leaf_.max_repetition || rows <= 0 || rows > static_cast<i64>(settings_.page_rows))
    return false;
  MinMax range;
  if (leaf_.order != Order::NONE) {
    if (!chunk.min_exact || !chunk.max_exact || !stated_min_max(leaf_, chunk, range)) return false;
  }
  Found found;
  if (!find(file, chunk, found)) return false;
  View elements;
  if (!found.as_is && !joinable(settings_.codec, found.compressed, found.plain_bytes, settings_.walk, elements))
    return false;
  prove(chunk, found, proven);
  if (before.has_dictionary) before.forget_values();
  if (before.levels) {  // nothing that is called from there uses `scratch_.kept`
    encode(before);
    before.forget_values();
  }
  if (found.as_is) {
    put_joined();
    put_as_is(found, static_cast<size_t>(rows), std::move(range));
    return true;
  }
  if (joined_.levels + found.levels > settings_.page_rows ||
      joined_.plain_bytes + found.plain_bytes > settings_.page_bytes)
    put_joined();
  if (leaf_.max_definition) joined_.definition.put(scratch_.kept.data, found.levels);
  joined_.parts.push_back(elements);
  joined_.levels += found.levels;
  joined_.values += found.values;
  joined_.bytes += elements.size;
  joined_.plain_bytes += found.plain_bytes;
  widen_range(leaf_, range, joined_.range);
  return true;
}

void ChunkWriter::put_as_is(const Found& found, size_t rows, MinMax range) {
  begin_data();
  PageInfo info;
  info.offset = static_cast<i64>(out_.size);
  info.row = info_.rows;
  info.nulls = static_cast<i64>(found.levels - found.values);
  info.all_null = !found.values;
  info.range = std::move(range);
  ThriftWriter header;
  header.open();
  header.int32(1, DATA_PAGE);
  header.int32(2, static_cast<i64>(found.plain_bytes));
  header.int32(3, static_cast<i64>(found.compressed.size));
  header.open(5);
  header.int32(1, static_cast<i64>(found.levels));
  header.int32(2, PLAIN);
  header.int32(3, RLE);
  header.int32(4, RLE);
  header.close();
  header.close();
  out_.put(header.bytes.data, header.bytes.size);
  out_.put(found.compressed.data, found.compressed.size);
  info_.bytes += static_cast<i64>(header.bytes.size + found.compressed.size);
  info_.plain_bytes += static_cast<i64>(header.bytes.size + found.plain_bytes);
  info_.values += static_cast<i64>(found.levels);
  info_.rows += static_cast<i64>(rows);
  info_.copied_bytes += static_cast<i64>(found.compressed.size);
  info_.copied_pages++;
  note_page(std::move(info));
}

void ChunkWriter::put_joined() {
  if (!joined_.levels) return;
  begin_data();
  PageInfo info;
  info.offset = static_cast<i64>(out_.size);
  info.row = info_.rows;
  info.nulls = static_cast<i64>(joined_.levels - joined_.values);
  info.all_null = !joined_.values;
  info.range = std::move(joined_.range);
  Bytes& levels = scratch_.packed;
  levels.clear();
  if (leaf_.max_definition) {
    int bits = bits_for(static_cast<u64>(leaf_.max_definition));
    encode_levels(joined_.definition.data, joined_.levels, bits, levels);
    if (settings_.verify) {
      levels.reserve(levels.size);  // SLACK behind it
      scratch_.check.clear();
      u8* found = scratch_.check.grow(joined_.levels);
      decode_hybrid<u8>(levels.data, levels.data + levels.size, bits, found, joined_.levels);
      came_out(!memcmp(found, joined_.definition.data, joined_.levels));
      came_out(static_cast<size_t>(std::count(found, found + joined_.levels, static_cast<u8>(leaf_.max_definition))) ==
               joined_.values);
    }
  }
  Bytes head;
  put_joined_head(settings_.codec, joined_.plain_bytes, head);
  size_t body_bytes = levels.size + head.size + joined_.bytes;
  ThriftWriter header;
  header.open();
  header.int32(1, DATA_PAGE_V2);
  header.int32(2, static_cast<i64>(levels.size + joined_.plain_bytes));
  header.int32(3, static_cast<i64>(body_bytes));
  header.open(8);
  header.int32(1, static_cast<i64>(joined_.levels));
  header.int32(2, info.nulls);
  header.int32(3, static_cast<i64>(joined_.levels));
  header.int32(4, PLAIN);
  header.int32(5, static_cast<i64>(levels.size));
  header.int32(6, 0);
  header.boolean(7, true);
  header.close();
  header.close();
  out_.put(header.bytes.data, header.bytes.size);
  out_.put(levels.data, levels.size);
  out_.put(head.data, head.size);
  for (View part : joined_.parts) out_.put(part.data, part.size);
  info_.bytes += static_cast<i64>(header.bytes.size + body_bytes);
  info_.plain_bytes += static_cast<i64>(header.bytes.size + levels.size + joined_.plain_bytes);
  info_.values += static_cast<i64>(joined_.levels);
  info_.rows += static_cast<i64>(joined_.levels);
  info_.copied_bytes += static_cast<i64>(joined_.bytes);
  info_.copied_pages++;
  info_.pages_v2++;
  joined_.parts.clear();
  joined_.definition.clear();
  joined_.levels = joined_.values = joined_.bytes = joined_.plain_bytes = 0;
  joined_.range = {};
  note_page(std::move(info));
}

}  // namespace pagemerge
