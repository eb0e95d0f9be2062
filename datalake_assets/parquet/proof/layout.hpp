// What a file says of itself: its columns, where their pages lie, and what heads each page.
// Source: apache/parquet-format, src/main/thrift/parquet.thrift, and Thrift's compact protocol.
#ifndef PAGECOMPARE_LAYOUT_HPP
#define PAGECOMPARE_LAYOUT_HPP

#include <vector>

#include "bytes.hpp"

namespace pagecompare {

enum class Type { BOOLEAN = 0, INT32 = 1, INT64 = 2, INT96 = 3, FLOAT = 4, DOUBLE = 5, TEXT = 6, FIXED = 7 };

enum class Encoding {
  PLAIN = 0,
  PLAIN_DICTIONARY = 2,
  RLE = 3,
  DELTA_BINARY_PACKED = 5,
  DELTA_LENGTH = 6,
  DELTA_PREFIX = 7,
  RLE_DICTIONARY = 8,
  BYTE_STREAM_SPLIT = 9
};

// A column of values; how deep a value may be missing, and how deep it may be repeated.
struct Leaf {
  Type type;
  uint32_t width;  // of a value; 0: each has its own
  uint32_t max_definition, max_repetition;
  bool is_unsigned, is_decimal, is_half, has_order;  // how values are ordered, for statistics
};

// A group of columns: it is there from this definition level on, and in so many lists.
struct Node {
  uint32_t definition = 0, repetition = 0;
};

// The groups that a leaf is in.
struct Nesting {
  std::vector<uint32_t> entries;  // of each list, from the outermost on: the definition level that an entry has
  Node shared;                    // the innermost group that the leaf before is in as well
};

// What metadata say of values: each may be missing.
struct Statistics {
  bool has_nulls = false, has_least = false, has_most = false;
  bool has_old = false;                                // bounds of the old kind that say something else
  bool least_is_exact = false, most_is_exact = false;  // and not only a bound
  int64_t nulls = 0;
  Span least, most;
};

struct Chunk {
  int64_t begin = 0, size = 0, values = 0;
  int codec = 0;
  Type type = Type::BOOLEAN;
  Statistics statistics;
  int64_t offset_index = 0, offset_index_size = 0, column_index = 0, column_index_size = 0;  // 0: there is none
};

struct RowGroup {
  int64_t rows = 0;
  std::vector<Chunk> chunks;
};

struct Footer {
  int64_t rows = 0;
  Span elements;  // of the schema, below the root, as they stand
  std::vector<Leaf> leaves;
  std::vector<Nesting> nesting;  // of each leaf; empty where leaves were taken from elsewhere
  const char* oddity = nullptr;  // of groups: why nobody here knows what their levels mean
  std::vector<RowGroup> groups;
};

// Reads a footer. Where the schema's elements are those of `like`, its leaves are taken from there.
Footer footer_of(Span metadata, const Footer* like);

// The metadata at the end of a file.
Span metadata_of(Span file);

enum class PageKind { DATA = 0, DICTIONARY = 2, DATA_V2 = 3 };

constexpr const char* NO_RUNS = "its levels are not run-length encoded";

struct PageHead {
  PageKind kind;
  Encoding encoding;
  uint32_t head_size = 0, size = 0, plain_size = 0, values = 0;
  bool has_checksum = false, is_compressed = true;
  bool has_definition_runs = true, has_repetition_runs = true;  // levels are run-length encoded, if there are any
  uint32_t checksum = 0;
  uint32_t nulls = 0, rows = 0, definition_size = 0, repetition_size = 0;  // of version 2
  Statistics statistics;
};

// A data page by the page indexes.
struct IndexedPage {
  int64_t offset = -1, size = -1, row = -1;
};

std::vector<IndexedPage> offset_index_of(Span index);

// What the column index says of all pages.
struct ColumnIndex {
  std::vector<bool> is_null;
  std::vector<Span> least, most;
  std::vector<int64_t> nulls;  // empty: it does not say
  int64_t order = 0;           // 1: bounds ascend, 2: they descend
};

ColumnIndex column_index_of(Span index);

// Reads what heads the page that begins here.
PageHead page_head(Span rest);

}  // namespace pagecompare

#endif
