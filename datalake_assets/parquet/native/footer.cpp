#include "footer.hpp"

#include <algorithm>

namespace pagemerge {
namespace {

constexpr int MAX_SCHEMA_DEPTH = 64;
constexpr int MAX_FIXED_BYTES = 1 << 20;
constexpr size_t TAIL_BYTES = 8;  // the footer's length, and the magic

// A SchemaElement (parquet.thrift).
struct Element {
  int type = -1, length = 0, repetition = 0, children = 0;
  int converted = -1;  // ConvertedType
  int logical = 0;     // the field of LogicalType's union
  bool is_signed = true;
  View name;
};

enum Converted { UTF8 = 0, ENUM = 4, DECIMAL = 5, UINT_8 = 11, UINT_64 = 14, JSON = 19, BSON = 20 };
enum Logical {
  STRING = 1,
  ENUM_TYPE = 4,
  DECIMAL_TYPE = 5,
  INTEGER = 10,
  UNKNOWN = 11,
  JSON_TYPE = 12,
  BSON_TYPE = 13,
  UUID = 14
};

Order order_of(const Element& element) {
  switch (element.type) {
    case BOOLEAN:
      return Order::UNSIGNED;
    case INT32:
    case INT64:
      if (element.converted >= UINT_8 && element.converted <= UINT_64) return Order::UNSIGNED;
      if (element.logical == INTEGER && !element.is_signed) return Order::UNSIGNED;
      return element.logical <= UNKNOWN ? Order::SIGNED : Order::NONE;
    case FLOAT:
    case DOUBLE:
      return Order::FLOATING;
    case BYTE_ARRAY:
      switch (element.logical) {
        case STRING:
        case ENUM_TYPE:
        case JSON_TYPE:
        case BSON_TYPE:
          return Order::BYTES;
        case 0:
          switch (element.converted) {
            case -1:
            case UTF8:
            case ENUM:
            case JSON:
            case BSON:
              return Order::BYTES;
            default:
              return Order::NONE;
          }
        default:
          return Order::NONE;
      }
    case FIXED_LEN_BYTE_ARRAY:
      if (element.logical == UUID) return Order::BYTES;
      if (element.logical == DECIMAL_TYPE || (!element.logical && element.converted == DECIMAL))
        return Order::SIGNED_BIG_ENDIAN;
      return !element.logical && element.converted == -1 ? Order::BYTES : Order::NONE;
    default:
      return Order::NONE;
  }
}

Element parse_element(ThriftReader& reader) {
  Element element;
  reader.fields([&](int field, int type) {
    if (field == 4) {
      need(type == T_BINARY, "its schema is damaged");
      element.name = reader.binary();
      return true;
    }
    if (type == T_I32) {
      i32 value = reader.int32();
      if (field == 1) element.type = value;
      if (field == 2) element.length = value;
      if (field == 3) element.repetition = value;
      if (field == 5) element.children = value;
      if (field == 6) element.converted = value;
      return true;
    }
    if (field == 10 && type == T_STRUCT) {
      reader.fields([&](int kind, int inner) {
        element.logical = kind;
        if (kind != INTEGER || inner != T_STRUCT) return false;
        reader.fields([&](int part, int truth) {
          if (part == 2) element.is_signed = truth == T_TRUE;
          return false;
        });
        return true;
      });
      return true;
    }
    return false;
  });
  return element;
}

struct SchemaWalk {
  ThriftReader& reader;
  u64 left;
  std::vector<Leaf>& leaves;
  std::vector<View> path;
  std::vector<Repeated> repeated;

  void subtree(int definition, int repetition, int depth) {
    need(left && depth < MAX_SCHEMA_DEPTH, "its schema is damaged");
    left--;
    Element element = parse_element(reader);
    need(element.repetition >= 0 && element.repetition <= 2 && element.children >= 0, "its schema is damaged");
    definition += element.repetition != 0;
    repetition += element.repetition == 2;
    if (element.repetition == 2) repeated.push_back({left, definition});
    path.push_back(element.name);
    if (element.children) {
      for (int i = 0; i < element.children; i++) subtree(definition, repetition, depth + 1);
    } else if (element.type >= 0) {
      need(element.type <= FIXED_LEN_BYTE_ARRAY, "its schema has a type that is not known");
      need(definition <= MAX_LEVEL && repetition <= MAX_LEVEL, "its schema is damaged");
      if (element.type == FIXED_LEN_BYTE_ARRAY) {
        need(element.length > 0 && element.length < MAX_FIXED_BYTES, "its schema is damaged");
      }
      if (budget) budget->take(sizeof(Leaf) + path.size() * sizeof(View) + repeated.size() * sizeof(Repeated));
      leaves.push_back({element.type, element.length, definition, repetition, order_of(element), path, repeated});
    }
    path.pop_back();
    if (element.repetition == 2) repeated.pop_back();
  }
};

void parse_schema(ThriftReader& reader, Footer& footer) {
  need(!footer.schema.data, "its footer has two schemas");
  const u8* begin = reader.at;
  int type;
  u64 count = reader.list(type);
  need(type == T_STRUCT && count, "it has no schema");
  Element root = parse_element(reader);
  const u8* body = reader.at;
  SchemaWalk walk{reader, count - 1, footer.leaves, {}, {}};
  for (int i = 0; i < root.children; i++) walk.subtree(0, 0, 0);
  need(!walk.left, "its schema is damaged");
  footer.schema_list = {begin, static_cast<size_t>(reader.at - begin)};
  footer.schema = {body, static_cast<size_t>(reader.at - body)};
}

void parse_statistics(ThriftReader& reader, Chunk& chunk) {
  int said = 0;
  reader.fields([&](int field, int type) {
    if (field == 3 && type == T_I64) {
      chunk.nulls = reader.zigzag();
      return true;
    }
    if ((field == 1 || field == 2 || field == 5 || field == 6) && type == T_BINARY) {
      View bound = reader.binary();
      i64 bytes = static_cast<i64>(bound.size);
      chunk.least_bound_bytes = chunk.least_bound_bytes < 0 ? bytes : std::min(chunk.least_bound_bytes, bytes);
      chunk.most_bound_bytes = std::max(chunk.most_bound_bytes, bytes);
      if (field < 5) return true;
      (field == 5 ? chunk.max : chunk.min) = bound;
      (field == 5 ? chunk.has_max : chunk.has_min) = true;
      return true;
    }
    if (field == 7) chunk.max_exact = type == T_TRUE;
    if (field == 8) chunk.min_exact = type == T_TRUE;
    said += field == 7 || field == 8;
    return false;
  });
  chunk.says_exact = said == 2 && chunk.min_exact && chunk.max_exact;
}

// The lists of a struct that nothing is read of.
void check_lists(ThriftReader& reader, std::initializer_list<std::pair<int, int>> elements) {
  reader.fields([&](int field, int type) {
    for (auto [list, element] : elements) {
      if (type == T_LIST && field == list) reader.expect_elements(element);
    }
    return false;
  });
}

void parse_chunk_metadata(ThriftReader& reader, Chunk& chunk) {
  reader.fields([&](int field, int type) {
    if (type == T_I32 || type == T_I64) {
      i64 value = type == T_I32 ? reader.int32() : reader.zigzag();
      switch (field) {
        case 1:
          chunk.type = static_cast<int>(value);
          break;
        case 4:
          chunk.codec = static_cast<int>(value);
          break;
        case 5:
          chunk.values = value;
          break;
        case 6:
          chunk.plain_bytes = value;
          break;
        case 7:
          chunk.bytes = value;
          break;
        case 9:
          chunk.data_offset = value;
          break;
        case 11:
          chunk.dictionary_offset = value;
          break;
        case 14:
          chunk.has_bloom = true;
          break;
        default:
          break;
      }
      return true;
    }
    if (field == 2 && type == T_LIST) {
      int element;
      u64 count = reader.list(element);
      need(!count || element == T_I32, "a column chunk is damaged");
      while (count--) {
        i32 encoding = reader.int32();
        chunk.lists_dictionary |= encoding == PLAIN_DICTIONARY || encoding == RLE_DICTIONARY;
        chunk.lists_prefixes |= encoding == DELTA_BYTE_ARRAY;
      }
      return true;
    }
    if (field == 3 && type == T_LIST) reader.expect_elements(T_BINARY);
    if (field == 13 && type == T_LIST) reader.expect_elements(T_STRUCT);
    if ((field == 16 || field == 17) && type == T_STRUCT) {  // of sizes; of places on the earth
      check_lists(reader, {{2, field == 16 ? T_I64 : T_I32}, {3, T_I64}});
      return true;
    }
    if (field == 8 && type == T_LIST) {
      const u8* begin = reader.at;
      reader.expect_elements(T_STRUCT);
      reader.skip(type);
      chunk.key_values = {begin, static_cast<size_t>(reader.at - begin)};
      return true;
    }
    if (field == 12 && type == T_STRUCT) {
      parse_statistics(reader, chunk);
      return true;
    }
    return false;
  });
}

Chunk parse_chunk(ThriftReader& reader) {
  Chunk chunk;
  bool seen = false;
  reader.fields([&](int field, int type) {
    support(field != 1, "its column chunks lie in other files");
    support(field != 8 && field != 9, "it is encrypted");
    if (field == 4 || field == 6) chunk.has_page_index = true;
    if ((field == 4 && type == T_I64) || (field == 5 && type == T_I32)) {
      (field == 4 ? chunk.offset_index : chunk.offset_index_bytes) = reader.zigzag();
      return true;
    }
    if (field != 3 || type != T_STRUCT) return false;
    need(!seen, "a column chunk is damaged");
    seen = true;
    parse_chunk_metadata(reader, chunk);
    return true;
  });
  need(seen, "a column chunk has no metadata");
  return chunk;
}

RowGroup parse_group(ThriftReader& reader, size_t leaves) {
  RowGroup group;
  reader.fields([&](int field, int type) {
    if (field == 1 && type == T_LIST) {
      int element;
      u64 count = reader.list(element);
      need(count == leaves && group.chunks.empty() && (!count || element == T_STRUCT), "a row group is damaged");
      if (budget) budget->take(count * sizeof(Chunk) + sizeof(RowGroup));
      group.chunks.reserve(count);
      while (count--) group.chunks.push_back(parse_chunk(reader));
      return true;
    }
    if (field == 3 && type == T_I64) {
      group.rows = reader.zigzag();
      return true;
    }
    if (field == 4 && type == T_LIST) {
      const u8* begin = reader.at;
      reader.expect_elements(T_STRUCT);
      reader.skip(type);
      group.sorting = {begin, static_cast<size_t>(reader.at - begin)};
      return true;
    }
    return false;
  });
  need(group.rows >= 0 && group.chunks.size() == leaves, "a row group is damaged");
  return group;
}

// Without an order by type, statistics mean nothing (parquet.thrift, FileMetaData.column_orders).
void parse_orders(ThriftReader& reader, std::vector<bool>& by_type) {
  int element;
  u64 count = reader.list(element);
  need(!count || element == T_STRUCT, "its column orders are damaged");
  by_type.clear();
  while (count--) {
    bool is_type_order = false;
    reader.fields([&](int field, int) {
      is_type_order = field == 1;
      return false;
    });
    by_type.push_back(is_type_order);
  }
}

// Readers take bounds for values: over shorter ones Arrow ends the process, over any others DuckDB refuses the file. Of
// byte arrays of one length, some writers cut them off (parquet-rs).
void check_bounds(const Chunk& chunk, const Leaf& leaf) {
  i64 width = static_cast<i64>(leaf.width());
  if (!width || leaf.type == INT96 || chunk.most_bound_bytes < 0) return;
  bool fits = chunk.least_bound_bytes == width && chunk.most_bound_bytes == width;
  support(fits || leaf.type != FIXED_LEN_BYTE_ARRAY, "bounds of a column are cut off");
  need(fits, "bounds of a column have another width than its values");
}

void check_group(const RowGroup& group, const std::vector<Leaf>& leaves, u64 pages_end) {
  for (size_t i = 0; i < leaves.size(); i++) {
    need(group.chunks[i].type == leaves[i].type, "a column chunk has another type than its column");
    check_bounds(group.chunks[i], leaves[i]);
  }
  for (size_t i = 0; i < leaves.size() && group.rows; i++) {
    const Chunk& chunk = group.chunks[i];
    need(chunk.bytes > 0 && chunk.plain_bytes >= 0, "a column chunk is damaged");
    need(leaves[i].max_repetition ? chunk.values >= group.rows : chunk.values == group.rows,
         "a column chunk has another number of values than its row group has rows");
    need(chunk.nulls >= -1 && chunk.nulls <= chunk.values, "a column has more nulls than values");
    support(chunk.values < MAX_CHUNK_VALUES, "a column chunk has too many values");
    i64 start = chunk.start();
    need(start >= 4 && static_cast<u64>(start) < pages_end &&
             static_cast<u64>(chunk.bytes) <= pages_end - static_cast<u64>(start),
         "a column chunk lies outside the file");
  }
}

}  // namespace

Footer parse_footer(View file) {
  need(file.size >= 12 && !memcmp(file.data, "PAR", 3), "it is not a Parquet file");
  support(memcmp(file.data, "PARE", 4) != 0, "it is encrypted");
  need(!memcmp(file.data, "PAR1", 4), "it is not a Parquet file");
  return parse_footer(file, file.size);
}

size_t footer_bytes(View tail, size_t file_bytes) {
  need(file_bytes >= 12 && tail.size >= TAIL_BYTES, "it is not a Parquet file");
  support(memcmp(tail.end() - 4, "PARE", 4) != 0, "it is encrypted");
  need(!memcmp(tail.end() - 4, "PAR1", 4), "it is not a Parquet file, or was cut off");
  u32 length = load<u32>(tail.end() - TAIL_BYTES);
  need(length <= file_bytes - TAIL_BYTES - 4, "its footer does not fit into it");
  return length + TAIL_BYTES;
}

Footer parse_footer(View tail, size_t file_bytes) {
  size_t length = footer_bytes(tail, file_bytes);
  need(length <= tail.size, "its footer does not fit into it");
  size_t pages_end = file_bytes - length;
  ThriftReader reader{tail.end() - length, tail.end() - TAIL_BYTES};
  Footer footer;
  std::vector<bool> by_type;
  bool has_groups = false;
  reader.fields([&](int field, int type) {
    const u8* begin = reader.at;
    support(field != 8 && field != 9, "it is encrypted");
    switch (field) {
      case 2:
        need(type == T_LIST, "its footer is damaged");
        parse_schema(reader, footer);
        return true;
      case 3:
        need(type == T_I64, "its footer is damaged");
        footer.rows = reader.zigzag();
        return true;
      case 4: {
        int element;
        need(type == T_LIST && footer.schema.data, "its footer is damaged");
        u64 count = reader.list(element);
        need(!count || element == T_STRUCT, "its row groups are damaged");
        while (count--) footer.groups.push_back(parse_group(reader, footer.leaves.size()));
        has_groups = true;
        return true;
      }
      case 5:
        need(type == T_LIST, "its footer is damaged");
        reader.expect_elements(T_STRUCT);
        reader.skip(type);
        footer.key_values = {begin, static_cast<size_t>(reader.at - begin)};
        return true;
      case 6:
        if (type != T_BINARY) return false;
        footer.created_by = reader.binary();
        return true;
      case 7:
        if (type != T_LIST) return false;
        parse_orders(reader, by_type);
        return true;
      default:
        return false;
    }
  });
  need(reader.at == reader.end && footer.rows >= 0 && footer.schema.data && has_groups, "its footer is damaged");
  i64 rows = 0;
  for (RowGroup& group : footer.groups) {
    need(group.rows <= footer.rows - rows, "its rows are not those of its row groups");
    rows += group.rows;
    check_group(group, footer.leaves, pages_end);
    for (size_t i = 0; i < group.chunks.size(); i++) {
      if (i < by_type.size() && by_type[i]) continue;
      group.chunks[i].has_min = group.chunks[i].has_max = false;
    }
  }
  need(rows == footer.rows, "its rows are not those of its row groups");
  return footer;
}

SortingColumn first_sorting_column(View list) {
  SortingColumn found;
  if (!list.size) return found;
  ThriftReader reader{list.data, list.end()};
  int element;
  if (!reader.list(element) || element != T_STRUCT) return found;
  reader.fields([&](int field, int type) {
    if (field == 1 && type == T_I32) {
      found.leaf = reader.int32();
      return true;
    }
    if (field == 2) found.descending = type == T_TRUE;
    return false;
  });
  return found;
}

}  // namespace pagemerge
