#include "column.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace pagemerge {

// ---- dictionaries

namespace {

constexpr size_t FIRST_SLOTS = 1024;
constexpr size_t MAX_DICTIONARY_BYTES = 1 << 20;  // beyond, indices save nothing worth the trouble
// After so many chunks, or values, it shows whether values repeat from file to file.
constexpr int TRIAL_CHUNKS = 3;
constexpr size_t TRIAL_VALUES = PM_TRIAL_VALUES, LONG_TRIAL_VALUES = 8192;

}  // namespace

void UnionDictionary::reset() {
  plain.clear();
  offsets.fill(1, 0);
  slots_.fill(FIRST_SLOTS, 0);
  slots_are_old_ = false;
}

void UnionDictionary::take(View entries, size_t count, size_t width, const Numbers<u32>& ends) {
  plain.put(entries.data, entries.size);
  offsets.resize(count + 1);
  for (size_t i = 0; i <= count; i++) offsets[i] = width ? static_cast<u32>(i * width) : ends[i];
  slots_are_old_ = count > 0;
}

void UnionDictionary::fill_slots(size_t wanted) {
  while (wanted < count() * 2) wanted *= 4;
  slots_are_old_ = false;
  slots_.fill(wanted, 0);
  u64 mask = wanted - 1;
  for (size_t entry = 0; entry < count(); entry++) {
    u64 slot = XXH3_64bits(plain.data + offsets[entry], entry_bytes(entry)) & mask;
    while (slots_[slot]) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<u32>(entry) + 1;
  }
}

template <size_t Width>
u32 UnionDictionary::add(const u8* value, size_t given) {
  const size_t size = Width ? Width : given;
  if (slots_are_old_) fill_slots(slots_.size());
  u64 mask = slots_.size() - 1;
  u64 slot = XXH3_64bits(value, size) & mask;
  while (slots_[slot]) {
    u32 entry = slots_[slot] - 1;
    if (entry_bytes(entry) == size && !memcmp(plain.data + offsets[entry], value, size)) return entry;
    slot = (slot + 1) & mask;
  }
  u32 entry = static_cast<u32>(count());
  plain.put(value, size);
  offsets.push(static_cast<u32>(plain.size));
  slots_[slot] = entry + 1;
  if (count() * 2 > slots_.size()) fill_slots(slots_.size() * 4);
  return entry;
}

namespace {

void gather_byte_arrays(const u8* dictionary, const u32* offsets, const u32* indices, size_t count, Bytes& out) {
  size_t total = 0;
  for (size_t i = 0; i < count; i++) total += offsets[indices[i] + 1] - offsets[indices[i]];
  u8* to = out.grow(total);
  for (size_t i = 0; i < count; i++) {
    const u8* from = dictionary + offsets[indices[i]];
    size_t size = offsets[indices[i] + 1] - offsets[indices[i]];
    memcpy(to, from, size <= 32 ? 32 : size);  // there is SLACK behind both
    to += size;
  }
}

template <class T>
void gather_numbers(const u8* dictionary, const u32* indices, size_t count, Bytes& out) {
  u8* to = out.grow(count * sizeof(T));
  for (size_t i = 0; i < count; i++) memcpy(to + i * sizeof(T), dictionary + indices[i] * sizeof(T), sizeof(T));
}

}  // namespace

void gather(const Leaf& leaf, const u8* dictionary, const u32* offsets, const u32* indices, size_t count, Bytes& out) {
  switch (leaf.type) {
    case BYTE_ARRAY:
      gather_byte_arrays(dictionary, offsets, indices, count, out);
      return;
    case INT32:
    case FLOAT:
      gather_numbers<u32>(dictionary, indices, count, out);
      return;
    case INT64:
    case DOUBLE:
      gather_numbers<u64>(dictionary, indices, count, out);
      return;
    default: {
      size_t width = leaf.width();
      u8* to = out.grow(count * width);
      for (size_t i = 0; i < count; i++) memcpy(to + i * width, dictionary + indices[i] * width, width);
    }
  }
}

bool counts_up(const u32* indices, size_t count, size_t from) {
  u32 wrong = 0;
  for (size_t i = 0; i < count; i++) wrong |= indices[i] ^ static_cast<u32>(from + i);
  return !wrong;
}

// ---- reading

void Column::begin(const Leaf& of) {  // buffers are kept: new memory has to be cleared by the system
  leaf = &of;
  forget_values();
  chunks = 0;
  has_dictionary = of.type != BOOLEAN;
  dictionary.reset();
}

void Column::forget_values() {
  definition.clear();
  repetition.clear();
  indices.clear();
  plain.clear();
  levels = values = 0;
  has_dictionary = false;
}

void Column::to_plain() {
  if (!has_dictionary) return;
  has_dictionary = false;
  gather(*leaf, dictionary.plain.data, dictionary.offsets.data(), indices.data(), values, plain);
  indices.clear();
}

// Few of the values so far repeat, or they are long: what is likely to come of a dictionary is not worth the trial.
bool Column::is_worthless(size_t bytes, size_t entries, size_t of) const {
  return bytes > MAX_DICTIONARY_BYTES || (chunks >= TRIAL_CHUNKS && of >= TRIAL_VALUES && entries * 50 > of * 49) ||
         (of >= LONG_TRIAL_VALUES && entries * 4 > of * 3);
}

void Column::map_dictionary(size_t entries, Scratch& scratch) {
  scratch.map.resize(entries);
  size_t width = leaf->width();
  const u8* from = scratch.dictionary.data;
  u32* map = scratch.map.data();
  if (width == 4) {
    for (size_t i = 0; i < entries; i++) map[i] = dictionary.add<4>(from + i * 4);
  } else if (width == 8) {
    for (size_t i = 0; i < entries; i++) map[i] = dictionary.add<8>(from + i * 8);
  } else {
    for (size_t i = 0; i < entries; i++) {
      size_t begin = width ? i * width : scratch.ends[i], end = width ? begin + width : scratch.ends[i + 1];
      map[i] = dictionary.add(from + begin, end - begin);
    }
  }
}

void Column::add_page(const DataPage& page, const Chunk& chunk, size_t entries, bool& mapped, Scratch& scratch) {
  if (page.definition) definition.put(page.definition, page.levels);
  if (page.repetition) repetition.put(page.repetition, page.levels);
  levels += page.levels;
  if (page.encoding != RLE_DICTIONARY) {
    to_plain();
    decode_values(*leaf, page.encoding, page.at, page.end, page.values, plain, scratch.decode);
    values += page.values;
    return;
  }
  decode_dictionary_indices(page, chunk, entries, scratch);
  const size_t width = leaf->width();
  const View all{scratch.dictionary.data, width ? entries * width : scratch.ends[entries]};
  const bool is_first = has_dictionary && !mapped && !dictionary.count();  // nothing is united yet
  if (is_first && is_worthless(all.size, entries, page.values)) to_plain();
  if (!has_dictionary) {
    bool whole = page.values == entries && counts_up(scratch.indices.data(), entries);
    if (whole) {
      plain.put(all.data, all.size);
    } else {
      gather(*leaf, scratch.dictionary.data, scratch.ends.data(), scratch.indices.data(), page.values, plain);
    }
    values += page.values;
    return;
  }
  if (is_first) {
    dictionary.take(all, entries, width, scratch.ends);
    scratch.map.resize(entries);
    for (size_t i = 0; i < entries; i++) scratch.map[i] = static_cast<u32>(i);
  } else if (!mapped) {
    map_dictionary(entries, scratch);
  }
  mapped = true;
  size_t before = indices.size();
  indices.resize(before + page.values);
  for (size_t i = 0; i < page.values; i++) indices[before + i] = scratch.map[scratch.indices[i]];
  values += page.values;
  if (is_worthless(dictionary.plain.size, dictionary.count(), values)) to_plain();
}

void Column::read(View file, const Chunk& chunk, i64 rows, Scratch& scratch) {
  size_t entries = 0, levels_before = levels, values_before = values;
  bool mapped = false;
  each_page(
      file, chunk,
      [&](const PageHeader& header, View body) {
        scratch.dictionary.clear();
        entries = open_dictionary(header, body, chunk, *leaf, scratch.dictionary, scratch);
      },
      [&](const PageHeader& header, View body, bool first) {
        add_page(open_page(header, body, chunk, *leaf, first, scratch), chunk, entries, mapped, scratch);
      });
  chunks++;
  i64 nulls = static_cast<i64>((levels - levels_before) - (values - values_before));
  if (leaf->max_repetition) {
    need(std::count(repetition.data + levels_before, repetition.data + levels, 0) == rows,
         "a column has another number of rows than its row group");
  } else {
    need(chunk.nulls < 0 || nulls == chunk.nulls, "a column has another number of nulls than its statistics say");
  }
}

// ---- order

namespace {

// Where the levels, the values and the values' bytes of each row begin; one more than there are rows.
struct RowStarts {
  Numbers<u32> levels, values;
  Numbers<u64> bytes;

  RowStarts(const Column& column, size_t rows) {
    support(column.levels < UINT32_MAX, "there are too many values for one row group");
    support(column.levels <= UINT32_MAX, "there are too many values to put rows in order");
    levels.resize(rows + 1);
    values.resize(rows + 1);
    bytes.resize(rows + 1);
    const Leaf& leaf = *column.leaf;
    size_t width = column.has_dictionary ? sizeof(u32) : leaf.width(), row = 0, value = 0, byte = 0;
    for (size_t level = 0; level <= column.levels; level++) {
      bool ends = level == column.levels;
      if (ends || !leaf.max_repetition || !column.repetition.data[level]) {
        need(row <= rows, "a column has another number of rows than its row group");
        levels[row] = static_cast<u32>(level);
        values[row] = static_cast<u32>(value);
        bytes[row] = byte;
        row++;
      }
      if (ends || (leaf.max_definition && column.definition.data[level] != leaf.max_definition)) continue;
      value++;
      byte += width ? width : 4 + static_cast<size_t>(load<u32>(column.plain.data + byte));
    }
    need(row == rows + 1, "a column has another number of rows than its row group");
  }
};

}  // namespace

void Lists::check() const {
  int least[MAX_LEVEL + 1] = {};  // by repetition level
  for (size_t i = 0; i < leaf.repeated.size(); i++) least[i + 1] = leaf.repeated[i].definition;
  bool wrong = false;
  for (size_t i = 0; i < levels; i++) {
    int wanted = least[repetition[i]];
    wrong |= definition[i] < wanted || (wanted && (!i || definition[i - 1] < wanted));
  }
  need(!wrong, "a list goes on that has no entry");
}

u64 Lists::shape(size_t repetition_level) const {
  int entry = leaf.repeated[repetition_level - 1].definition;
  u64 hash = 0;
  for (size_t i = 0; i < levels; i++) {
    if (repetition[i] > repetition_level) continue;
    u64 told = static_cast<u64>(repetition[i]) << 32 | static_cast<u64>(std::min<int>(definition[i], entry));
    hash = (hash ^ told) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

void Column::reorder(const Numbers<RowRun>& runs, size_t rows) {
  RowStarts starts(*this, rows);
  Bytes ordered;
  auto move = [&](const u8* from, size_t begin, size_t end) { ordered.put(from + begin, end - begin); };
  for (Bytes* part : {&definition, &repetition}) {
    if (!part->size) continue;
    ordered.clear();
    for (size_t i = 0; i < runs.size(); i++) {
      move(part->data, starts.levels[runs[i].first], starts.levels[runs[i].first + runs[i].count]);
    }
    part->swap(ordered);
  }
  ordered.clear();
  const u8* from = has_dictionary ? reinterpret_cast<const u8*>(indices.data()) : plain.data;
  for (size_t i = 0; i < runs.size(); i++) {
    move(from, starts.bytes[runs[i].first], starts.bytes[runs[i].first + runs[i].count]);
  }
  if (has_dictionary) {
    if (ordered.size) memcpy(indices.data(), ordered.data, ordered.size);
  } else {
    plain.swap(ordered);
  }
}

}  // namespace pagemerge
