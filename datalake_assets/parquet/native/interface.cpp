// The C interface: inputs are read and checked here, and whatever is thrown becomes a code and a reason.
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "merge.hpp"
#include "skimming.hpp"
#include "walking.hpp"

namespace pagemerge {

thread_local Budget* budget = nullptr;

double cpu_now() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

namespace {

// The budget of this thread's call, for as long as it takes.
struct BudgetScope {
  Budget own;

  explicit BudgetScope(i64 limit) {
    if (limit > 0) own.limit = static_cast<size_t>(limit);
    budget = &own;
  }
  ~BudgetScope() { budget = nullptr; }
};

// ---- inputs

[[noreturn]] void unreadable() { refuse(PM_UNREADABLE, std::string("it cannot be read: ") + strerror(errno)); }

// An input that lies in a file: at a path, which is opened, or open already.
class OpenFile {
 public:
  explicit OpenFile(const pm_input& input) : descriptor_(input.descriptor), is_mine_(input.path != nullptr) {
    if (is_mine_) descriptor_ = open(input.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) refuse(PM_UNREADABLE, std::string("it cannot be opened: ") + strerror(errno));
    try {
      look(input.size_bytes);
    } catch (...) {
      if (is_mine_) close(descriptor_);
      throw;
    }
  }
  ~OpenFile() {
    if (is_mine_) close(descriptor_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  size_t size() const { return size_; }

  // Reads behind what is there.
  void read(size_t offset, size_t length, Bytes& to) const {
    to.reserve(to.size + length);
    while (length) {
      ssize_t got = pread(descriptor_, to.data + to.size, length, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) unreadable();
      if (!got) refuse(PM_CHANGED, "it became shorter while it was read");
      to.size += static_cast<size_t>(got);
      offset += static_cast<size_t>(got);
      length -= static_cast<size_t>(got);
    }
  }

 private:
  int descriptor_;
  bool is_mine_;
  size_t size_ = 0;

  void look(i64 expected) {
    struct stat status;
    if (fstat(descriptor_, &status)) unreadable();
    if (!S_ISREG(status.st_mode)) refuse(PM_UNREADABLE, "it is no regular file");
    if (expected >= 0 && status.st_size != expected) refuse(PM_CHANGED, "it has another size than expected");
    size_ = static_cast<size_t>(status.st_size);
  }
};

bool is_file(const pm_input& input) { return input.path || input.descriptor >= 0; }

}  // namespace

void read_input(const pm_input& input, File& file) {
  if (is_file(input)) {
    OpenFile open_file(input);
    open_file.read(0, open_file.size(), file.own);
    file.bytes = {file.own.data, file.own.size};
  } else {
    if (!input.data || input.size_bytes < 0) refuse(PM_INTERNAL, "an input has neither path nor bytes");
    file.bytes = {input.data, static_cast<size_t>(input.size_bytes)};
  }
  file.proven = input.proven != 0;
  if (!input.digest) return;
  XXH128_canonical_t found;
  XXH128_canonicalFromHash(&found, XXH3_128bits(file.bytes.data, file.bytes.size));
  if (memcmp(found.digest, input.digest, sizeof found.digest))
    refuse(PM_CHANGED, "its bytes are not those that were committed");
  file.proven = true;
}

void parse_input(const pm_input& input, File& file) {
  file.footer = parse_footer(file.bytes);
  choose_groups(input, file.footer);
}

void choose_groups(const pm_input& input, Footer& footer) {
  if (input.rows >= 0 && input.rows != footer.rows) refuse(PM_CHANGED, "it has another number of rows than expected");
  i64 count = static_cast<i64>(footer.groups.size()), first = input.first_group;
  i64 end = input.groups < 0 ? count : first + input.groups;
  if (first < 0 || first > end || end > count) refuse(PM_CHANGED, "it has not the row groups that were asked for");
  footer.groups.erase(footer.groups.begin() + end, footer.groups.end());
  footer.groups.erase(footer.groups.begin(), footer.groups.begin() + first);
  footer.rows = 0;
  for (const RowGroup& group : footer.groups) footer.rows += group.rows;
}

namespace {

void digest_of(View view, u8* to) {
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest, XXH3_128bits(view.data, view.size));
  memcpy(to, digest.digest, sizeof digest.digest);
}

// `end`: the file's last bytes, with its footer.
pm_span span_of(View end, size_t file_bytes, View view) {
  if (!view.size) return {0, 0};
  return {static_cast<i64>(file_bytes - end.size) + (view.data - end.data), static_cast<i64>(view.size)};
}

// The row groups of a file that take part; of the file only `end` is read, its last bytes with all of its footer.
Footer read_footer(const pm_input& input, const OpenFile& open_file, Bytes& end) {
  size_t size = open_file.size(), most = std::min(size, FIRST_READ_BYTES);
  open_file.read(size - most, most, end);
  size_t wanted = footer_bytes({end.data, end.size}, size);
  if (wanted > end.size) {
    end.clear();
    open_file.read(size - wanted, wanted, end);
  }
  Bytes magic;
  open_file.read(0, 4, magic);
  need(!memcmp(magic.data, "PAR1", 4), "it is not a Parquet file");
  Footer footer = parse_footer({end.data, end.size}, size);
  choose_groups(input, footer);
  return footer;
}

// Widens the bounds of the time leaf by a row group's statistics; false if they don't bound it.
bool widen_times(const Leaf& leaf, const Chunk& chunk, pm_checked& checked) {
  MinMax range;
  if (leaf.order != Order::SIGNED || chunk.nulls != 0 || !chunk.min_exact || !chunk.max_exact) return false;
  if (!stated_min_max(leaf, chunk, range)) return false;
  auto time = [](const std::string& bytes) {
    const u8* from = reinterpret_cast<const u8*>(bytes.data());
    return bytes.size() == 4 ? static_cast<i64>(load<i32>(from)) : load<i64>(from);
  };
  i64 low = time(range.min), high = time(range.max);
  checked.time_min = checked.has_times ? std::min(checked.time_min, low) : low;
  checked.time_max = checked.has_times ? std::max(checked.time_max, high) : high;
  checked.has_times = 1;
  return true;
}

// Bytes of a row in one column at the most, decoded: each row has a value at least, and one row may have all others.
i64 most_of_row(const Leaf& leaf, const Chunk& chunk, i64 rows) {
  constexpr i64 BESIDES = 16;  // what a value takes for its offset and its validity
  const i64 values = leaf.max_repetition ? chunk.values - rows + 1 : 1;
  const i64 encoded = std::max({chunk.plain_bytes, chunk.bytes, i64{0}});
  const bool hides =
      leaf.max_repetition && (chunk.lists_dictionary || chunk.lists_prefixes);  // long values in few bytes
  const i64 each = leaf.width() ? static_cast<i64>(leaf.width()) : hides ? encoded : 0;
  i64 most = 0;
  if (__builtin_mul_overflow(values, each + BESIDES, &most)) return INT64_MAX;
  if (!leaf.width() && !hides && __builtin_add_overflow(most, encoded, &most)) return INT64_MAX;
  return most;
}

void check_group(const File& file, const RowGroup& group, pm_depth depth, pm_checked& checked, Scratch& scratch,
                 PageCount& count, Skimmed& skimmed) {
  i64 bytes = 0, row_bytes = 0;
  for (size_t i = 0; i < group.chunks.size(); i++) {
    const Chunk& chunk = group.chunks[i];
    checked.bloom_leaves |= u64{chunk.has_bloom} << std::min<size_t>(i, 63);
    const i64 most = most_of_row(file.footer.leaves[i], chunk, group.rows);
    if (__builtin_add_overflow(row_bytes, most, &row_bytes)) row_bytes = INT64_MAX;
    checked.has_page_index |= chunk.has_page_index;
    checked.has_chunk_key_values |= chunk.key_values.size > 0;
    support(chunk.codec >= 0 && chunk.codec <= LZ4_RAW, "it is compressed with a codec that is not known");
    checked.codecs |= 1u << chunk.codec;
    need(!__builtin_add_overflow(checked.plain_bytes, chunk.plain_bytes, &checked.plain_bytes),
         "its sizes are too large");
    checked.largest_chunk_plain_bytes = std::max(checked.largest_chunk_plain_bytes, chunk.plain_bytes);
    checked.unstated_dictionary |= chunk.lists_dictionary && !chunk.has_dictionary();
    bytes += chunk.bytes;
    if (depth >= PM_CHECK_PAGES)
      check_chunk(file.bytes, chunk, file.footer.leaves[i], group.rows, depth, scratch, count, skimmed);
  }
  checked.largest_group_bytes = std::max(checked.largest_group_bytes, bytes);
  checked.most_row_bytes = std::max(checked.most_row_bytes, row_bytes);
}

void check_input(const pm_input& input, pm_depth depth, i32 time_leaf, pm_checked& checked) {
  File file;
  size_t size = 0;
  if (depth == PM_CHECK_FOOTER && is_file(input) && !input.digest) {
    OpenFile open_file(input);
    size = open_file.size();
    file.footer = read_footer(input, open_file, file.own);
    file.bytes = {file.own.data, file.own.size};
  } else {
    read_input(input, file);
    parse_input(input, file);
    size = file.bytes.size;
  }
  const Footer& footer = file.footer;
  checked.rows = footer.rows;
  checked.row_groups = static_cast<i64>(footer.groups.size());
  checked.columns = static_cast<i64>(footer.leaves.size());
  checked.size_bytes = static_cast<i64>(size);
  digest_of(footer.schema, checked.schema_digest);
  digest_of(footer.key_values, checked.key_values_digest);
  checked.schema = span_of(file.bytes, size, footer.schema_list);
  checked.key_values = span_of(file.bytes, size, footer.key_values);
  checked.created_by = span_of(file.bytes, size, footer.created_by);
  for (const Leaf& leaf : footer.leaves) checked.has_repeated |= leaf.max_repetition > 0;
  size_t place = static_cast<size_t>(time_leaf);
  bool bounded = time_leaf >= 0 && place < footer.leaves.size();
  Scratch scratch;
  PageCount count;
  Skimmed skimmed;
  for (const RowGroup& group : footer.groups) {
    checked.has_sorting |= group.sorting.size > 0;
    if (!group.rows) continue;
    check_group(file, group, depth, checked, scratch, count, skimmed);
    bounded = bounded && widen_times(footer.leaves[place], group.chunks[place], checked);
  }
  skimmed.check();
  if (!bounded) checked.has_times = 0;
  checked.pages = count.pages;
  checked.checksums = count.checksums;
}

// Of a file that is not in memory only the footer and what heads the pages are read.
void walk_input(const pm_input& input, pm_checked& checked) {
  PageCount count;
  if (is_file(input) && !input.digest) {
    OpenFile open_file(input);
    Bytes end, held;
    Footer footer = read_footer(input, open_file, end);
    walk_pages(
        footer, open_file.size(),
        [&](size_t offset, size_t length) {
          held.clear();
          open_file.read(offset, length, held);
          return View{held.data, held.size};
        },
        count);
  } else {
    File file;
    read_input(input, file);
    parse_input(input, file);
    walk_pages(
        file.footer, file.bytes.size,
        [&](size_t offset, size_t length) { return View{file.bytes.data + offset, length}; }, count);
  }
  checked.pages = count.pages;
  checked.checksums = count.checksums;
}

void merge_inputs(i64 count, const pm_input* inputs, const pm_options& options, pm_result& result, i64& at) {
  if (count < 1 || options.page_bytes < 1 || options.page_rows < 1 || options.page_least_bytes < 0 ||
      !options.created_by)
    refuse(PM_INTERNAL, "the options make no sense");
  support(options.codec == UNCOMPRESSED || options.codec == SNAPPY || options.codec == ZSTD,
          "outputs are not written with that codec");
  double began = cpu_now();
  std::vector<File> files(static_cast<size_t>(count));
  for (at = 0; at < count; at++) {
    if (options.cancelled && *options.cancelled) refuse(PM_CANCELLED, "it was cancelled");
    read_input(inputs[at], files[static_cast<size_t>(at)]);
    result.in_bytes += static_cast<i64>(files[static_cast<size_t>(at)].bytes.size);
  }
  result.read_s = cpu_now() - began;
  began = cpu_now();
  for (at = 0; at < count; at++) {
    File& file = files[static_cast<size_t>(at)];
    parse_input(inputs[at], file);
    const Footer& first = files[0].footer;
    if (file.footer.schema != first.schema) refuse(PM_DIFFERS, "it has another schema");
    if (!options.keys && file.footer.key_values != first.key_values) refuse(PM_DIFFERS, "it has other key-values");
    if (options.bloom != PM_BLOOM_REFUSE) continue;
    for (const RowGroup& group : file.footer.groups) {
      for (const Chunk& chunk : group.chunks) support(!chunk.has_bloom, "it has bloom filters");
    }
  }
  at = -1;
  result.footer_s = cpu_now() - began;
  merge_files(files, options, result, at);
}

// Calls `work`, and makes a code and a reason of whatever it throws.
template <class Work>
int32_t guarded(char* reason, size_t room, Work work) {
  try {
    work();
    return PM_OK;
  } catch (const Refusal& refusal) {
    snprintf(reason, room, "%s", refusal.reason.c_str());
    return refusal.code;
  } catch (const std::bad_alloc&) {
    snprintf(reason, room, "there is not enough memory");
    return PM_MEMORY;
  } catch (const std::exception& error) {
    snprintf(reason, room, "%s", error.what());
    return PM_INTERNAL;
  } catch (...) {
    snprintf(reason, room, "something unknown was thrown");
    return PM_INTERNAL;
  }
}

// What is told of one input says nothing of the others.
template <class Look>
void each_input(i64 count, const pm_input* inputs, i64 memory_bytes, pm_checked* checked, Look look) {
  for (i64 i = 0; i < count; i++) {
    pm_checked& each = checked[i];
    memset(&each, 0, sizeof each);
    BudgetScope scope(memory_bytes);
    each.code = guarded(each.reason, sizeof each.reason, [&] { look(inputs[i], each); });
  }
}

}  // namespace
}  // namespace pagemerge

using namespace pagemerge;

extern "C" {

PM_API int32_t pm_version(void) { return PM_VERSION; }
PM_API uint32_t pm_reads(void) { return readable_codecs(); }
PM_API uint32_t pm_writes(void) { return writable_codecs(); }

PM_API int32_t pm_merge(int64_t count, const pm_input* inputs, const pm_options* options, pm_result* result) {
  memset(result, 0, sizeof *result);
  i64 at = -1;
  BudgetScope scope(options->memory_bytes);
  int32_t code =
      guarded(result->reason, sizeof result->reason, [&] { merge_inputs(count, inputs, *options, *result, at); });
  result->bad_input = code ? static_cast<int32_t>(at) : -1;
  result->peak_bytes = static_cast<i64>(scope.own.peak);
  return code;
}

PM_API int32_t pm_check(int64_t count, const pm_input* inputs, int32_t depth, int32_t time_leaf, int64_t memory_bytes,
                        pm_checked* checked) {
  each_input(count, inputs, memory_bytes, checked, [&](const pm_input& input, pm_checked& told) {
    check_input(input, static_cast<pm_depth>(depth), time_leaf, told);
  });
  return PM_OK;
}

PM_API int32_t pm_walk(int64_t count, const pm_input* inputs, int64_t memory_bytes, pm_checked* checked) {
  each_input(count, inputs, memory_bytes, checked, walk_input);
  return PM_OK;
}

PM_API void pm_free(void* data) { free(data); }

}  // extern "C"
