// A column of all inputs, decoded to levels and PLAIN values, or to levels and indices into one dictionary.
#pragma once

#include "pages.hpp"

namespace pagemerge {

// The dictionaries of column chunks, united: the first as it is, and of the others what is not in there.
class UnionDictionary {
 public:
  Bytes plain;
  Numbers<u32> offsets;  // of each entry in `plain`, and the end of the last

  void reset();
  // Takes all entries of another dictionary, where there are none yet; `ends`: of each, if they have no `width`.
  void take(View entries, size_t count, size_t width, const Numbers<u32>& ends);
  size_t count() const { return offsets.size() - 1; }
  size_t entry_bytes(size_t entry) const { return offsets[entry + 1] - offsets[entry]; }
  // The entry of a value, which is added if it is new; `Width`: its size where that is known beforehand, else 0.
  template <size_t Width = 0>
  u32 add(const u8* value, size_t size = Width);

 private:
  Numbers<u32> slots_;          // 1 + entry; 0: free
  bool slots_are_old_ = false;  // entries were taken that are in none
  void fill_slots(size_t wanted);
};

// So many rows of the inputs' from one on, which stay together.
struct RowRun {
  size_t first, count;
};

struct Column {
  const Leaf* leaf = nullptr;
  Bytes definition, repetition;
  size_t levels = 0, values = 0;
  bool has_dictionary = false;  // values are `indices` into `dictionary`; else they lie in `plain`
  int chunks = 0;
  Numbers<u32> indices;
  UnionDictionary dictionary;
  Bytes plain;

  void begin(const Leaf& of);
  // What it holds was written; what follows goes on in PLAIN form.
  void forget_values();
  // Gives the dictionary up.
  void to_plain();
  // Adds one column chunk of so many rows.
  void read(View file, const Chunk& chunk, i64 rows, Scratch& scratch);
  // Puts its rows in another order. `rows`: of all runs together, all that there are.
  void reorder(const Numbers<RowRun>& runs, size_t rows);

 private:
  void add_page(const DataPage& page, const Chunk& chunk, size_t entries, bool& mapped, Scratch& scratch);
  void map_dictionary(size_t entries, Scratch& scratch);
  bool is_worthless(size_t bytes, size_t entries, size_t of) const;
};

// The levels of lists from a row on.
struct Lists {
  const Leaf& leaf;
  const u8 *definition, *repetition;
  size_t levels;

  // What the lists of a repeated element look like, the same for all leaves below it: a hash of where each list begins,
  // whether it is there, and how many entries it has.
  u64 shape(size_t repetition_level) const;
  // Refuses lists that go on where they have no entry: what a row holds would depend on the one before.
  void check() const;
};

// Appends the dictionary's values at the indices. `offsets`: of its entries, for byte arrays; may be null otherwise.
void gather(const Leaf& leaf, const u8* dictionary, const u32* offsets, const u32* indices, size_t count, Bytes& out);

bool counts_up(const u32* indices, size_t count, size_t from = 0);  // from, from + 1, …

}  // namespace pagemerge
