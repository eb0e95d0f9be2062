// Pages that are copied: they are found, proven, joined and written, but never decoded.
#include "writer.hpp"

namespace pagemerge {
namespace {

// Of PLAIN values in a part of a joined page; fewer are decoded quickly.
constexpr i64 MIN_PART_BYTES = PM_SMALL_PAGE_BYTES / 64;
// Pages of a chunk that is copied; what comes of more is decoded, and has larger ones then.
constexpr size_t MOST_PIECES = 1024;
// A page of version 1 with so many bytes stays as it is, levels and all.
constexpr i64 SPLIT_PAGE_BYTES = PM_SPLIT_PAGE_BYTES;
// A piece cannot be cut: it may have so many times as many rows as a page that is encoded.
constexpr size_t LONGER = 8;
// Values that come again in a dictionary that its indices go through, besides one of four.
constexpr size_t MOST_AGAIN = 16;
// Bytes of values that tell of those that follow.
constexpr size_t UNLIKE_BYTES = 4 * SMALL_PAGE_BYTES;
// Of values that were decoded first, so many at the most are taken up once more, to be copied.
constexpr size_t MOST_ANEW_BYTES = 16 * SMALL_PAGE_BYTES;
// Rows that begin in a page, or in some that follow each other; each value is one where there are no lists.
size_t rows_of(const u8* repetition, size_t levels) {
  return repetition ? static_cast<size_t>(std::count(repetition, repetition + levels, 0)) : levels;
}

constexpr const char* WRONG_NULLS = "a column has another number of nulls than its statistics say";

}  // namespace

// Values that lie in one piece, compressed as the output wants them: in a PLAIN page, or in a dictionary page that the
// indices go through once, as where values do not repeat.
struct ChunkWriter::Found {
  View compressed;         // of the values, or of the whole page where `as_is`
  size_t plain_bytes = 0;  // of the same
  size_t levels = 0, values = 0, rows = 0;
  size_t definition = 0;   // where its levels begin in `scratch_.kept`, and in `scratch_.kept_repetition`
  bool by_index = false;   // a dictionary page
  bool as_is = false;      // a page of version 1, whose levels are compressed with its values, and stay with them
  bool is_split = false;   // the values of a page that is taken apart: they were gone through then
  bool is_spread = false;  // a dictionary, some of whose values come again: made of what was decompressed
  size_t first_part = 0, parts = 0;  // what is joined: all of `compressed` but what a codec has in front
};

// The pieces of a chunk; false if some of its values have to be decoded.
bool ChunkWriter::find(View file, const Chunk& chunk, std::vector<Found>& found) {
  ThriftReader reader{file.data + chunk.start(), file.data + chunk.start() + chunk.bytes};
  const i64 page_bytes = static_cast<i64>(settings_.page_bytes);
  i64 levels = 0, entries = -1;
  size_t indexed = 0;  // values that have come by the dictionary
  bool in_dictionary = false;
  PageHeader dictionary;
  scratch_.kept.clear();
  scratch_.kept_repetition.clear();
  parts_.clear();
  again_.clear();
  while (levels < chunk.values) {
    if (reader.at == reader.end || found.size() > MOST_PIECES) return false;
    View body;
    PageHeader header = next_page(reader, body);
    if (header.type == DICTIONARY_PAGE) {
      if (levels || entries >= 0 || !chunk.has_dictionary() || header.plain_bytes < MIN_PART_BYTES) return false;
      if (header.encoding != PLAIN && header.encoding != PLAIN_DICTIONARY) return false;
      if (header.plain_bytes > 2 * page_bytes) return false;
      entries = header.values;
      in_dictionary = true;
      dictionary = header;
      found.emplace_back();
      found.back().by_index = true;
      found.back().compressed = body;
      found.back().plain_bytes = static_cast<size_t>(header.plain_bytes);
      continue;
    }
    if (!header.is_data() || header.values <= 0 || header.values > chunk.values - levels) return false;
    bool by_index = header.encoding == PLAIN_DICTIONARY || header.encoding == RLE_DICTIONARY;
    if (by_index != in_dictionary) {  // the values of a dictionary come first, and all of them
      if (by_index || indexed != static_cast<size_t>(entries)) return false;
      in_dictionary = false;
    }
    const bool is_first = !levels;
    levels += header.values;
    if (by_index) {  // indices are small: they are decoded, to see whether they count up
      DataPage page = open_page(header, body, chunk, leaf_, is_first, scratch_);
      decode_dictionary_indices(page, chunk, static_cast<size_t>(entries), scratch_);
      if (counts_up(scratch_.indices.data(), page.values, indexed)) {
        indexed += page.values;
      } else if (!find_again(dictionary, found.back().compressed, chunk, page.values, indexed)) {
        return false;
      }
      found.back().values += page.values;
      found.back().levels += page.levels;
      found.back().rows += rows_of(page.repetition, page.levels);
      if (page.definition) scratch_.kept.put(page.definition, page.levels);
      if (page.repetition) scratch_.kept_repetition.put(page.repetition, page.levels);
    } else if (!find_plain(header, body, chunk, found)) {
      return false;
    }
  }
  if (reader.at != reader.end || found.empty() || (in_dictionary && indexed != static_cast<size_t>(entries)))
    return false;
  if (again_.size() && !spread_again(found[0])) return false;
  size_t plain_bytes = 0, copied_pages = 0;
  for (const Found& each : found) {
    if (leaf_.type != BYTE_ARRAY && !each.as_is && each.plain_bytes != each.values * leaf_.width()) return false;
    plain_bytes += each.plain_bytes;
    copied_pages += each.as_is;
  }
  // pages that stay apart are to be large, on average, where their values can be decoded
  return !copied_pages || plain_bytes >= found.size() * SMALL_PAGE_BYTES || !can_read(chunk.codec);
}

// Where a page's indices go back to entries that were there before: those come again. `indexed`: entries so far. False
// if they do so often, or leave some out.
bool ChunkWriter::find_again(const PageHeader& dictionary, View body, const Chunk& chunk, size_t count,
                             size_t& indexed) {
  if (!can_skim(chunk.codec)) return false;
  const size_t width = leaf_.width();
  if (!again_.size()) {
    scratch_.dictionary.clear();
    open_dictionary(dictionary, body, chunk, leaf_, scratch_.dictionary, scratch_);
  }
  auto begin = [&](size_t entry) { return width ? entry * width : scratch_.ends[entry]; };
  for (size_t i = 0; i < count; i++) {
    const size_t index = scratch_.indices[i];
    if (index == indexed) {
      indexed++;
      continue;
    }
    if (index > indexed || again_.size() > MOST_AGAIN + indexed / 4) return false;
    again_.push({begin(indexed), begin(index), begin(index + 1) - begin(index)});
  }
  return true;
}

// Makes a PLAIN page of a dictionary of which some values come again.
bool ChunkWriter::spread_again(Found& found) {
  size_t plain = found.plain_bytes;
  for (size_t i = 0; i < again_.size(); i++) plain += again_[i].size;
  if (plain > 2 * settings_.page_bytes) return false;
  const size_t head = spread(found.compressed, found.plain_bytes, again_, spread_);
  if (settings_.verify) check_spread(found.plain_bytes, plain);
  found.plain_bytes = plain;
  found.is_spread = true;
  found.first_part = parts_.size();
  found.parts = 1;
  Part part;
  part.rest = {spread_.data + head, spread_.size - head};
  parts_.push_back(part);
  return true;
}

// Decompresses what was made of so many bytes, and compares it with the dictionary.
void ChunkWriter::check_spread(size_t before, size_t plain) {
  scratch_.check.clear();
  const u8* at = scratch_.check.grow(plain);
  scratch_.codecs.decompress(settings_.codec, spread_.data, spread_.size, scratch_.check.data, plain);
  size_t done = 0;
  auto goes_on = [&](size_t from, size_t size) {
    came_out(!size || !memcmp(at, scratch_.dictionary.data + from, size));
    at += size;
  };
  for (size_t i = 0; i < again_.size(); i++) {
    goes_on(done, again_[i].behind - done);
    done = again_[i].behind;
    goes_on(again_[i].from, again_[i].size);
  }
  goes_on(done, before - done);
}

// Decodes the levels of a page of values; false if it begins within a row: a page of the output may not.
bool ChunkWriter::keep_levels(Found& piece, View repetition, View definition) {
  if (leaf_.max_repetition) {
    u8* kept = scratch_.kept_repetition.grow(piece.levels);
    decode_repetition(leaf_, repetition.data, repetition.end(), piece.levels, false, kept);
    piece.rows = rows_of(kept, piece.levels);
    if (kept[0]) return false;
  }
  if (leaf_.max_definition) {
    u8* kept = scratch_.kept.grow(piece.levels);
    piece.values = decode_definition(leaf_, definition.data, definition.end(), piece.levels, kept);
  }
  return true;
}

// A page of values.
bool ChunkWriter::find_plain(const PageHeader& header, View body, const Chunk& chunk, std::vector<Found>& found) {
  const bool is_only = header.values == chunk.values, is_packed = header.compressed || chunk.codec == UNCOMPRESSED;
  if (header.encoding != PLAIN || (!is_packed && !can_skim(chunk.codec)) ||
      (is_only && header.plain_bytes < MIN_PART_BYTES) ||
      header.plain_bytes > 2 * static_cast<i64>(settings_.page_bytes))
    return false;
  Found piece;
  piece.levels = piece.values = piece.rows = static_cast<size_t>(header.values);
  piece.compressed = body;
  piece.plain_bytes = static_cast<size_t>(header.plain_bytes);
  piece.definition = scratch_.kept.size;
  if (header.type == DATA_PAGE && leaf_.max_definition) {
    if (header.definition_encoding != RLE || (leaf_.max_repetition && header.repetition_encoding != RLE)) return false;
    // how many of its levels are nulls stands within it, unless it has all of the chunk's, or none
    const bool tells_nulls = !leaf_.max_repetition && (!chunk.nulls || (chunk.nulls > 0 && is_only));
    const bool may_stay = tells_nulls && header.plain_bytes >= SPLIT_PAGE_BYTES;
    if (!may_stay && can_skim(chunk.codec) && split_page(header, body, leaf_, scratch_, split_)) {
      if (!keep_levels(piece, split_.levels[0], split_.levels[1])) return false;
      piece.plain_bytes = split_.plain_bytes;
      piece.is_split = true;
      piece.first_part = parts_.size();
      piece.parts = split_.parts.size();
      parts_.insert(parts_.end(), split_.parts.begin(), split_.parts.end());
      found.push_back(piece);
      return true;
    }
    if (!tells_nulls) return false;
    piece.as_is = true;
    piece.values -= static_cast<size_t>(chunk.nulls);
  } else if (header.type == DATA_PAGE_V2) {
    const size_t of_repetition = static_cast<size_t>(header.repetition_bytes);
    const size_t of_levels = of_repetition + static_cast<size_t>(header.definition_bytes);
    if (of_repetition && !leaf_.max_repetition) return false;
    piece.compressed = {body.data + of_levels, body.size - of_levels};
    piece.plain_bytes -= of_levels;
    const View levels{body.data, of_levels};
    if (!keep_levels(piece, {levels.data, of_repetition}, {levels.data + of_repetition, of_levels - of_repetition}))
      return false;
    if (header.rows != static_cast<i64>(piece.rows)) return false;
    if (header.nulls >= 0 && !leaf_.max_repetition) {
      need(static_cast<i64>(piece.levels - piece.values) == header.nulls,
           "a page has another number of nulls than it says");
    }
    if (!is_packed && piece.plain_bytes) {  // as it lies there it is a literal
      if (piece.compressed.size != piece.plain_bytes) return false;
      Part part;
      part.head_bytes = put_literal_tag(piece.plain_bytes, part.head);
      part.rest = piece.compressed;
      piece.is_split = true;
      piece.first_part = parts_.size();
      piece.parts = 1;
      parts_.push_back(part);
    }
  }
  found.push_back(piece);
  return true;
}

// Where nobody vouches for the bytes, the values have to decode at least; false if more follows the last of them, so
// that they cannot be joined to others.
bool ChunkWriter::prove(const Chunk& chunk, const Found& found) {
  if (found.as_is) {
    PageHeader header;
    header.type = DATA_PAGE;
    header.values = static_cast<i64>(found.levels);
    header.encoding = PLAIN;
    header.plain_bytes = static_cast<i64>(found.plain_bytes);
    DataPage page = open_page(header, found.compressed, chunk, leaf_, true, scratch_);
    need(page.values == found.values, WRONG_NULLS);
    scratch_.check.clear();
    decode_values(leaf_, PLAIN, page.at, page.end, page.values, scratch_.check, scratch_.decode);
    return true;
  }
  if (found.is_spread || (!found.plain_bytes && !found.compressed.size)) return true;
  // values of one width are as many as their bytes say, and whether those can be had shows from going through them
  if (leaf_.width() && (found.is_split || (settings_.walk && can_skim(chunk.codec)))) return true;
  View compressed = found.compressed;
  if (found.is_split) {
    Bytes& whole = scratch_.packed;
    whole.clear();
    put_joined_head(chunk.codec, found.plain_bytes, whole);
    for (size_t i = 0; i < found.parts; i++) parts_[found.first_part + i].put(whole);
    compressed = {whole.data, whole.size};
  }
  scratch_.check.clear();
  scratch_.check.reserve(found.plain_bytes);
  u8* plain = scratch_.check.data;
  scratch_.codecs.decompress(chunk.codec, compressed.data, compressed.size, plain, found.plain_bytes);
  return leaf_.type != BYTE_ARRAY ||
         walk_byte_arrays(plain, plain + found.plain_bytes, found.values, nullptr) == found.plain_bytes;
}

Way ChunkWriter::copy(View file, const Chunk& chunk, i64 rows, bool proven, Column& before) {
  if (!settings_.copy || chunk.codec != settings_.codec) return Way::DECODE;
  bool only_way = !can_read(chunk.codec);  // whatever cannot be decompressed can still be copied
  if (before.has_dictionary && before.levels) return Way::DECODE;
  const bool is_early = before.levels && info_.pages.empty() && !joined_.levels && !was_anew_;
  if (before.levels && before.plain.size < SMALL_PAGE_BYTES && !only_way && !is_early) return Way::DECODE;
  if (leaf_.type == BOOLEAN || rows <= 0) return Way::DECODE;
  MinMax range;
  if (leaf_.order != Order::NONE) {
    if (!chunk.min_exact || !chunk.max_exact || !stated_min_max(leaf_, chunk, range)) return Way::DECODE;
  }
  // nobody knows yet whether values repeat: a large dictionary says so that is gone through once, or that there is none
  const bool is_first = before.has_dictionary && !only_way;
  std::vector<Found> found;
  if (!find(file, chunk, found)) return Way::DECODE;
  size_t levels = 0, values = 0, copied_rows = 0, plain_bytes = 0;
  for (Found& each : found) {
    if (each.levels > LONGER * settings_.page_rows) return Way::DECODE;
    if (!each.as_is && !each.is_split && !each.is_spread) {
      Part part;
      if (!joinable(settings_.codec, each.compressed, each.plain_bytes, part.rest)) return Way::DECODE;
      each.first_part = parts_.size();
      each.parts = 1;
      parts_.push_back(part);
    }
    levels += each.levels;
    values += each.values;
    copied_rows += each.rows;
    plain_bytes += each.plain_bytes;
  }
  if (static_cast<i64>(copied_rows) != rows) return Way::DECODE;
  if (is_first && found[0].by_index && (plain_bytes < UNLIKE_BYTES || found[0].is_spread)) return Way::DECODE;
  if (is_early && before.plain.size < MOST_ANEW_BYTES) {
    was_anew_ = true;
    return Way::ANEW;
  }
  need(leaf_.max_repetition || chunk.nulls < 0 || static_cast<i64>(levels - values) == chunk.nulls, WRONG_NULLS);
  if (!proven) {
    for (const Found& each : found) {
      if (!prove(chunk, each)) return Way::DECODE;
    }
  }
  if (before.has_dictionary) before.forget_values();
  if (is_first) before.to_plain();
  if (before.levels) {  // nothing that is called from there uses `scratch_.kept`
    encode(before);
    before.forget_values();
  }
  for (const Found& each : found) {
    if (settings_.walk && !each.as_is && !each.is_split && !each.is_spread &&
        (each.plain_bytes || each.compressed.size) && can_skim(settings_.codec))
      skimmed_.add(each.compressed, each.plain_bytes);
    put_found(each, range);
  }
  return Way::COPIED;
}

// `range`: of the values of the whole chunk, which bounds those of each piece.
void ChunkWriter::put_found(const Found& found, const MinMax& range) {
  if (found.as_is) {
    put_joined();
    put_as_is(found, range);
    return;
  }
  if (joined_.rows + found.rows > settings_.page_rows || joined_.levels + found.levels > LONGER * settings_.page_rows ||
      joined_.plain_bytes + found.plain_bytes > settings_.page_bytes)
    put_joined();
  if (found.is_spread) joined_.made.push_back(std::move(spread_));  // parts stay where they lie
  if (leaf_.max_definition) joined_.definition.put(scratch_.kept.data + found.definition, found.levels);
  if (leaf_.max_repetition) joined_.repetition.put(scratch_.kept_repetition.data + found.definition, found.levels);
  for (size_t i = found.first_part; i < found.first_part + found.parts; i++) {
    joined_.parts.push_back(parts_[i]);
    joined_.bytes += parts_[i].size();
  }
  joined_.levels += found.levels;
  joined_.values += found.values;
  joined_.rows += found.rows;
  joined_.plain_bytes += found.plain_bytes;
  if (found.values) widen_range(leaf_, range, joined_.range);
}

void ChunkWriter::put_as_is(const Found& found, const MinMax& range) {
  begin_data();
  PageInfo info;
  info.offset = static_cast<i64>(out_.size);
  info.row = info_.rows;
  info.nulls = static_cast<i64>(found.levels - found.values);
  info.all_null = !found.values;
  info.range = range;
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
  info_.rows += static_cast<i64>(found.levels);
  info_.copied_bytes += static_cast<i64>(found.compressed.size);
  info_.copied_pages++;
  note_page(std::move(info));
}

// Levels as a page of version 2 has them.
void ChunkWriter::put_bare_levels(const Bytes& levels, int highest, Bytes& to) {
  const size_t from = to.size;
  const int bits = bits_for(static_cast<u64>(highest));
  encode_levels(levels.data, levels.size, bits, to);
  if (!settings_.verify) return;
  to.reserve(to.size);  // SLACK behind it
  scratch_.check.clear();
  u8* found = scratch_.check.grow(levels.size);
  decode_hybrid<u8>(to.data + from, to.data + to.size, bits, found, levels.size);
  came_out(!memcmp(found, levels.data, levels.size));
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
  if (leaf_.max_repetition) put_bare_levels(joined_.repetition, leaf_.max_repetition, levels);
  const size_t of_repetition = levels.size;
  if (leaf_.max_definition) {
    put_bare_levels(joined_.definition, leaf_.max_definition, levels);
    const u8* defined = joined_.definition.data;
    came_out(static_cast<size_t>(std::count(defined, defined + joined_.levels,
                                            static_cast<u8>(leaf_.max_definition))) == joined_.values);
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
  header.int32(3, static_cast<i64>(joined_.rows));
  header.int32(4, PLAIN);
  header.int32(5, static_cast<i64>(levels.size - of_repetition));
  header.int32(6, static_cast<i64>(of_repetition));
  header.boolean(7, true);
  header.close();
  header.close();
  out_.put(header.bytes.data, header.bytes.size);
  out_.put(levels.data, levels.size);
  out_.put(head.data, head.size);
  for (const Part& part : joined_.parts) part.put(out_);
  info_.bytes += static_cast<i64>(header.bytes.size + body_bytes);
  info_.plain_bytes += static_cast<i64>(header.bytes.size + levels.size + joined_.plain_bytes);
  info_.values += static_cast<i64>(joined_.levels);
  info_.rows += static_cast<i64>(joined_.rows);
  info_.copied_bytes += static_cast<i64>(joined_.bytes);
  info_.copied_pages++;
  info_.pages_v2++;
  joined_.parts.clear();
  joined_.made.clear();
  joined_.definition.clear();
  joined_.repetition.clear();
  joined_.levels = joined_.values = joined_.rows = joined_.bytes = joined_.plain_bytes = 0;
  joined_.range = {};
  note_page(std::move(info));
}

}  // namespace pagemerge
