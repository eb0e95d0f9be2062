#include "merge.hpp"

#include <map>

namespace pagemerge {
namespace {

// ---- the order of rows

struct Times {
  bool found = false, sorted = true;  // sorted: as they come
  i64 min = 0, max = 0;
  Numbers<RowRun> runs;  // where rows have to be put in order
};

// Rows by time, those without one last, those of equal time in their order.
void find_runs(const Numbers<i64>& times, const Bytes& is_null, size_t rows, Times& found) {
  Numbers<u32> order;
  order.resize(rows);
  for (size_t i = 0; i < rows; i++) order[i] = static_cast<u32>(i);
  std::stable_sort(order.data(), order.data() + rows, [&](u32 a, u32 b) {
    if (is_null.data[a] || is_null.data[b]) return is_null.data[a] < is_null.data[b];
    return times[a] < times[b];
  });
  for (size_t i = 0; i < rows;) {
    size_t from = i++;
    while (i < rows && order[i] == order[i - 1] + 1) i++;
    found.runs.push({order[from], i - from});
  }
}

Times look_at_times(Column& column, bool sort) {
  const Leaf& leaf = *column.leaf;
  column.to_plain();
  size_t rows = column.levels, width = leaf.width();
  Times found;
  Numbers<i64> times;
  Bytes is_null;
  times.resize(rows);
  is_null.grow(rows);
  const u8* at = column.plain.data;
  bool last_null = false;
  for (size_t i = 0; i < rows; i++) {
    bool null = leaf.max_definition && column.definition.data[i] != leaf.max_definition;
    is_null.data[i] = null;
    times[i] = 0;
    if (null) {
      last_null = true;
      continue;
    }
    i64 value = width == 4 ? load<i32>(at) : load<i64>(at);
    at += width;
    times[i] = value;
    found.sorted &= !last_null && (!found.found || value >= found.max);
    found.min = found.found ? std::min(found.min, value) : value;
    found.max = found.found ? std::max(found.max, value) : value;
    found.found = true;
  }
  if (!found.sorted && sort) find_runs(times, is_null, rows, found);
  return found;
}

// A row group of an input, whose first row is so many rows from the first of all.
struct Piece {
  size_t file, group, first_row, rows;
};

// Whether the runs are whole row groups in another order: then these are taken in that order, and stay as they are.
bool whole_pieces(const Numbers<RowRun>& runs, std::vector<Piece>& pieces) {
  std::vector<Piece> ordered;
  for (size_t i = 0; i < runs.size(); i++) {
    size_t row = runs[i].first, end = row + runs[i].count;
    auto piece = std::lower_bound(pieces.begin(), pieces.end(), row,
                                  [](const Piece& each, size_t wanted) { return each.first_row < wanted; });
    for (; row < end; piece++) {
      if (piece == pieces.end() || piece->first_row != row || piece->rows > end - row) return false;
      ordered.push_back(*piece);
      row += piece->rows;
    }
  }
  pieces.swap(ordered);
  return true;
}

// ---- the merge

class Merge {
 public:
  Merge(std::vector<File>& files, const pm_options& options, pm_result& result)
      : files_(files), options_(options), result_(result), leaves_(files[0].footer.leaves) {
    settings_.codec = options.codec;
    settings_.level = options.level;
    settings_.page_bytes = static_cast<size_t>(options.page_bytes);
    settings_.page_rows = static_cast<size_t>(options.page_rows);
    settings_.page_least_bytes = static_cast<size_t>(std::min(options.page_least_bytes, options.page_bytes));
    settings_.verify = options.verify == PM_VERIFY_ENCODED;
    settings_.walk = options.verify != PM_VERIFY_ELSEWHERE;
    settings_.copy = options.copy != 0;
    size_t row = 0;
    for (size_t i = 0; i < files.size(); i++) {
      for (size_t k = 0; k < files[i].footer.groups.size(); k++) {
        size_t rows = static_cast<size_t>(files[i].footer.groups[k].rows);
        if (rows) pieces_.push_back({i, k, row, rows});
        row += rows;
      }
    }
    rows_ = static_cast<i64>(row);
  }

  i64 at = -1;  // the input that is looked at

  void run() {
    support(rows_ <= UINT32_MAX / 2, "there are too many rows for one row group");
    out_.reserve(static_cast<size_t>(result_.in_bytes));
    out_.put("PAR1", 4);
    chunks_.reserve(leaves_.size());
    if (rows_) {
      read_times();
      for (size_t leaf = 0; leaf < leaves_.size(); leaf++) merge_column(leaf);
    }
    double began = cpu_now();
    result_.dropped_sorting =
        put_footer({files_, options_, chunks_, chunk_key_values_, rows_, reorders() || moved_}, out_);
    result_.encode_s += cpu_now() - began;
    result_.rows = rows_;
    result_.size_bytes = static_cast<i64>(out_.size);
    result_.data = out_.release();
  }

 private:
  std::vector<File>& files_;
  const pm_options& options_;
  pm_result& result_;
  const std::vector<Leaf>& leaves_;
  WriterSettings settings_;
  Scratch scratch_;
  Skimmed skimmed_;
  Bytes out_;
  Column column_, time_column_;
  Times times_;
  std::vector<ChunkInfo> chunks_;
  std::vector<View> chunk_key_values_;
  std::vector<Piece> pieces_;  // in the order in which their rows come
  bool moved_ = false;         // which is another than the inputs'
  i64 rows_ = 0;
  std::map<std::pair<size_t, u64>, u64> shapes_;  // of each piece and repeated element, by the first leaf below it

  bool is_time(size_t leaf) const { return options_.time_leaf >= 0 && leaf == static_cast<size_t>(options_.time_leaf); }
  bool reorders() const { return times_.runs.size() > 0; }

  template <class Use>
  void each_chunk(size_t leaf, Use use) {
    for (const Piece& piece : pieces_) {
      at = static_cast<i64>(piece.file);
      if (options_.cancelled && *options_.cancelled) refuse(PM_CANCELLED, "it was cancelled");
      const RowGroup& group = files_[piece.file].footer.groups[piece.group];
      use(files_[piece.file], group.chunks[leaf], group.rows);
    }
    at = -1;
  }

  void read_times() {
    if (options_.time_leaf < 0) return;
    double began = cpu_now();
    size_t place = static_cast<size_t>(options_.time_leaf);
    support(place < leaves_.size(), "there is no such time column");
    const Leaf& leaf = leaves_[place];
    support((leaf.type == INT32 || leaf.type == INT64) && !leaf.max_repetition && leaf.order == Order::SIGNED,
            "the time column is no integer of its own in each row");
    time_column_.begin(leaf);
    each_chunk(place, [&](const File& file, const Chunk& chunk, i64 rows) {
      time_column_.read(file.bytes, chunk, rows, scratch_);
    });
    times_ = look_at_times(time_column_, options_.order == PM_ORDER_SORT);
    if (!times_.sorted && options_.order == PM_ORDER_REFUSE) refuse(PM_UNSORTED, "rows are not in order of time");
    result_.has_times = times_.found;
    result_.time_min = times_.min;
    result_.time_max = times_.max;
    result_.unsorted = !times_.sorted;
    if (reorders() && whole_pieces(times_.runs, pieces_)) {
      time_column_.reorder(times_.runs, static_cast<size_t>(rows_));
      times_.runs.clear();
      moved_ = true;
    }
    result_.decode_s += cpu_now() - began;
  }

  // Of what was copied of a column: whose it is that is not sound.
  void check_skimmed() {
    try {
      skimmed_.check();
    } catch (...) {
      at = skimmed_.source;
      throw;
    }
  }

  // Rows can only be moved, and stand behind those of other files, where each is whole by itself: readers take the
  // lists of all leaves below a repeated element for the same ones, and put values into other rows, without a word,
  // where they are not.
  void check_lists(const Lists& lists, size_t piece) {
    lists.check();
    const std::vector<Repeated>& repeated = lists.leaf.repeated;
    for (size_t i = 0; i < repeated.size(); i++) {
      u64 shape = lists.shape(i + 1);
      auto [known, is_first] = shapes_.try_emplace({piece, repeated[i].element}, shape);
      if (is_first && budget) budget->take(sizeof *known);
      need(is_first || known->second == shape, "columns of a list have other entries than each other");
    }
  }

  enum class Taken { ALL, BEGIN_ANEW, NOT_AT_ALL };

  // Copies a column's chunks, or reads them into `column_`; `unlike`: values do not repeat. Times that cannot be copied
  // from the first on are not taken: they are there.
  Taken take_chunks(size_t place, ChunkWriter& writer, bool unlike) {
    const Leaf& leaf = leaves_[place];
    Column& column = column_;
    column.begin(leaf);
    if (unlike) column.to_plain();
    Taken taken = Taken::ALL;
    size_t piece = 0;
    each_chunk(place, [&](const File& file, const Chunk& chunk, i64 rows) {
      if (taken != Taken::ALL) return;
      skimmed_.source = at;
      size_t from_level = column.levels;
      const Way way = writer.copy(file.bytes, chunk, rows, file.proven, column);
      if (way == Way::ANEW) taken = Taken::BEGIN_ANEW;
      if (way == Way::DECODE && is_time(place) && !piece) taken = Taken::NOT_AT_ALL;
      if (taken != Taken::ALL) return;
      if (way == Way::DECODE) column.read(file.bytes, chunk, rows, scratch_);
      const bool is_trusted = file.proven || !settings_.walk;  // or somebody else looks
      if (leaf.max_repetition && (reorders() || moved_ || !is_trusted)) {
        const bool is_copied = way == Way::COPIED;
        const Bytes& definition = is_copied ? scratch_.kept : column.definition;
        const Bytes& repetition = is_copied ? scratch_.kept_repetition : column.repetition;
        const size_t from = is_copied ? 0 : from_level;
        check_lists({leaf, definition.data + from, repetition.data + from, definition.size - from}, piece);
      }
      piece++;
    });
    return taken;
  }

  void merge_column(size_t place) {
    double began = cpu_now();
    const Leaf& leaf = leaves_[place];
    bool blooms = false, first = true;
    View key_values;
    each_chunk(place, [&](const File&, const Chunk& chunk, i64) {
      blooms |= chunk.has_bloom && options_.bloom == PM_BLOOM_BUILD && leaf.type != BOOLEAN;
      if (first) key_values = chunk.key_values;
      first = false;
      if (chunk.key_values != key_values) refuse(PM_DIFFERS, "a column chunk has other key-values");
    });
    WriterSettings settings = settings_;
    settings.copy &= !blooms && !reorders();
    ChunkWriter writer(leaf, settings, out_, scratch_, skimmed_);
    // times were decoded to see their order; where their pages can stay, they need not be encoded
    bool is_there = is_time(place) && !settings.copy;
    if (!is_there) {
      Taken taken = take_chunks(place, writer, is_time(place));  // times do not repeat
      if (taken == Taken::BEGIN_ANEW) taken = take_chunks(place, writer, true);
      is_there = taken == Taken::NOT_AT_ALL;
      check_skimmed();
    }
    Column& column = is_there ? time_column_ : column_;
    if (reorders()) column.reorder(times_.runs, static_cast<size_t>(rows_));
    BloomFilter bloom;
    if (blooms) {
      bool mapped = column.has_dictionary;
      const Bytes& plain = mapped ? column.dictionary.plain : column.plain;
      bloom.add(leaf, plain.data, mapped ? column.dictionary.count() : column.values);
    }
    double decoded = cpu_now();
    if (column.levels) writer.encode(column);
    chunks_.push_back(writer.finish());
    chunk_key_values_.push_back(key_values);
    ChunkInfo& chunk = chunks_.back();
    if (blooms) bloom.write(chunk.bloom);
    if (chunk.rows != rows_) refuse(PM_INTERNAL, "a column came out with another number of rows");
    result_.copied_bytes += chunk.copied_bytes;
    result_.copied_pages += chunk.copied_pages;
    result_.encoded_pages += chunk.encoded_pages;
    result_.decode_s += decoded - began;
    result_.verify_s += writer.verify_s;
    result_.encode_s += cpu_now() - decoded - writer.verify_s;
  }
};

}  // namespace

void merge_files(std::vector<File>& files, const pm_options& options, pm_result& result, i64& at) {
  Merge merge(files, options, result);
  try {
    merge.run();
  } catch (...) {
    at = merge.at;
    throw;
  }
}

}  // namespace pagemerge
