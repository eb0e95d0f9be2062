// A file's footer: its schema's leaves, its row groups and their column chunks.
#pragma once

#include <vector>

#include "thrift.hpp"

namespace pagemerge {

constexpr int MAX_LEVEL = 255;  // levels are held in bytes

// A repeated element of the schema: which of all elements it is, and from which definition level on it has an entry.
struct Repeated {
  u64 element;
  int definition;
};

// A column of the file, as far as pages need to know it.
struct Leaf {
  int type = -1;
  int length = 0;  // of FIXED_LEN_BYTE_ARRAY
  int max_definition = 0, max_repetition = 0;
  Order order = Order::NONE;
  std::vector<View> path;
  std::vector<Repeated> repeated;  // one for each repetition level, from 1 on

  // Bytes of a value; 0 for byte arrays. Booleans are held in a byte each.
  size_t width() const {
    switch (type) {
      case BOOLEAN:
        return 1;
      case INT32:
      case FLOAT:
        return 4;
      case INT64:
      case DOUBLE:
        return 8;
      case INT96:
        return 12;
      case FIXED_LEN_BYTE_ARRAY:
        return static_cast<size_t>(length);
      default:
        return 0;
    }
  }
};

struct Chunk {
  int type = -1, codec = -1;
  i64 values = -1, plain_bytes = 0, bytes = -1;
  i64 data_offset = -1, dictionary_offset = 0;
  i64 nulls = -1;  // by the statistics; -1: they don't say
  View min, max;
  bool has_min = false, has_max = false;
  bool min_exact = true, max_exact = true;            // unless they say otherwise
  bool says_exact = false;                            // they say so of both, and not nothing
  i64 least_bound_bytes = -1, most_bound_bytes = -1;  // of all bounds that they state, of the old kind too; -1: of none
  bool has_bloom = false, has_page_index = false;
  i64 offset_index = 0, offset_index_bytes = 0;  // bytes: 0 where there is none
  bool lists_dictionary = false;                 // among its encodings, whether or not it says where the dictionary is
  bool lists_prefixes = false;                   // the same of values that begin as those before do
  View key_values;

  bool has_dictionary() const { return dictionary_offset > 0 && dictionary_offset < data_offset; }
  i64 start() const { return has_dictionary() ? dictionary_offset : data_offset; }
};

struct RowGroup {
  i64 rows = -1;
  View sorting;  // the list of sorting columns, with its head
  std::vector<Chunk> chunks;
};

struct Footer {
  View schema_list;  // with the list's head and the root, whose name means nothing
  View schema;       // the elements below the root
  View key_values;   // the list with its head
  View created_by;
  std::vector<Leaf> leaves;
  std::vector<RowGroup> groups;
  i64 rows = -1;
};

// Of a file of so many bytes: how many of them, at the end, are the footer with its length and magic.
size_t footer_bytes(View tail, size_t file_bytes);

// Parses the footer of a file and compares everything in it with the file's size and the schema. `tail`: the end of the
// file, with all of the footer.
Footer parse_footer(View tail, size_t file_bytes);
Footer parse_footer(View file);

struct SortingColumn {
  i32 leaf = -1;
  bool descending = false;
};
SortingColumn first_sorting_column(View list);

}  // namespace pagemerge
