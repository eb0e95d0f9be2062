// One merge: its inputs, the order of its rows, and the footer of what comes out.
#pragma once

#include "writer.hpp"

namespace pagemerge {

struct File {
  Bytes own;  // what `bytes` points to where a path was given
  View bytes;
  bool proven = false;
  Footer footer;
};

// Reads an input, unless its bytes are given, and compares it with what the caller expects.
void read_input(const pm_input& input, File& file);

// Leaves out the row groups that take no part.
void choose_groups(const pm_input& input, Footer& footer);

// Parses the footer, and leaves out the row groups that take no part.
void parse_input(const pm_input& input, File& file);

// Merges the files; `at` is the input that was looked at when something was refused, or -1.
void merge_files(std::vector<File>& files, const pm_options& options, pm_result& result, i64& at);

// What the output's footer is made of, besides the inputs.
struct OutputFooter {
  const std::vector<File>& files;
  const pm_options& options;
  const std::vector<ChunkInfo>& chunks;
  const std::vector<View>& chunk_key_values;
  i64 rows;
  bool reordered;  // rows are not in the inputs' order
};

// Writes bloom filters, page indexes and the footer; returns whether a statement of the rows' order had to be dropped.
bool put_footer(const OutputFooter& footer, Bytes& out);

}  // namespace pagemerge
