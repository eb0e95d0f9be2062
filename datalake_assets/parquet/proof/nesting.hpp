// Whether levels of columns in lists and groups mean anything: readers put rows together from them, each in its own way
// where they do not fit. Of an entry of a list that goes on, the one before has to be there; and the columns of a group
// have to agree on where the group is there, and on how many entries the lists have that it is in.
// Source: apache/parquet-format, README.md (nested encoding) and LogicalTypes.md.
#ifndef PAGECOMPARE_NESTING_HPP
#define PAGECOMPARE_NESTING_HPP

#include "layout.hpp"

namespace pagecompare {

// What tells sequences of levels apart: two polynomials of them, modulo a prime, and how many there are. Two sequences
// of n levels that differ have the same in less than one of 2^122 / n^2 cases.
struct Digest {
  uint64_t one = 1, other = 1, count = 0;
};

// Levels of a column, as far as a group that it is in goes: where it is there, missing, empty, or repeated.
class Trace {
 public:
  // Begins anew, for a column that may be repeated so often.
  void begin(const Node& group, uint32_t max_repetition);

  // The next levels; without repetition levels, none is above zero.
  void add(const uint8_t* definitions, const uint8_t* repetitions, uint32_t count);

  // Of all levels so far; begins anew.
  Digest end();

 private:
  static constexpr uint32_t AT_ONCE = 256, PER_WORD = 4;

  uint32_t symbols(const uint8_t* definitions, const uint8_t* repetitions, uint32_t count, uint16_t* to) const;
  void words(uint32_t count);

  Node group_;
  bool is_whole_ = false;  // the column is in no more lists than the group is
  Digest digest_;
  uint32_t held_ = 0;
  uint16_t symbols_[AT_ONCE + PER_WORD] = {};
};

// Levels of all columns, one after the other, and of the same chunks in each.
class Coherence {
 public:
  Coherence(const Footer& footer, size_t chunks, Allowance& allowance);

  // Goes on to the next column; false if its levels say nothing that would have to fit.
  bool begin(size_t leaf);

  // The next levels of the chunk; definition levels there always are.
  void add(const uint8_t* definitions, const uint8_t* repetitions, uint32_t count);

  // All levels of a chunk were told.
  void end(size_t chunk);

 private:
  void lists(const uint8_t* definitions, const uint8_t* repetitions, uint32_t count);

  const Footer& footer_;
  const size_t chunks_;
  const Nesting* nesting_ = nullptr;
  uint8_t before_ = 0;  // definition level
  Node with_last_, with_next_;
  Trace of_last_, of_next_;
  Array<Digest> last_;  // of each chunk of the column before
};

}  // namespace pagecompare

#endif
