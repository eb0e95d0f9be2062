#include "writer.hpp"

namespace pagemerge {

void widen_range(const Leaf& leaf, const MinMax& more, MinMax& range) {
  if (!more.found) return;
  if (!range.found || compare(leaf, more.min, range.min) < 0) range.min = more.min;
  if (!range.found || compare(leaf, more.max, range.max) > 0) range.max = more.max;
  range.exact = range.exact && more.exact;
  range.found = true;
}

void came_out(bool right) {
  if (!right) refuse(PM_INTERNAL, "what was encoded does not decode to what went in");
}

namespace {

// Bytes of a column's first page that are compressed both ways; of fewer than a quarter nothing is tried.
constexpr size_t SAMPLE_BYTES = 2 * SMALL_PAGE_BYTES;

// Bounds of the values that a page's indices mean: of the entries that it uses, each once, as PLAIN has them.
MinMax used_range(const Leaf& leaf, const UnionDictionary& dictionary, const u32* indices, size_t count, Bytes& used,
                  Bytes& entries) {
  used.clear();
  u8* flags = used.grow(dictionary.count());
  memset(flags, 0, dictionary.count());
  for (size_t i = 0; i < count; i++) flags[indices[i]] = 1;
  entries.clear();
  size_t some = 0;
  for (size_t first = 0; first < dictionary.count();) {
    size_t end = first;
    while (end < dictionary.count() && flags[end]) end++;
    size_t from = dictionary.offsets[first];
    entries.put(dictionary.plain.data + from, dictionary.offsets[end] - from);
    some += end - first;
    first = end + 1;
  }
  return some ? min_max(leaf, entries.data, some) : MinMax{};
}

// Gives the dictionary up where values take less without, before compression.
void choose_form(Column& column) {
  if (!column.has_dictionary) return;
  const UnionDictionary& dictionary = column.dictionary;
  size_t width = column.leaf->width(), plain = column.values * width;
  if (!width) {
    for (size_t i = 0; i < column.values; i++) plain += dictionary.entry_bytes(column.indices[i]);
  }
  size_t bits = static_cast<size_t>(bits_for(dictionary.count() ? dictionary.count() - 1 : 0));
  if (!column.values || (dictionary.plain.size + column.values * bits / 8) * 4 > plain * 3) column.to_plain();
}

// DuckDB reads so many rows at a time (STANDARD_VECTOR_SIZE), and unpacks slowly where a page ends within them: pages
// have a multiple of them, unless they are to be smaller.
constexpr size_t VECTOR_ROWS = 2048;

size_t whole_vectors(size_t rows) { return rows > VECTOR_ROWS ? rows - rows % VECTOR_ROWS : rows; }

// How far a page goes: whole rows, at most so many rows and bytes; more rows where they take very few bytes.
struct PageExtent {
  size_t levels = 0, values = 0, rows = 0;
  const u8* plain_end = nullptr;

  PageExtent(const Column& column, size_t level, const u8* plain, int index_bits, const WriterSettings& settings)
      : plain_end(plain) {
    const Leaf& leaf = *column.leaf;
    size_t left = column.levels - level, width = leaf.width(), bytes = 0, bits = 0;
    size_t least_bits = 8 * settings.page_least_bytes;
    size_t bits_each = column.has_dictionary ? static_cast<size_t>(index_bits) : leaf.type == BOOLEAN ? 1 : 8 * width;
    bool every_value = !leaf.max_repetition && (!leaf.max_definition || column.values == column.levels);
    if (every_value && bits_each) {
      size_t most = column.has_dictionary ? left : std::max<size_t>(settings.page_bytes / width, 1);
      size_t wanted = whole_vectors(std::max(settings.page_rows, least_bits / bits_each));
      levels = values = rows = std::min({left, most, wanted});
      if (!column.has_dictionary) plain_end += levels * width;
      return;
    }
    const size_t page_rows = whole_vectors(settings.page_rows);
    const u8 *definition = column.definition.data + level, *repetition = column.repetition.data + level;
    for (; levels < left; levels++) {
      if (!leaf.max_repetition || !repetition[levels]) {
        bool is_full = rows >= page_rows && bits >= least_bits && (page_rows < VECTOR_ROWS || rows % VECTOR_ROWS == 0);
        if (is_full || bytes >= settings.page_bytes) break;
        rows++;
      }
      if (leaf.max_definition && definition[levels] != leaf.max_definition) continue;
      values++;
      bits += bits_each;
      if (column.has_dictionary) continue;
      size_t size = width ? width : 4 + static_cast<size_t>(load<u32>(plain_end));
      if (!bits_each) bits += 8 * size;
      plain_end += size;
      bytes += size;
    }
  }
};

void put_levels(const u8* levels, size_t count, int highest, Bytes& page) {
  size_t at = page.size;
  page.grow(4);
  encode_levels(levels, count, bits_for(static_cast<u64>(highest)), page);
  u32 length = static_cast<u32>(page.size - at - 4);
  memcpy(page.data + at, &length, 4);
}

void put_booleans(const u8* values, size_t count, Bytes& page) {
  u8* to = page.grow((count + 7) / 8);
  memset(to, 0, (count + 7) / 8);
  for (size_t i = 0; i < count; i++) to[i >> 3] |= static_cast<u8>(values[i] << (i & 7));
}

}  // namespace

// ---- what is encoded

void ChunkWriter::pack(View page) {
  scratch_.packed.clear();
  scratch_.codecs.compress(settings_.codec, settings_.level, page.data, page.size, scratch_.packed);
}

bool ChunkWriter::pack_repeats(View page, size_t values_at) {
  scratch_.packed.clear();
  return find_repeats(page, values_at, leaf_.width(), scratch_.repeats) &&
         scratch_.codecs.compress_repeats(settings_.level, page, scratch_.repeats, scratch_.packed);
}

// By the first values of a chunk, of which there have to be some.
bool ChunkWriter::repeats_are_smaller(View page, size_t values_at) {
  const View sample{page.data, end_of_values(page, values_at, leaf_.width(), SAMPLE_BYTES)};
  if (sample.size < values_at + SAMPLE_BYTES / 4) return false;
  if (!was_tried_) {
    was_tried_ = true;
    takes_repeats_ = pack_repeats(sample, values_at);
    const size_t size = scratch_.packed.size;
    if (takes_repeats_) pack(sample);
    takes_repeats_ &= size <= scratch_.packed.size;
  }
  return takes_repeats_;
}

// `values_at`: where values in PLAIN begin in it, which are no truths.
void ChunkWriter::put_page(int type, size_t values, int encoding, View page, size_t values_at) {
  const Bytes& packed = scratch_.packed;
  const bool may_repeat = values_at != NO_VALUES && settings_.codec == ZSTD;
  if (!may_repeat || !repeats_are_smaller(page, values_at) || !pack_repeats(page, values_at)) pack(page);
  ThriftWriter header;
  header.open();
  header.int32(1, type);
  header.int32(2, static_cast<i64>(page.size));
  header.int32(3, static_cast<i64>(packed.size));
  header.open(type == DICTIONARY_PAGE ? 7 : 5);
  header.int32(1, static_cast<i64>(values));
  header.int32(2, encoding);
  if (type == DATA_PAGE) {
    header.int32(3, RLE);
    header.int32(4, RLE);
  }
  header.close();
  header.close();
  out_.put(header.bytes.data, header.bytes.size);
  out_.put(packed.data, packed.size);
  info_.bytes += static_cast<i64>(header.bytes.size + packed.size);
  info_.plain_bytes += static_cast<i64>(header.bytes.size + page.size);
}

void ChunkWriter::begin_data() {
  if (info_.pages.empty()) info_.data_offset = static_cast<i64>(out_.size);
}

void ChunkWriter::note_page(PageInfo page) {
  page.bytes = static_cast<i64>(out_.size) - page.offset;
  widen_range(leaf_, page.range, info_.range);
  info_.ranges_known &= page.range.found || page.all_null;
  info_.nulls += page.nulls;
  info_.pages.push_back(std::move(page));
}

void ChunkWriter::encode(Column& column) {
  put_joined();
  choose_form(column);
  size_t from = out_.size;
  Bytes& page = scratch_.out_page;
  info_.values += static_cast<i64>(column.levels);
  int index_bits = 0;
  if (column.has_dictionary) {
    const UnionDictionary& dictionary = column.dictionary;
    index_bits = std::max(1, bits_for(dictionary.count() - 1));  // as Arrow: an index of no bits proves nothing
    info_.has_dictionary = true;
    info_.dictionary_offset = static_cast<i64>(out_.size);
    page.clear();
    page.put(dictionary.plain.data, dictionary.plain.size);
    put_page(DICTIONARY_PAGE, dictionary.count(), PLAIN, {page.data, page.size});
  }
  begin_data();
  size_t level = 0, value = 0;
  const u8* plain = column.plain.data;
  do {
    PageExtent extent(column, level, plain, index_bits, settings_);
    page.clear();
    if (leaf_.max_repetition) put_levels(column.repetition.data + level, extent.levels, leaf_.max_repetition, page);
    if (leaf_.max_definition) put_levels(column.definition.data + level, extent.levels, leaf_.max_definition, page);
    size_t values_at = column.has_dictionary || leaf_.type == BOOLEAN ? NO_VALUES : page.size;
    PageInfo info;
    info.offset = static_cast<i64>(out_.size);
    info.row = info_.rows;
    info.nulls = static_cast<i64>(extent.levels - extent.values);
    info.all_null = !extent.values;
    if (column.has_dictionary) {
      page.put_byte(static_cast<u8>(index_bits));
      encode_indices(column.indices.data() + value, extent.values, index_bits, page);
      if (leaf_.order != Order::NONE) {
        const u32* indices = column.indices.data() + value;
        info.range = used_range(leaf_, column.dictionary, indices, extent.values, scratch_.check, scratch_.used);
      }
    } else {
      if (leaf_.type == BOOLEAN) {
        put_booleans(plain, extent.values, page);
        extent.plain_end = plain + extent.values;
      } else {
        page.put(plain, static_cast<size_t>(extent.plain_end - plain));
      }
      if (extent.values) info.range = min_max(leaf_, plain, extent.values);
    }
    const int encoding = column.has_dictionary ? RLE_DICTIONARY : PLAIN;
    put_page(DATA_PAGE, extent.levels, encoding, {page.data, page.size}, values_at);
    note_page(std::move(info));
    info_.encoded_pages++;
    info_.rows += static_cast<i64>(extent.rows);
    level += extent.levels;
    value += extent.values;
    plain = extent.plain_end;
  } while (level < column.levels);
  if (!settings_.verify) return;
  double began = cpu_now();
  verify(column, from);
  verify_s += cpu_now() - began;
}

// Reads what was just written, from the output's bytes alone, and compares it with what the inputs held.
void ChunkWriter::verify(const Column& column, size_t from) {
  Chunk chunk;
  chunk.type = leaf_.type;
  chunk.codec = settings_.codec;
  chunk.values = static_cast<i64>(column.levels);
  chunk.bytes = static_cast<i64>(out_.size - from);
  if (column.has_dictionary) chunk.dictionary_offset = static_cast<i64>(from);
  chunk.data_offset = static_cast<i64>(from) + (column.has_dictionary ? 1 : 0);  // read from the start on
  size_t level = 0, value = 0, byte = 0, entries = 0;
  auto same = [](const u8* one, const u8* other, size_t size) { return !size || !memcmp(one, other, size); };
  each_page(
      {out_.data, out_.size}, chunk,
      [&](const PageHeader& header, View body) {
        scratch_.dictionary.clear();
        entries = open_dictionary(header, body, chunk, leaf_, scratch_.dictionary, scratch_);
        came_out(column.has_dictionary && entries == column.dictionary.count() &&
                 static_cast<size_t>(header.plain_bytes) == column.dictionary.plain.size &&
                 same(scratch_.dictionary.data, column.dictionary.plain.data, column.dictionary.plain.size));
      },
      [&](const PageHeader& header, View body, bool first) {
        DataPage page = open_page(header, body, chunk, leaf_, first, scratch_);
        came_out(page.levels <= column.levels - level && page.values <= column.values - value);
        if (page.definition) came_out(same(page.definition, column.definition.data + level, page.levels));
        if (page.repetition) came_out(same(page.repetition, column.repetition.data + level, page.levels));
        if (page.encoding == RLE_DICTIONARY) {
          decode_dictionary_indices(page, chunk, entries, scratch_);
          came_out(same(reinterpret_cast<const u8*>(scratch_.indices.data()),
                        reinterpret_cast<const u8*>(column.indices.data() + value), 4 * page.values));
        } else {
          scratch_.check.clear();
          View found{page.at, static_cast<size_t>(page.end - page.at)};
          if (leaf_.type == BOOLEAN) {
            decode_values(leaf_, page.encoding, page.at, page.end, page.values, scratch_.check, scratch_.decode);
            found = {scratch_.check.data, scratch_.check.size};
          } else {
            size_t width = leaf_.width();
            came_out(found.size ==
                     (width ? page.values * width : walk_byte_arrays(page.at, page.end, page.values, nullptr)));
          }
          came_out(!column.has_dictionary && found.size <= column.plain.size - byte &&
                   same(found.data, column.plain.data + byte, found.size));
          byte += found.size;
        }
        level += page.levels;
        value += page.values;
      });
  came_out(level == column.levels && value == column.values && (column.has_dictionary || byte == column.plain.size));
}

// ---- page indexes

ChunkInfo ChunkWriter::finish() {
  put_joined();
  ThriftWriter offsets;
  offsets.open();
  offsets.list(1, T_STRUCT, info_.pages.size());
  bool ranges_known = leaf_.order != Order::NONE && info_.ranges_known;
  for (const PageInfo& page : info_.pages) {
    offsets.open();
    offsets.int64(1, page.offset);
    offsets.int32(2, page.bytes);
    offsets.int64(3, page.row);
    offsets.close();
    ranges_known &= page.range.min.size() <= MAX_STATISTIC_BYTES && page.range.max.size() <= MAX_STATISTIC_BYTES;
  }
  offsets.close();
  info_.offset_index = std::move(offsets.bytes);
  if (!ranges_known) return std::move(info_);
  ThriftWriter index;
  index.open();
  index.list(1, T_TRUE, info_.pages.size());
  for (const PageInfo& page : info_.pages) index.bytes.put_byte(page.all_null ? T_TRUE : T_FALSE);
  index.list(2, T_BINARY, info_.pages.size());
  for (const PageInfo& page : info_.pages) index.text(page.range.min.data(), page.range.min.size());
  index.list(3, T_BINARY, info_.pages.size());
  for (const PageInfo& page : info_.pages) index.text(page.range.max.data(), page.range.max.size());
  bool ascending = true, descending = true;
  const PageInfo* last = nullptr;
  for (const PageInfo& page : info_.pages) {
    if (!page.range.found) continue;
    if (last) {
      int by_min = compare(leaf_, last->range.min, page.range.min),
          by_max = compare(leaf_, last->range.max, page.range.max);
      ascending &= by_min <= 0 && by_max <= 0;
      descending &= by_min >= 0 && by_max >= 0;
    }
    last = &page;
  }
  index.int32(4, ascending ? 1 : descending ? 2 : 0);  // BoundaryOrder
  index.list(5, T_I64, info_.pages.size());
  for (const PageInfo& page : info_.pages) index.zigzag(page.nulls);
  index.close();
  info_.column_index = std::move(index.bytes);
  return std::move(info_);
}

}  // namespace pagemerge
