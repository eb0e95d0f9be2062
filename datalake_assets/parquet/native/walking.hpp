// Whether column chunks may be copied as they are.
#pragma once

#include <functional>

#include "merge.hpp"
#include "skimming.hpp"

namespace pagemerge {

// Of a file, at first: it holds most footers whole.
constexpr size_t FIRST_READ_BYTES = 64 << 10;

// Gives bytes of a file, from an offset on, so many; they may be overwritten by the next call.
using Fetch = std::function<View(size_t, size_t)>;

// Walks all pages of row groups without decompressing them, and refuses the file where they are not what its metadata
// says: kinds, encodings, sizes, values, rows, checksums, the dictionary's place, the offset index. Adds to `count`.
void walk_pages(const Footer& footer, size_t file_bytes, const Fetch& fetch, PageCount& count);

}  // namespace pagemerge
