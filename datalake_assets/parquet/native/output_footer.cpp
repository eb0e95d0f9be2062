#include "merge.hpp"

namespace pagemerge {
namespace {

// Whether the rows of all inputs, one after the other, are sorted as each of them says that it is.
View common_sorting(const std::vector<File>& files, bool reordered, bool& dropped) {
  View sorting;
  size_t groups = 0, said = 0;
  std::vector<const Chunk*> chunks;
  SortingColumn by;
  bool kept = true;
  for (const File& file : files) {
    for (const RowGroup& group : file.footer.groups) {
      if (!group.rows) continue;
      groups++;
      if (!group.sorting.size) continue;
      if (!said++) {
        sorting = group.sorting;
        by = first_sorting_column(sorting);
      }
      kept &= group.sorting == sorting;
      if (by.leaf < 0 || static_cast<size_t>(by.leaf) >= group.chunks.size()) {
        kept = false;
      } else {
        chunks.push_back(&group.chunks[static_cast<size_t>(by.leaf)]);
      }
    }
  }
  if (!said) return {};
  kept &= said == groups && !reordered;
  // one strictly before the next by the first of the columns, without nulls: then the others don't matter
  for (size_t i = 1; kept && i < chunks.size(); i++) {
    const Leaf& leaf = files[0].footer.leaves[static_cast<size_t>(by.leaf)];
    MinMax before, after;
    kept = leaf.order != Order::FLOATING && chunks[i - 1]->nulls == 0 && chunks[i]->nulls == 0 &&
           stated_min_max(leaf, *chunks[i - 1], before) && stated_min_max(leaf, *chunks[i], after) &&
           (by.descending ? compare(leaf, after.max, before.min) : compare(leaf, before.max, after.min)) < 0;
  }
  dropped = !kept;
  return kept ? sorting : View{};
}

struct Placed {  // where a column's extras lie
  i64 column_index = 0, offset_index = 0, bloom = 0;
};

void put_statistics(const Leaf& leaf, const ChunkInfo& chunk, ThriftWriter& writer) {
  writer.open(12);
  writer.int64(3, chunk.nulls);
  const MinMax& range = chunk.range;
  bool known = leaf.order != Order::NONE && range.found;  // pages of NaN alone have no part in it
  if (known && range.min.size() <= MAX_STATISTIC_BYTES && range.max.size() <= MAX_STATISTIC_BYTES) {
    writer.binary(5, range.max.data(), range.max.size());
    writer.binary(6, range.min.data(), range.min.size());
    if (range.exact) {
      writer.boolean(7, true);
      writer.boolean(8, true);
    }
  }
  writer.close();
}

void put_encoding_stats(const ChunkInfo& chunk, ThriftWriter& writer) {
  i64 v1 = static_cast<i64>(chunk.pages.size()) - chunk.pages_v2;
  writer.list(13, T_STRUCT, (chunk.has_dictionary ? 1u : 0u) + (v1 ? 1u : 0u) + (chunk.pages_v2 ? 1u : 0u));
  auto put = [&](int type, int encoding, i64 count) {
    writer.open();
    writer.int32(1, type);
    writer.int32(2, encoding);
    writer.int32(3, count);
    writer.close();
  };
  if (chunk.has_dictionary) put(DICTIONARY_PAGE, PLAIN, 1);
  if (v1) put(DATA_PAGE, chunk.has_dictionary ? RLE_DICTIONARY : PLAIN, v1);
  if (chunk.pages_v2) put(DATA_PAGE_V2, PLAIN, chunk.pages_v2);
}

void put_chunk(const Leaf& leaf, const ChunkInfo& chunk, const Placed& placed, View key_values, int codec,
               ThriftWriter& writer) {
  writer.open();
  writer.int64(2, 0);
  writer.open(3);
  writer.int32(1, leaf.type);
  writer.list(2, T_I32, chunk.has_dictionary ? 3 : 2);
  writer.zigzag(PLAIN);
  writer.zigzag(RLE);
  if (chunk.has_dictionary) writer.zigzag(RLE_DICTIONARY);
  writer.list(3, T_BINARY, leaf.path.size());
  for (View name : leaf.path) writer.text(name.data, name.size);
  writer.int32(4, codec);
  writer.int64(5, chunk.values);
  writer.int64(6, chunk.plain_bytes);
  writer.int64(7, chunk.bytes);
  if (key_values.size) {
    writer.field(8, T_LIST);
    writer.bytes.put(key_values.data, key_values.size);
  }
  writer.int64(9, chunk.data_offset);
  if (chunk.has_dictionary) writer.int64(11, chunk.dictionary_offset);
  put_statistics(leaf, chunk, writer);
  put_encoding_stats(chunk, writer);
  if (chunk.bloom.size) {
    writer.int64(14, placed.bloom);
    writer.int32(15, static_cast<i64>(chunk.bloom.size));
  }
  writer.close();
  writer.int64(4, placed.offset_index);
  writer.int32(5, static_cast<i64>(chunk.offset_index.size));
  if (chunk.column_index.size) {
    writer.int64(6, placed.column_index);
    writer.int32(7, static_cast<i64>(chunk.column_index.size));
  }
  writer.close();
}

void put_key_values(const pm_options& options, View inputs, ThriftWriter& writer) {
  if (!options.keys) {
    if (!inputs.size) return;
    writer.field(5, T_LIST);
    writer.bytes.put(inputs.data, inputs.size);
    return;
  }
  if (!options.key_values) return;
  writer.list(5, T_STRUCT, static_cast<size_t>(options.key_values));
  for (i64 i = 0; i < options.key_values; i++) {
    const pm_text &key = options.keys[i], &value = options.values[i];
    writer.open();
    writer.binary(1, key.data, static_cast<size_t>(key.size_bytes));
    if (value.size_bytes >= 0) writer.binary(2, value.data, static_cast<size_t>(value.size_bytes));
    writer.close();
  }
}

}  // namespace

bool put_footer(const OutputFooter& footer, Bytes& out) {
  const std::vector<ChunkInfo>& chunks = footer.chunks;
  const Footer& first = footer.files[0].footer;
  std::vector<Placed> placed(chunks.size());
  auto put = [&](const Bytes& bytes) {
    i64 place = static_cast<i64>(out.size);
    out.put(bytes.data, bytes.size);
    return place;
  };
  i64 plain = 0, packed = 0;
  for (size_t i = 0; i < chunks.size(); i++) placed[i].bloom = put(chunks[i].bloom);
  for (size_t i = 0; i < chunks.size(); i++) placed[i].column_index = put(chunks[i].column_index);
  for (size_t i = 0; i < chunks.size(); i++) {
    placed[i].offset_index = put(chunks[i].offset_index);
    plain += chunks[i].plain_bytes;
    packed += chunks[i].bytes;
  }
  bool dropped = false;
  ThriftWriter writer;
  writer.open();
  writer.int32(1, 2);
  writer.field(2, T_LIST);
  writer.bytes.put(first.schema_list.data, first.schema_list.size);
  writer.int64(3, footer.rows);
  writer.list(4, T_STRUCT, footer.rows ? 1 : 0);
  if (footer.rows) {
    writer.open();
    writer.list(1, T_STRUCT, chunks.size());
    for (size_t i = 0; i < chunks.size(); i++) {
      put_chunk(first.leaves[i], chunks[i], placed[i], footer.chunk_key_values[i], footer.options.codec, writer);
    }
    writer.int64(2, plain);
    writer.int64(3, footer.rows);
    View sorting = common_sorting(footer.files, footer.reordered, dropped);
    if (sorting.size) {
      writer.field(4, T_LIST);
      writer.bytes.put(sorting.data, sorting.size);
    }
    if (!chunks.empty()) writer.int64(5, 4);
    writer.int64(6, packed);
    writer.int16(7, 0);
    writer.close();
  }
  put_key_values(footer.options, first.key_values, writer);
  writer.binary(6, footer.options.created_by, static_cast<size_t>(footer.options.created_by_bytes));
  writer.list(7, T_STRUCT, first.leaves.size());
  for (size_t i = 0; i < first.leaves.size(); i++) {
    writer.open();
    writer.empty(1);
    writer.close();
  }
  writer.close();
  out.put(writer.bytes.data, writer.bytes.size);
  u32 length = static_cast<u32>(writer.bytes.size);
  out.put(&length, 4);
  out.put("PAR1", 4);
  return dropped;
}

}  // namespace pagemerge
