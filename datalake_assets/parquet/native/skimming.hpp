// Compressed pages that are looked at without being decompressed: whether they would decompress, and their levels.
#pragma once

#include "pages.hpp"
#include "snappy.hpp"

namespace pagemerge {

// Whether pages of a codec can be skimmed.
inline bool can_skim(int codec) { return codec == SNAPPY; }

// Compressed pages, several of which are gone through at a time.
class Skimmed {
 public:
  i64 source = -1;  // number of the input that what is added comes from; after `check`, of the one that was refused

  // Takes what has to decompress to so many bytes; it has to stay until it was checked.
  void add(View packed, size_t plain);
  // Refuses the file if something that was added does not.
  void check();

 private:
  struct Part {
    View elements;
    size_t plain;
    i64 source;
  };
  std::vector<Part> parts_;
};

// Compressed values as they lie in a file, behind a few bytes of our own.
struct Part {
  u8 head[2 + LONGEST_COPY];  // a literal, or the tag of one whose bytes begin what is left
  size_t head_bytes = 0;
  View rest;

  size_t size() const { return head_bytes + rest.size; }
  void put(Bytes& to) const {
    to.put(head, head_bytes);
    to.put(rest.data, rest.size);
  }
};

// The values of a page of version 1, which is taken apart where its levels end: they are compressed together.
struct SplitPage {
  View levels[2];           // repetition and definition levels, encoded; they lie in `scratch.check`
  std::vector<Part> parts;  // of the values
  size_t plain_bytes;
};

// Takes a page apart that has levels. What is left of it decompresses to the values by itself, which was gone through:
// copies of what levels are have become literals. False if it cannot be done, as where there are many of these.
bool split_page(const PageHeader& header, View body, const Leaf& leaf, Scratch& scratch, SplitPage& split);

// What `open_dictionary` and `open_page` find of a page, but for its entries, which all have one width, or its values.
// That they decompress to as many bytes as the header says is left to `Skimmed::check`.
void skim_dictionary(const PageHeader& header, View body, const Leaf& leaf, Skimmed& skimmed);
DataPage skim_page(const PageHeader& header, View body, const Chunk& chunk, const Leaf& leaf, bool first,
                   Scratch& scratch, Skimmed& skimmed);

// Walks and proves a chunk as deep as asked, without keeping anything; what was skimmed is left to be checked.
struct PageCount {
  i64 pages = 0, checksums = 0;
};
void check_chunk(View file, const Chunk& chunk, const Leaf& leaf, i64 rows, pm_depth depth, Scratch& scratch,
                 PageCount& count, Skimmed& skimmed);

}  // namespace pagemerge
