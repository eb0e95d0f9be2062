// A file read by itself, to its last value: whether what nobody vouches for can be read at all.
#include <cstdio>
#include <new>

#include "pagecompare.h"
#include "stream.hpp"

namespace pagecompare {

namespace {

// Passes the present page. Levels, indices, and the values of most encodings were read when it was opened.
void pass_page(Stream& stream) {
  const uint32_t count = stream.values_left;
  if (stream.form == Form::TEXT && texts(stream.values, count).size != stream.values.size)
    throw Unclear{"a page goes on after its last value"};
  stream.pass(stream.levels_left());
}

void read(const pc_file& file, int64_t memory_bytes, pc_result& result) {
  if (file.size_bytes < 0) throw Unclear{"it has no size"};
  Allowance allowance(memory_bytes > 0 ? static_cast<uint64_t>(memory_bytes) : UINT64_MAX / 2);
  Unpacker unpacker(nullptr);
  const Span whole{file.data, static_cast<uint64_t>(file.size_bytes)}, metadata = metadata_of(whole);
  const Span pages = whole.part(0, static_cast<uint64_t>(metadata.data - file.data));
  const Footer footer = footer_of(metadata, nullptr);
  if (footer.rows != file.rows) throw Unclear{"it has another number of rows than were expected"};
  Coherence coherence(footer, footer.groups.size(), allowance);
  for (size_t number = 0; number < footer.leaves.size(); number++) {
    result.column = static_cast<int32_t>(number);
    const Leaf& leaf = footer.leaves[number];
    if (leaf.is_decimal && leaf.type == Type::TEXT) throw Unclear{"it has decimals of any length"};
    std::vector<Place> places;
    for (const RowGroup& group : footer.groups)
      places.push_back({pages, group.chunks[number], group.rows, 0, file.proven != 0, false});
    const bool is_nested = coherence.begin(number);
    Stream stream(leaf, std::move(places), allowance, unpacker, nullptr, is_nested ? &coherence : nullptr);
    while (stream.fill()) pass_page(stream);
    result.values += stream.total;
  }
  result.rows = footer.rows;
  result.column = -1;
  result.peak_bytes = static_cast<int64_t>(allowance.peak());
}

int32_t told(pc_result& result, pc_verdict verdict, const std::string& why) {
  result.verdict = verdict;
  snprintf(result.reason, sizeof result.reason, "%s", why.c_str());
  return verdict;
}

}  // namespace

}  // namespace pagecompare

extern "C" {

int32_t pc_read(const pc_file* file, int64_t memory_bytes, pc_result* result) {
  using namespace pagecompare;
  *result = {};
  result->input = 0;
  result->column = -1;
  try {
    read(*file, memory_bytes, *result);
    return told(*result, PC_EQUAL, "");
  } catch (const Unclear& found) {
    return told(*result, PC_UNCLEAR, found.why);
  } catch (const std::bad_alloc&) {
    return told(*result, PC_UNCLEAR, "it takes more memory than there is");
  }
}

}  // extern "C"
