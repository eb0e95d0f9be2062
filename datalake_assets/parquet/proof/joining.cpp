// Footers of many files joined into one: who reads that reads the row groups of all of them, and needs the rest once.
#include <new>
#include <vector>

#include "compact.hpp"
#include "layout.hpp"
#include "pagecompare.h"
#include "unpacking.hpp"

namespace pagecompare {

namespace {

Span passed(const uint8_t* from, const Reader& reader) { return {from, static_cast<uint64_t>(reader.at() - from)}; }

// Structures of a list as they stand, behind the head of their field.
struct Structures {
  Span head, bytes;
  uint64_t count = 0;

  // Reads what comes before the first one.
  void begin(const uint8_t* from, Reader& reader, int kind) {
    head = passed(from, reader);
    count = reader.structures(kind);
    bytes.data = reader.at();
  }

  void end(const Reader& reader) { bytes = passed(bytes.data, reader); }
};

// A footer cut where the number of rows, the row groups and the key-values stand; fields follow each other by number.
struct Outline {
  Span before;  // what comes first, with the head of the field of rows
  int64_t rows = 0;
  Structures groups, key_values;
  Span after;         // all that follows them
  Span arrow_schema;  // Arrow's own, the only one of the key-values that it goes by

  bool states_like(const Outline& other) const {
    return before.same(other.before) && groups.head.same(other.groups.head) &&
           key_values.head.same(other.key_values.head) && after.same(other.after) &&
           !arrow_schema.data == !other.arrow_schema.data;
  }
};

constexpr char ARROW_SCHEMA[] = "ARROW:schema";

void pass_key_value(Reader& reader, Outline& outline) {
  Span key, value;
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id > 2) Reader::fail();
    (id == 1 ? key : value) = reader.text(kind);
  }
  if (!key.data) Reader::fail();
  if (key.size != strlen(ARROW_SCHEMA) || memcmp(key.data, ARROW_SCHEMA, key.size)) return;
  if (outline.arrow_schema.data || !value.data) throw Unclear{"Arrow's schema is there twice, or empty"};
  outline.arrow_schema = value;
}

// Passes a list whose elements have to be of the kind that the format gives them: others take them for that unseen, and
// where one list ends elsewhere, so does all that follows.
void pass_list(Reader& reader, int kind, int wanted) {
  for (uint64_t count = reader.elements(kind, wanted); count; count--) reader.skip(wanted);
}

// Passes a structure of which two fields are lists.
void pass_lists(Reader& reader, int kind, int second, int third) {
  Reader::expect(kind, STRUCT);
  int id = 0;
  while (reader.next(id, kind)) {
    if (id == 2)
      pass_list(reader, kind, second);
    else if (id == 3)
      pass_list(reader, kind, third);
    else
      reader.skip(kind);
  }
}

// Bounds have to be values of their column: over shorter ones Arrow ends the process, once it is asked for them.
void pass_statistics(Reader& reader, int kind, const Leaf& leaf) {
  Reader::expect(kind, STRUCT);
  int id = 0;
  while (reader.next(id, kind)) {
    if (id == 1 || id == 2 || id == 5 || id == 6) {
      const uint64_t size = reader.text(kind).size;
      if (leaf.width && leaf.type != Type::INT96 && size != leaf.width)
        throw Unclear{"a bound has another width than values"};
    } else {
      reader.skip(kind);
    }
  }
}

void pass_chunk_metadata(Reader& reader, int kind, const Leaf& leaf, uint64_t pages_end) {
  Reader::expect(kind, STRUCT);
  int64_t type = -1, codec = -1, size = -1, dictionary = 0, data = -1;
  int id = 0;
  while (reader.next(id, kind)) {
    if (id == 1)
      type = reader.integer(kind, I32);
    else if (id == 2)
      pass_list(reader, kind, I32);
    else if (id == 3)
      pass_list(reader, kind, BINARY);
    else if (id == 4)
      codec = reader.integer(kind, I32);
    else if (id == 7)
      size = reader.integer(kind, I64);
    else if (id == 8 || id == 13)
      pass_list(reader, kind, STRUCT);
    else if (id == 9)
      data = reader.integer(kind, I64);
    else if (id == 11)
      dictionary = reader.integer(kind, I64);
    else if (id == 12)
      pass_statistics(reader, kind, leaf);
    else if (id == 16)
      pass_lists(reader, kind, I64, I64);
    else if (id == 17)
      pass_lists(reader, kind, I32, STRUCT);
    else
      reader.skip(kind);
  }
  if (type != static_cast<int64_t>(leaf.type)) throw Unclear{"a chunk has another type than its column"};
  if (codec < 0 || codec > INT_MAX || !is_unpackable(static_cast<int>(codec))) throw Unclear{"its codec is not known"};
  const int64_t begin = dictionary > 0 && dictionary < data ? dictionary : data;
  const int64_t end = static_cast<int64_t>(pages_end);
  if (begin < 4 || size < 0 || begin > end || size > end - begin) throw Unclear{"a chunk lies where no pages are"};
}

void pass_chunk(Reader& reader, const Leaf& leaf, uint64_t pages_end) {
  bool found = false;
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 1) {
      if (reader.text(kind).size) throw Unclear{"its columns lie in other files"};
    } else if (id == 3) {
      pass_chunk_metadata(reader, kind, leaf, pages_end);
      found = true;
    } else if (id == 8 || id == 9) {
      throw Unclear{"it is encrypted"};
    } else {
      reader.skip(kind);
    }
  }
  if (!found) Reader::fail();
}

// Passes a row group as strictly as it takes for another reader to end it where this one does; returns its rows.
int64_t pass_group(Reader& reader, const std::vector<Leaf>& leaves, uint64_t pages_end) {
  int64_t rows = -1;
  uint64_t chunks = 0;
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 1) {
      chunks = reader.structures(kind);
      if (chunks != leaves.size()) throw Unclear{"a row group has not all columns"};
      for (const Leaf& leaf : leaves) pass_chunk(reader, leaf, pages_end);
    } else if (id == 3) {
      rows = reader.integer(kind, I64);
    } else if (id == 4) {
      pass_list(reader, kind, STRUCT);
    } else {
      reader.skip(kind);
    }
  }
  if (!chunks || rows < 0) throw Unclear{"a row group has no columns, or no number of rows"};
  return rows;
}

// The columns that files have, by what their footers begin with: most begin as the one before.
class Columns {
 public:
  const std::vector<Leaf>& of(Span before, Span metadata) {
    for (size_t i = known_.size(); i; i--)
      if (known_[i - 1].before.same(before)) return known_[i - 1].leaves;
    known_.push_back({before, footer_of(metadata, nullptr).leaves});
    return known_.back().leaves;
  }

 private:
  struct Known {
    Span before;
    std::vector<Leaf> leaves;
  };
  std::vector<Known> known_;
};

Outline outline_of(Span metadata, uint64_t pages_end, Columns& columns) {
  Outline found;
  Reader reader(metadata);
  const uint8_t* begin = metadata.data;
  int64_t left = 0;
  int id = 0, kind;
  while (reader.next(id, kind)) {
    if (id == 3) {
      found.before = passed(begin, reader);
      found.rows = left = reader.integer(kind, I64);
      begin = reader.at();
    } else if (id == 4) {
      found.groups.begin(begin, reader, kind);
      if (!found.before.size) Reader::fail();
      const std::vector<Leaf>& leaves = columns.of(found.before, metadata);
      for (uint64_t i = 0; i < found.groups.count; i++) {
        const int64_t rows = pass_group(reader, leaves, pages_end);
        if (rows > left) throw Unclear{"its row groups have more rows than it says"};
        left -= rows;
      }
      found.groups.end(reader);
      begin = reader.at();
    } else if (id == 5) {
      found.key_values.begin(begin, reader, kind);
      for (uint64_t i = 0; i < found.key_values.count; i++) pass_key_value(reader, found);
      found.key_values.end(reader);
      begin = reader.at();
    } else if (id == 8 || id == 9) {
      throw Unclear{"it is encrypted"};
    } else {
      reader.skip(kind);
    }
  }
  if (!found.groups.count || left) throw Unclear{"it has fewer rows than it says, or no row groups"};
  found.after = passed(begin, reader);
  if (reader.at() != metadata.data + metadata.size) throw Unclear{"its metadata go on after their end"};
  return found;
}

// Files that state the same, and what differs in them.
struct Likes {
  Outline first;
  int64_t number;
  int64_t rows = 0;
  uint64_t groups_count = 0, key_values_count = 0;
  std::vector<Span> groups{}, key_values{};
  Span arrow_schema{};  // of the last one

  bool has_key_values_of(const Outline& outline) const {
    return !key_values.empty() && key_values.back().same(outline.key_values.bytes);
  }

  void add(const Outline& outline) {
    rows += outline.rows;
    groups.push_back(outline.groups.bytes);
    groups_count += outline.groups.count;
    arrow_schema = outline.arrow_schema;
    if (has_key_values_of(outline)) return;
    key_values.push_back(outline.key_values.bytes);
    key_values_count += outline.key_values.count;
  }
};

constexpr uint64_t LONGEST_VARINT = 10;
constexpr uint64_t ENDS = 12;  // magic twice, and the footer's size

class Writer {
 public:
  explicit Writer(uint8_t* to) : to_(to) {}

  void bytes(Span some) {
    if (some.size) memcpy(to_, some.data, some.size);
    to_ += some.size;
  }

  void text(const char* some) { bytes({reinterpret_cast<const uint8_t*>(some), strlen(some)}); }

  void varint(uint64_t number) {
    for (; number > 127; number >>= 7) *to_++ = static_cast<uint8_t>(number | 128);
    *to_++ = static_cast<uint8_t>(number);
  }

  void byte(uint8_t one) { *to_++ = one; }

  void structures(Span head, uint64_t count, const std::vector<Span>& all) {
    bytes(head);
    byte(0xF0 | STRUCT);
    varint(count);
    for (const Span& some : all) bytes(some);
  }

  uint8_t* at() const { return to_; }

 private:
  uint8_t* to_;
};

// A file of no pages with the row groups of all; returns where it ends.
uint8_t* write(const Likes& likes, uint8_t* to) {
  Writer writer(to);
  writer.text("PAR1");
  writer.bytes(likes.first.before);
  writer.varint(static_cast<uint64_t>(likes.rows) << 1);  // zigzag; never below zero
  writer.structures(likes.first.groups.head, likes.groups_count, likes.groups);
  if (likes.first.key_values.head.data)
    writer.structures(likes.first.key_values.head, likes.key_values_count, likes.key_values);
  writer.bytes(likes.first.after);
  const uint64_t size = static_cast<uint64_t>(writer.at() - to) - 4;
  for (int shift = 0; shift < 32; shift += 8) writer.byte(static_cast<uint8_t>(size >> shift));
  writer.text("PAR1");
  return writer.at();
}

class Joining {
 public:
  Joining(const pc_file* files, uint64_t room, pc_joined* told) : files_(files), left_(room), told_(told) {}

  // Whether the file fits.
  bool add(int64_t number) {
    const pc_file& file = files_[number];
    pc_joined& told = told_[number];
    told = {-1, 0, 0, 0, 0, 0, 0};
    try {
      if (file.size_bytes < 0) throw Unclear{"it has no size"};
      const Span metadata = metadata_of({file.data, static_cast<uint64_t>(file.size_bytes)});
      if (metadata.size > INT32_MAX) throw Unclear{"its metadata are too long"};
      const Outline outline = outline_of(metadata, static_cast<uint64_t>(metadata.data - file.data), columns_);
      Likes* known = like(outline);
      uint64_t size = outline.groups.bytes.size;
      if (!known)
        size += metadata.size + 3 * LONGEST_VARINT + ENDS;
      else if (!known->has_key_values_of(outline))
        size += outline.key_values.bytes.size;
      if (size > left_) return false;
      if (outline.rows > INT64_MAX / 4 - (known ? known->rows : 0)) throw Unclear{"there are too many rows"};
      if (!known) all_.push_back({outline, number});
      Likes& likes = known ? *known : all_.back();
      told = {static_cast<int32_t>(likes.number), static_cast<int32_t>(outline.groups.count), outline.rows, 0, 0, 0, 0};
      if (outline.arrow_schema.data && !outline.arrow_schema.same(likes.arrow_schema)) {
        told.schema_offset = outline.arrow_schema.data - file.data;
        told.schema_bytes = static_cast<int64_t>(outline.arrow_schema.size);
      }
      likes.add(outline);
      left_ -= size;
    } catch (const Unclear&) {
    }
    return true;
  }

  void write_all(uint8_t* joined) {
    uint8_t* at = joined;
    for (const Likes& likes : all_) {
      uint8_t* end = write(likes, at);
      told_[likes.number].offset = at - joined;
      told_[likes.number].size_bytes = end - at;
      at = end;
    }
  }

 private:
  // Most files state the same as the one before.
  Likes* like(const Outline& outline) {
    for (size_t i = all_.size(); i; i--)
      if (all_[i - 1].first.states_like(outline)) return &all_[i - 1];
    return nullptr;
  }

  const pc_file* files_;
  uint64_t left_;
  pc_joined* told_;
  std::vector<Likes> all_;
  Columns columns_;
};

}  // namespace

}  // namespace pagecompare

extern "C" {

int64_t pc_join(int64_t count, const pc_file* files, uint8_t* joined, int64_t room, pc_joined* told) {
  using namespace pagecompare;
  try {
    Joining joining(files, room > 0 ? static_cast<uint64_t>(room) : 0, told);
    int64_t number = 0;
    while (number < count && joining.add(number)) number++;
    joining.write_all(joined);
    return number;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

}  // extern "C"
