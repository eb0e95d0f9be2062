// Minima, maxima and bloom filters of values in PLAIN form.
#pragma once

#include "footer.hpp"

namespace pagemerge {

constexpr size_t MAX_STATISTIC_BYTES = 4096;  // longer ones are left out

struct MinMax {
  bool found = false;  // some value has a place in the order
  std::string min, max;
  bool exact = true;  // they are values; else bounds of a writer that may have cut them off
};

MinMax min_max(const Leaf& leaf, const u8* plain, size_t count);

// Compares two values, without lengths before them, by the leaf's order; not for Order::NONE.
int compare(const Leaf& leaf, const std::string& one, const std::string& other);

// Of floating point: false for what is no number; the signs of zeros become those that bounds have (parquet.thrift).
bool is_number(const Leaf& leaf, const std::string& value);
void widen_zeros(const Leaf& leaf, std::string& min, std::string& max);

// A statistic as a chunk states it, if it can stand for a page's.
bool stated_min_max(const Leaf& leaf, const Chunk& chunk, MinMax& stated);

// A split-block bloom filter (parquet-format, BloomFilter.md) of the values that were added, with its header.
class BloomFilter {
 public:
  void add(const Leaf& leaf, const u8* plain, size_t count);
  void write(Bytes& out);

 private:
  Numbers<u64> hashes_;
};

}  // namespace pagemerge
