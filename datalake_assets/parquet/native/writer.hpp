// Writing one column chunk: pages that are encoded, pages that are copied, their statistics and indexes.
#pragma once

#include "column.hpp"
#include "skimming.hpp"
#include "spreading.hpp"
#include "statistics.hpp"

namespace pagemerge {

// A page of less than this is not worth staying apart: its neighbours are encoded with it.
constexpr size_t SMALL_PAGE_BYTES = PM_SMALL_PAGE_BYTES;

void widen_range(const Leaf& leaf, const MinMax& more, MinMax& range);
void came_out(bool right);  // what was written is read again: refuses the merge if it is not what it should be
double cpu_now();           // seconds of this thread

struct WriterSettings {
  int codec = UNCOMPRESSED, level = 1;
  size_t page_bytes = 1 << 20, page_rows = 20'480, page_least_bytes = 0;
  bool verify = true, walk = true, copy = true;
};

// What the page index says of a page.
struct PageInfo {
  i64 offset = 0, bytes = 0, row = 0, nulls = 0;
  bool all_null = false;
  MinMax range;
};

// What the column chunk's metadata say.
struct ChunkInfo {
  std::vector<PageInfo> pages;
  i64 dictionary_offset = 0, data_offset = 0;
  i64 bytes = 0, plain_bytes = 0, values = 0, nulls = 0, rows = 0;
  i64 copied_bytes = 0, copied_pages = 0, encoded_pages = 0, pages_v2 = 0;
  bool has_dictionary = false, ranges_known = true;
  MinMax range;
  Bytes column_index, offset_index, bloom;
};

// What becomes of a chunk.
enum class Way {
  COPIED,
  DECODE,  // it has to be read
  ANEW,    // it can be copied, and perhaps all before it, which were decoded to see whether values repeat
};

class ChunkWriter {
 public:
  ChunkWriter(const Leaf& leaf, const WriterSettings& settings, Bytes& out, Scratch& scratch, Skimmed& skimmed)
      : leaf_(leaf), settings_(settings), out_(out), scratch_(scratch), skimmed_(skimmed) {}

  // Copies a chunk's values without decoding them if they can stay as they are, behind what `before` holds, which is
  // written first. `proven`: somebody vouches for the file's bytes, so that values need not be decoded to prove them.
  // Whether parts that stay compressed are sound is left to `Skimmed::check`. Levels of what was copied are in the
  // scratch.
  Way copy(View file, const Chunk& chunk, i64 rows, bool proven, Column& before);
  // Encodes the column's values as pages.
  void encode(Column& column);
  // Writes what is left, and makes the page indexes.
  ChunkInfo finish();

  double verify_s = 0;  // CPU that verifying took

 private:
  struct Joined {  // a page of version 2 that compressed values are collected for
    std::vector<Part> parts;
    std::vector<Bytes> made;  // what parts refer to that lies in no file
    Bytes definition, repetition;
    size_t levels = 0, values = 0, rows = 0, plain_bytes = 0, bytes = 0;
    MinMax range;
  };
  struct Found;  // values of a chunk where they lie

  const Leaf& leaf_;
  const WriterSettings& settings_;
  Bytes& out_;
  Scratch& scratch_;
  Skimmed& skimmed_;
  ChunkInfo info_;
  Joined joined_;
  std::vector<Part> parts_;  // of what was found in a chunk
  Numbers<Again> again_;     // in its dictionary
  Bytes spread_;             // which became this
  SplitPage split_;
  bool was_anew_ = false;
  bool was_tried_ = false, takes_repeats_ = false;  // whether a sample was compressed both ways, and which is smaller

  bool find(View file, const Chunk& chunk, std::vector<Found>& found);
  bool find_plain(const PageHeader& header, View body, const Chunk& chunk, std::vector<Found>& found);
  void put_bare_levels(const Bytes& levels, int highest, Bytes& to);
  bool keep_levels(Found& piece, View repetition, View definition);
  bool find_again(const PageHeader& dictionary, View body, const Chunk& chunk, size_t count, size_t& indexed);
  bool spread_again(Found& found);
  void check_spread(size_t before, size_t plain);
  bool prove(const Chunk& chunk, const Found& found);
  void put_found(const Found& found, const MinMax& range);
  void put_joined();
  void put_as_is(const Found& found, const MinMax& range);
  static constexpr size_t NO_VALUES = SIZE_MAX;  // in PLAIN

  void put_page(int type, size_t values, int encoding, View page, size_t values_at = NO_VALUES);
  void pack(View page);
  bool pack_repeats(View page, size_t values_at);
  bool repeats_are_smaller(View page, size_t values_at);
  void note_page(PageInfo page);
  void begin_data();
  void verify(const Column& column, size_t from);
};

}  // namespace pagemerge
