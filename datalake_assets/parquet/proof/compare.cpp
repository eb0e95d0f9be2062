// Levels and values of both sides, one against the other; and the C interface.
#include <cstdio>
#include <new>

#include "pagecompare.h"
#include "stream.hpp"

namespace pagecompare {

namespace {

constexpr uint32_t UNKNOWN = UINT32_MAX;
constexpr uint32_t AT_ONCE = 256;

[[noreturn]] void values_differ() { throw Difference{"a value is another one"}; }

void pass_values(Stream& stream, Span passed, uint32_t count) {
  if (stream.form == Form::INDEX)
    stream.index += count;
  else
    stream.values = stream.values.from(passed.size);
  stream.values_left -= count;
}

class Column {
 public:
  Column(Stream& input, Stream& output, const Leaf& leaf, Allowance& allowance)
      : input_(input), output_(output), leaf_(leaf), known_(allowance) {}

  void compare() {
    while (true) {
      const bool more_in = input_.fill(), more_out = output_.fill();
      if (more_in != more_out)
        throw Difference{more_in ? "values are missing" : "there are more values than there were"};
      if (!more_in) return;
      const uint32_t left = input_.levels_left(), right = output_.levels_left();
      step(left < right ? left : right);
    }
  }

 private:
  void step(uint32_t count) {
    uint32_t present = count;
    if (const uint8_t *one = input_.definitions(), *other = output_.definitions(); one) {
      if (memcmp(one, other, count)) throw Difference{"a value is null on one side only, or null in another way"};
      present = 0;
      for (uint32_t i = 0; i < count; i++) present += one[i] == leaf_.max_definition;
    }
    if (const uint8_t *one = input_.repetitions(), *other = output_.repetitions(); one)
      if (memcmp(one, other, count)) throw Difference{"a list has another length"};
    values(present);
    input_.pass(count);
    output_.pass(count);
  }

  void values(uint32_t count) {
    if (count > input_.values_left || count > output_.values_left) throw Unclear{"a page ends early"};
    if (!count) return;
    if (output_.is_packed()) {
      if (count == input_.values_left && output_.take(input_.portion(), count)) {
        pass_values(input_, input_.values, count);
        return;
      }
      output_.unpack();
    }
    const bool in_indexed = input_.form == Form::INDEX, out_indexed = output_.form == Form::INDEX;
    if (in_indexed && out_indexed)
      indices(count);
    else if (in_indexed)
      entries(input_, output_, count);
    else if (out_indexed)
      entries(output_, input_, count);
    else
      plain(count);
  }

  void plain(uint32_t count) {
    Span wanted = leaf_.width ? input_.values.part(0, uint64_t(count) * leaf_.width) : texts(input_.values, count);
    // lengths are among what is compared: where all bytes are the same, so are the values that they make
    if (output_.values.size < wanted.size || memcmp(wanted.data, output_.values.data, wanted.size)) values_differ();
    pass_values(input_, wanted, count);
    pass_values(output_, wanted, count);
  }

  // Entries of one side's dictionary against values of the other; entries that follow each other go together.
  static void entries(Stream& indexed, Stream& other, uint32_t count) {
    for (uint32_t i = 0; i < count;) {
      const uint32_t first = indexed.index[i];
      uint32_t some = 1;
      while (i + some < count && indexed.index[i + some] == first + some) some++;
      Span wanted = indexed.dictionary.entries(first, some);
      if (other.values.size < wanted.size || memcmp(wanted.data, other.values.data, wanted.size)) values_differ();
      pass_values(other, wanted, some);
      i += some;
    }
    pass_values(indexed, {}, count);
  }

  // Indices on both sides. What an entry of the input's dictionary is in the output's is found out once.
  void indices(uint32_t count) {
    if (number_in_ != input_.dictionary.number || number_out_ != output_.dictionary.number) {
      number_in_ = input_.dictionary.number;
      number_out_ = output_.dictionary.number;
      uint32_t* known = known_.room(input_.dictionary.count);
      for (uint32_t i = 0; i < input_.dictionary.count; i++) known[i] = UNKNOWN;
    }
    const uint32_t *one = input_.index, *other = output_.index;
    uint32_t* known = known_.get();
    for (uint32_t begin = 0; begin < count; begin += AT_ONCE) {
      const uint32_t end = begin + AT_ONCE < count ? begin + AT_ONCE : count;
      uint32_t differs = 0;
      for (uint32_t i = begin; i < end; i++) differs |= known[one[i]] ^ other[i];
      if (!differs) continue;
      for (uint32_t i = begin; i < end; i++) {
        if (known[one[i]] == other[i]) continue;
        if (!input_.dictionary.entries(one[i], 1).same(output_.dictionary.entries(other[i], 1))) values_differ();
        known[one[i]] = other[i];
      }
    }
    pass_values(input_, {}, count);
    pass_values(output_, {}, count);
  }

  Stream &input_, &output_;
  const Leaf& leaf_;
  Array<uint32_t> known_;
  uint64_t number_in_ = 0, number_out_ = 0;
};

Span before_metadata(const pc_file& file) {
  Span whole{file.data, static_cast<uint64_t>(file.size_bytes)};
  return whole.part(0, static_cast<uint64_t>(metadata_of(whole).data - file.data));
}

void compare(int64_t count, const pc_file* inputs, const pc_file* output, Span footer, int64_t memory_bytes,
             pc_unpack other, pc_result& result) {
  Allowance allowance(memory_bytes > 0 ? static_cast<uint64_t>(memory_bytes) : UINT64_MAX / 2);
  Unpacker unpacker(other);
  const Footer made = footer_of(footer, nullptr);
  if (made.leaves.empty()) throw Unclear{"it has no columns"};
  if (made.groups.size() != 1) throw Unclear{"the output has several row groups, or none"};
  std::vector<Footer> footers(static_cast<size_t>(count));
  int64_t rows = 0;
  size_t groups = 0;
  bool is_coherent = true;
  for (int64_t i = 0; i < count; i++) {
    result.input = static_cast<int32_t>(i);
    if (inputs[i].size_bytes < 0) throw Unclear{"it has no size"};
    Footer& found = footers[static_cast<size_t>(i)];
    found = footer_of(metadata_of({inputs[i].data, static_cast<uint64_t>(inputs[i].size_bytes)}), &made);
    if (!found.elements.same(made.elements)) throw Unclear{"its schema is stated otherwise than the output's"};
    if (found.rows != inputs[i].rows) throw Unclear{"it has another number of rows than were expected"};
    rows += found.rows;
    groups += found.groups.size();
    is_coherent &= inputs[i].proven != 0;
  }
  result.input = -1;
  if (rows != made.rows) throw Difference{"the output has another number of rows than its inputs together"};
  const Span pages = before_metadata(*output);
  Coherence coherence(made, groups, allowance);
  for (size_t leaf = 0; leaf < made.leaves.size(); leaf++) {
    result.column = static_cast<int32_t>(leaf);
    std::vector<Place> wanted;
    for (int64_t i = 0; i < count; i++)
      for (const RowGroup& group : footers[static_cast<size_t>(i)].groups)
        wanted.push_back({before_metadata(inputs[i]), group.chunks[leaf], group.rows, static_cast<int>(i),
                          inputs[i].proven != 0, inputs[i].proven != 0});
    const bool is_told = !is_coherent && coherence.begin(leaf);
    Stream input(made.leaves[leaf], std::move(wanted), allowance, unpacker, nullptr, is_told ? &coherence : nullptr);
    const Chunk& chunk = made.groups[0].chunks[leaf];
    Statements statements(made.leaves[leaf], chunk, pages);
    Stream found(made.leaves[leaf], {{pages, chunk, made.groups[0].rows, -1, false, true}}, allowance, unpacker,
                 &statements);
    try {
      Column(input, found, made.leaves[leaf], allowance).compare();
    } catch (...) {
      result.input = input.input();
      throw;
    }
    result.values += found.total;
  }
  result.rows = made.rows;
  result.column = -1;
  result.peak_bytes = static_cast<int64_t>(allowance.peak());
}

void tell(pc_result& result, pc_verdict verdict, const std::string& why) {
  result.verdict = verdict;
  snprintf(result.reason, sizeof result.reason, "%s", why.c_str());
}

}  // namespace

}  // namespace pagecompare

extern "C" {

int32_t pc_version(void) { return PC_VERSION; }

uint32_t pc_reads(void) { return pagecompare::unpackable(); }

int32_t pc_compare(int64_t count, const pc_file* inputs, const pc_file* output, const uint8_t* footer,
                   int64_t footer_bytes, int64_t memory_bytes, pc_unpack other, pc_result* result) {
  using namespace pagecompare;
  *result = {};
  result->input = result->column = -1;
  try {
    if (count < 0 || footer_bytes < 0 || output->size_bytes < 0) throw Unclear{"there is nothing to compare"};
    compare(count, inputs, output, {footer, static_cast<uint64_t>(footer_bytes)}, memory_bytes, other, *result);
    tell(*result, PC_EQUAL, "");
  } catch (const Difference& found) {
    tell(*result, PC_DIFFERS, found.why);
  } catch (const Unclear& found) {
    tell(*result, PC_UNCLEAR, found.why);
  } catch (const std::bad_alloc&) {
    tell(*result, PC_UNCLEAR, "it takes more memory than there is");
  }
  return result->verdict;
}

}  // extern "C"
