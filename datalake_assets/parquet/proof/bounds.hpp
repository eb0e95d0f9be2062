// Whether what the output states of its values is true: bounds and nulls of chunks and pages, and where pages lie.
// Whoever reads skips pages and row groups by that, so a wrong bound loses rows as surely as a wrong value.
#ifndef PAGECOMPARE_BOUNDS_HPP
#define PAGECOMPARE_BOUNDS_HPP

#include "layout.hpp"

namespace pagecompare {

// The least and the most of some values, as PLAIN has them, without lengths.
struct Extremes {
  bool found = false;
  Span least, most;
  uint8_t held[16];  // numbers, where the values themselves are elsewhere by now

  Extremes() = default;
  Extremes(const Extremes&) = delete;
  Extremes& operator=(const Extremes&) = delete;
};

// Below, at or above zero, in the order that Parquet gives the values of a leaf (its TypeDefinedOrder).
int ordered(const Leaf& leaf, Span one, Span other);

// Of values that lie one after the other; texts each after its length.
void extremes_of(const Leaf& leaf, Span values, uint32_t count, Extremes& to);

// Takes one more value.
void extend(const Leaf& leaf, Span value, Extremes& to);

// What is stated of one column chunk, held against its pages, which are told in their order.
class Statements {
 public:
  Statements(const Leaf& leaf, const Chunk& chunk, Span file);

  // Whether bounds are stated at all; otherwise nobody need look for extremes.
  bool has_bounds() const { return has_bounds_; }

  // A data page: where it lies, with its head; how many rows were before it; its values, nulls included, and nulls.
  void page(uint64_t offset, uint64_t size, int64_t row, uint32_t values, uint32_t nulls, const Statistics& said,
            const Extremes& extremes);

  // All pages were told; so many nulls there were.
  void end(int64_t nulls);

 private:
  void within(const Statistics& said, const Extremes& extremes) const;
  void in_order() const;
  bool is_value(Span bound) const;

  const Leaf& leaf_;
  const Chunk& chunk_;
  bool has_offsets_ = false, has_columns_ = false, has_bounds_ = false, is_least_met_ = false, is_most_met_ = false;
  std::vector<IndexedPage> offsets_;
  ColumnIndex columns_;
  size_t pages_ = 0;
};

}  // namespace pagecompare

#endif
