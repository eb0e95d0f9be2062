#include "layout.hpp"

#include <climits>

#include "compact.hpp"

namespace pagecompare {

namespace {

struct Element {
  int64_t type = -1, type_length = 0, repetition = -1, children = 0, converted = -1, logical = 0;
  bool is_unsigned = false, is_decimal = false, is_half = false, is_unordered = false;
};

void logical_type(Reader& reader, Element& element) {
  int id = 0, kind;
  while (reader.next(id, kind)) {
    element.logical = element.logical ? -1 : id;  // one of them
    element.is_decimal |= id == 5;
    element.is_half |= id == 15;
    element.is_unordered |= id > 15;  // variants, geometries, and what came later
    if (id == 10) {                   // integers
      Reader::expect(kind, STRUCT);
      int inner_id = 0, inner;
      while (reader.next(inner_id, inner)) {
        if (inner_id == 2)
          element.is_unsigned |= !reader.truth(inner);
        else
          reader.skip(inner);
      }
    } else {
      reader.skip(kind);
    }
  }
}

Element element_of(Reader& reader) {
  Element element;
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 1)
      element.type = reader.integer(kind, I32);
    else if (id == 2)
      element.type_length = reader.integer(kind, I32);
    else if (id == 3)
      element.repetition = reader.integer(kind, I32);
    else if (id == 5)
      element.children = reader.integer(kind, I32);
    else if (id == 6)
      element.converted = reader.integer(kind, I32);
    else if (id == 10 && kind == STRUCT)
      logical_type(reader, element);
    else
      reader.skip(kind);
  }
  // UINT_8 to UINT_64; DECIMAL; INTERVAL has no order
  element.is_unsigned |= element.converted >= 11 && element.converted <= 14;
  element.is_decimal |= element.converted == 5;
  element.is_unordered |= element.is_decimal && element.type == static_cast<int64_t>(Type::TEXT);  // not by its bytes
  element.is_unordered |= element.converted == 21;
  return element;
}

Leaf leaf_of(const Element& element, uint32_t definition, uint32_t repetition) {
  static constexpr uint32_t WIDTHS[] = {1, 4, 8, 12, 4, 8, 0, 0};
  if (element.type < 0 || element.type > 7) throw Unclear{"a column has a type that is not known"};
  Leaf leaf{};
  leaf.type = static_cast<Type>(element.type);
  leaf.width = WIDTHS[element.type];
  if (leaf.type == Type::FIXED) {
    if (element.type_length < 1 || element.type_length > (1 << 28)) throw Unclear{"a column's values have no width"};
    leaf.width = static_cast<uint32_t>(element.type_length);
  }
  leaf.max_definition = definition;
  leaf.max_repetition = repetition;
  leaf.is_unsigned = element.is_unsigned;
  leaf.is_decimal = element.is_decimal;
  leaf.is_half = element.is_half && leaf.type == Type::FIXED && leaf.width == 2;
  leaf.has_order = !element.is_unordered && leaf.type != Type::INT96;
  return leaf;
}

// What a group stands for, which decides what may be in it.
enum class Role { STRUCT, LIST, MAP, ENTRY_OF_MAP, UNKNOWN };

Role role_of(const Element& group, Role outer) {
  const bool is_list = group.logical == 3 || group.converted == 3, is_map = group.logical == 2 || group.converted == 1;
  const bool is_pair = group.converted < 0 || group.converted == 2;  // MAP_KEY_VALUE, which says nothing more
  if (outer == Role::MAP) return is_pair && !group.logical ? Role::ENTRY_OF_MAP : Role::UNKNOWN;
  if (is_list || is_map) return is_list && is_map ? Role::UNKNOWN : is_list ? Role::LIST : Role::MAP;
  return group.logical || group.converted >= 0 ? Role::UNKNOWN : Role::STRUCT;
}

// Elements stand in the order of a walk from the root, each before its children.
class Walk {
 public:
  Walk(Reader& reader, uint64_t left, Footer& footer) : reader_(reader), left_(left), footer_(footer) {}

  void below(int64_t children, Node group, Role role, int depth) {
    if (depth > DEEPEST) throw Unclear{"its schema is too deep"};
    for (int64_t number = 0; number < children; number++) {
      if (!left_) Reader::fail();
      left_--;
      const Element element = element_of(reader_);
      if (element.repetition < 0 || element.repetition > 2)
        throw Unclear{"a column does not say how often it is there"};
      if (!is_regular(element, role, children, number)) footer_.oddity = "it has lists, or maps, of an unknown kind";
      const Node inner{group.definition + (element.repetition != 0), group.repetition + (element.repetition == 2)};
      if (number) shared_ = group;
      if (element.repetition == 2) entries_.push_back(inner.definition);
      if (element.children > 0) {
        if (element.type >= 0) Reader::fail();
        below(element.children, inner, role_of(element, role), depth + 1);
      } else {
        footer_.leaves.push_back(leaf_of(element, inner.definition, inner.repetition));
        footer_.nesting.push_back({entries_, shared_});
      }
      if (element.repetition == 2) entries_.pop_back();
    }
  }

  bool is_done() const { return !left_; }

 private:
  // Lists and maps have one element, which is repeated, and are not repeated themselves; keys of a map are never null.
  static bool is_regular(const Element& element, Role outer, int64_t children, int64_t number) {
    const bool is_repeated = element.repetition == 2, is_group = element.children > 0;
    if (outer == Role::LIST && !(children == 1 && is_repeated)) return false;
    if (outer == Role::MAP && !(children == 1 && is_repeated && element.children == 2)) return false;
    if (outer == Role::ENTRY_OF_MAP && (is_repeated || (!number && element.repetition != 0))) return false;
    if (!is_group) return true;
    const Role role = role_of(element, outer);
    return role != Role::UNKNOWN && !(is_repeated && (role == Role::LIST || role == Role::MAP));
  }

  Reader& reader_;
  uint64_t left_;
  Footer& footer_;
  Node shared_;                    // with the leaf before, of the next one
  std::vector<uint32_t> entries_;  // as the next leaf has them
};

Statistics statistics_of(Reader& reader, int kind) {
  Reader::expect(kind, STRUCT);
  Statistics found;
  Span old_least, old_most;  // of an order that was never said; what is written today has the same in both
  int id = 0;
  while (reader.next(id, kind)) {
    if (id == 1) {
      old_most = reader.text(kind);
      continue;
    }
    if (id == 2) {
      old_least = reader.text(kind);
      continue;
    }
    if (id == 3) {
      found.has_nulls = true;
      found.nulls = reader.integer(kind, I64);
    } else if (id == 5) {
      found.has_most = true;
      found.most = reader.text(kind);
    } else if (id == 6) {
      found.has_least = true;
      found.least = reader.text(kind);
    } else if (id == 7) {
      found.most_is_exact = reader.truth(kind);
    } else if (id == 8) {
      found.least_is_exact = reader.truth(kind);
    } else {
      reader.skip(kind);
    }
  }
  found.has_old = (old_least.data && !old_least.same(found.least)) || (old_most.data && !old_most.same(found.most));
  return found;
}

Chunk chunk_metadata(Reader& reader, int kind) {
  Reader::expect(kind, STRUCT);
  Chunk chunk;
  int64_t type = -1, codec = -1, dictionary = 0, data = -1;
  int id = 0;
  while (reader.next(id, kind)) {
    if (id == 1)
      type = reader.integer(kind, I32);
    else if (id == 4)
      codec = reader.integer(kind, I32);
    else if (id == 5)
      chunk.values = reader.integer(kind, I64);
    else if (id == 7)
      chunk.size = reader.integer(kind, I64);
    else if (id == 9)
      data = reader.integer(kind, I64);
    else if (id == 11)
      dictionary = reader.integer(kind, I64);
    else if (id == 12)
      chunk.statistics = statistics_of(reader, kind);
    else
      reader.skip(kind);
  }
  chunk.begin = dictionary > 0 && dictionary < data ? dictionary : data;
  if (type < 0 || type > 7 || codec < 0 || codec > 31 || chunk.values < 0 || chunk.size < 0 || chunk.begin < 4)
    Reader::fail();
  chunk.type = static_cast<Type>(type);
  chunk.codec = static_cast<int>(codec);
  return chunk;
}

Chunk chunk_of(Reader& reader) {
  Chunk chunk, places;
  bool found = false;
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 1) {
      if (reader.text(kind).size) throw Unclear{"its columns lie in other files"};
    } else if (id == 3) {
      chunk = chunk_metadata(reader, kind);
      found = true;
    } else if (id == 4) {
      places.offset_index = reader.integer(kind, I64);
    } else if (id == 5) {
      places.offset_index_size = reader.integer(kind, I32);
    } else if (id == 6) {
      places.column_index = reader.integer(kind, I64);
    } else if (id == 7) {
      places.column_index_size = reader.integer(kind, I32);
    } else if (id == 8 || id == 9) {
      throw Unclear{"it is encrypted"};
    } else {
      reader.skip(kind);
    }
  }
  if (!found) Reader::fail();
  chunk.offset_index = places.offset_index;
  chunk.offset_index_size = places.offset_index_size;
  chunk.column_index = places.column_index;
  chunk.column_index_size = places.column_index_size;
  return chunk;
}

RowGroup row_group_of(Reader& reader) {
  RowGroup group;
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 1) {
      for (uint64_t count = reader.structures(kind); count; count--) group.chunks.push_back(chunk_of(reader));
    } else if (id == 3) {
      group.rows = reader.integer(kind, I64);
    } else {
      reader.skip(kind);
    }
  }
  return group;
}

void schema_of(Reader& reader, int kind, Footer& footer, const Footer* like) {
  uint64_t count = reader.structures(kind);
  if (!count) Reader::fail();
  Element root = element_of(reader);
  uint64_t left = count - 1;
  Reader below = reader;
  for (uint64_t i = 0; i < left; i++) reader.skip(STRUCT);
  footer.elements = {below.at(), static_cast<uint64_t>(reader.at() - below.at())};
  if (like && like->elements.same(footer.elements)) {
    footer.leaves = like->leaves;
    return;
  }
  Walk walk(below, left, footer);
  walk.below(root.children, {}, Role::STRUCT, 0);
  if (!walk.is_done()) Reader::fail();
}

// Encodings of levels (parquet.thrift); that of old also stands where there are none, as parquet-mr has it.
constexpr int64_t RUNS = 3, OLD_BITS = 4;

void data_head(Reader& reader, int kind, PageHead& head) {
  Reader::expect(kind, STRUCT);
  int id = 0;
  int64_t values = -1, encoding = -1, of_definition = -1, of_repetition = -1;
  while (reader.next(id, kind)) {
    if (id == 1)
      values = reader.integer(kind, I32);
    else if (id == 2)
      encoding = reader.integer(kind, I32);
    else if (id == 3)
      of_definition = reader.integer(kind, I32);
    else if (id == 4)
      of_repetition = reader.integer(kind, I32);
    else if (id == 5)
      head.statistics = statistics_of(reader, kind);
    else
      reader.skip(kind);
  }
  if (values < 0 || encoding < 0) Reader::fail();
  for (int64_t each : {of_definition, of_repetition})
    if (each != RUNS && each != OLD_BITS) throw Unclear{NO_RUNS};
  head.has_definition_runs = of_definition == RUNS;
  head.has_repetition_runs = of_repetition == RUNS;
  head.values = static_cast<uint32_t>(values);
  head.encoding = static_cast<Encoding>(encoding);
}

void data_head_v2(Reader& reader, int kind, PageHead& head) {
  Reader::expect(kind, STRUCT);
  int id = 0;
  int64_t found[7] = {-1, -1, -1, -1, -1, -1, -1};
  while (reader.next(id, kind)) {
    if (id >= 1 && id <= 6)
      found[id] = reader.integer(kind, I32);
    else if (id == 7)
      head.is_compressed = reader.truth(kind);
    else if (id == 8)
      head.statistics = statistics_of(reader, kind);
    else
      reader.skip(kind);
  }
  for (int i = 1; i <= 6; i++)
    if (found[i] < 0 || found[i] > INT_MAX) Reader::fail();
  head.values = static_cast<uint32_t>(found[1]);
  head.nulls = static_cast<uint32_t>(found[2]);
  head.rows = static_cast<uint32_t>(found[3]);
  head.encoding = static_cast<Encoding>(found[4]);
  head.definition_size = static_cast<uint32_t>(found[5]);
  head.repetition_size = static_cast<uint32_t>(found[6]);
}

void dictionary_head(Reader& reader, int kind, PageHead& head) {
  Reader::expect(kind, STRUCT);
  int id = 0;
  int64_t values = -1, encoding = -1;
  while (reader.next(id, kind)) {
    if (id == 1)
      values = reader.integer(kind, I32);
    else if (id == 2)
      encoding = reader.integer(kind, I32);
    else
      reader.skip(kind);
  }
  if (values < 0 || values > INT_MAX || (encoding != 0 && encoding != 2)) Reader::fail();
  head.values = static_cast<uint32_t>(values);
  head.encoding = Encoding::PLAIN;
}

}  // namespace

Footer footer_of(Span metadata, const Footer* like) {
  Footer footer;
  Reader reader(metadata);
  bool has_schema = false;
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 2) {
      schema_of(reader, kind, footer, like);
      has_schema = true;
    } else if (id == 3) {
      footer.rows = reader.integer(kind, I64);
    } else if (id == 4) {
      for (uint64_t count = reader.structures(kind); count; count--) footer.groups.push_back(row_group_of(reader));
    } else if (id == 8) {
      throw Unclear{"it is encrypted"};
    } else {
      reader.skip(kind);
    }
  }
  if (!has_schema) Reader::fail();
  int64_t rows = 0;
  for (const RowGroup& group : footer.groups) {
    if (group.rows < 0 || group.rows > INT64_MAX - rows || group.chunks.size() != footer.leaves.size()) Reader::fail();
    rows += group.rows;
    for (size_t i = 0; i < group.chunks.size(); i++)
      if (group.chunks[i].type != footer.leaves[i].type) Reader::fail();
  }
  if (rows != footer.rows) throw Unclear{"its row groups have another number of rows than it says"};
  return footer;
}

Span metadata_of(Span file) {
  if (file.size < 12 || memcmp(file.data, "PAR1", 4) || memcmp(file.data + file.size - 4, "PAR1", 4))
    throw Unclear{"it is no Parquet file"};
  uint64_t size = number32(file.data + file.size - 8);
  if (size > file.size - 12) throw Unclear{"its metadata are not there"};
  return file.part(file.size - 8 - size, size);
}

std::vector<IndexedPage> offset_index_of(Span index) {
  std::vector<IndexedPage> pages;
  Reader reader(index);
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id != 1) {
      reader.skip(kind);
      continue;
    }
    for (uint64_t count = reader.structures(kind); count; count--) {
      IndexedPage page;
      int inner_id = 0, inner;
      while (reader.next(inner_id, inner)) {
        if (inner_id == 1)
          page.offset = reader.integer(inner, I64);
        else if (inner_id == 2)
          page.size = reader.integer(inner, I32);
        else if (inner_id == 3)
          page.row = reader.integer(inner, I64);
        else
          reader.skip(inner);
      }
      pages.push_back(page);
    }
  }
  return pages;
}

ColumnIndex column_index_of(Span index) {
  ColumnIndex found;
  Reader reader(index);
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 1) {
      for (uint64_t count = reader.elements(kind, YES); count; count--) found.is_null.push_back(reader.listed_truth());
    } else if (id == 2 || id == 3) {
      std::vector<Span>& bounds = id == 2 ? found.least : found.most;
      for (uint64_t count = reader.elements(kind, BINARY); count; count--) bounds.push_back(reader.text(BINARY));
    } else if (id == 4) {
      found.order = reader.integer(kind, I32);
    } else if (id == 5) {
      for (uint64_t count = reader.elements(kind, I64); count; count--) found.nulls.push_back(reader.integer());
    } else {
      reader.skip(kind);
    }
  }
  const size_t pages = found.is_null.size();
  if (found.least.size() != pages || found.most.size() != pages ||
      (!found.nulls.empty() && found.nulls.size() != pages))
    Reader::fail();
  return found;
}

PageHead page_head(Span rest) {
  PageHead head{};
  head.is_compressed = true;
  Reader reader(rest);
  int64_t type = -1, plain_size = -1, size = -1;
  int held = -1, id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 1) {
      type = reader.integer(kind, I32);
    } else if (id == 2) {
      plain_size = reader.integer(kind, I32);
    } else if (id == 3) {
      size = reader.integer(kind, I32);
    } else if (id == 4) {
      head.has_checksum = true;
      head.checksum = static_cast<uint32_t>(reader.integer(kind, I32));
    } else if (id == 5 || id == 7 || id == 8) {
      if (held >= 0) Reader::fail();
      held = id == 5 ? 0 : id == 7 ? 2 : 3;
      (id == 5 ? data_head : id == 7 ? dictionary_head : data_head_v2)(reader, kind, head);
    } else {
      reader.skip(kind);
    }
  }
  if (held < 0 || held != type) throw Unclear{"a page is of a kind that is not known"};
  if (plain_size < 0 || size < 0 || plain_size > INT_MAX || size > INT_MAX || head.values > INT_MAX) Reader::fail();
  head.kind = static_cast<PageKind>(type);
  head.size = static_cast<uint32_t>(size);
  head.plain_size = static_cast<uint32_t>(plain_size);
  head.head_size = static_cast<uint32_t>(reader.at() - rest.data);
  return head;
}

}  // namespace pagecompare
