// What values have in common with the value before, for Zstandard's encoder.
//
// A compressor that knows nothing of values looks up every few bytes in what was there before. Values in PLAIN say
// where to look: numbers repeat the high bytes of the number before, and texts what stands at the same place of the
// text before, from its start or from its end. What is found so is at few distances, which Zstandard says in few bits.
#pragma once

#include "format.hpp"

namespace pagemerge {

// So many bytes as they are, and then so many of those that are `distance` bytes before; a distance of 0 ends a block.
// It is laid out as ZSTD_Sequence.
struct Repeat {
  u32 distance, literals, length, unused;
};

// Finds them for a page, which has SLACK behind it, and whose values begin at `values_at`, each `width` bytes wide, or
// behind its length if that is 0. False if a text is too long for that, or goes beyond the page.
bool find_repeats(View page, size_t values_at, size_t width, Numbers<Repeat>& found);

// The end of the last value that ends within so many bytes of the page; 0 if none does.
size_t end_of_values(View page, size_t values_at, size_t width, size_t bytes);

}  // namespace pagemerge
