// Column chunks that are to be copied as they are: whether their pages are what the metadata says, page by page.
#include "walking.hpp"

#include <algorithm>

namespace pagemerge {
namespace {

// Of a page's header, at first.
constexpr size_t HEADER_BYTES = 256;

// Where a data page lies.
struct PagePlace {
  i64 offset, bytes;
};

// Bytes of a dictionary's value; 0 where each has its own.
size_t entry_bytes(const Leaf& leaf) { return leaf.type == BOOLEAN ? 0 : leaf.width(); }

void walk_dictionary(const PageHeader& header, const Chunk& chunk, const Leaf& leaf, i64 offset) {
  need(chunk.has_dictionary() && offset == chunk.dictionary_offset, "its dictionary is not where its metadata says");
  need(header.encoding == PLAIN || header.encoding == PLAIN_DICTIONARY, "its dictionary is not PLAIN");
  i64 width = static_cast<i64>(entry_bytes(leaf));
  need(width ? header.values * width == header.plain_bytes : header.values * 4 <= header.plain_bytes,
       "its dictionary has another size than its entries");
}

// The header that begins at `offset`, and its length. Headers are short, unless they hold statistics.
PageHeader read_header(const Fetch& fetch, size_t offset, size_t left, size_t& length) {
  for (size_t some = HEADER_BYTES;; some *= 16) {
    View window = fetch(offset, std::min(some, left));
    ThriftReader reader{window.data, window.end()};
    try {
      PageHeader header = parse_header(reader);
      length = static_cast<size_t>(reader.at - window.data);
      return header;
    } catch (const Refusal&) {  // it may go on behind the window
      if (some >= left) throw;
    }
  }
}

std::vector<PagePlace> walk_chunk(const Fetch& fetch, const Chunk& chunk, const Leaf& leaf, i64 rows,
                                  PageCount& count) {
  size_t at = static_cast<size_t>(chunk.start()), end = at + static_cast<size_t>(chunk.bytes);
  std::vector<PagePlace> pages;
  i64 values = 0, page_rows = 0, plain = 0;
  bool states_rows = true, has_dictionary = false;
  while (at < end) {
    size_t head, offset = at;
    PageHeader header = read_header(fetch, at, end - at, head);
    size_t bytes = static_cast<size_t>(header.bytes);
    need(bytes <= end - at - head, "a page is longer than its column chunk");
    if (header.has_crc) {
      View body = fetch(at + head, bytes);
      need(crc32_of(body.data, body.size) == header.crc, "a page's checksum is wrong");
    }
    at += head + bytes;
    plain += static_cast<i64>(head) + header.plain_bytes;
    count.pages++;
    count.checksums += header.has_crc;
    if (header.type == DICTIONARY_PAGE) {
      need(!has_dictionary && pages.empty(), "its dictionary is not its first page, or not the only one");
      has_dictionary = true;
      walk_dictionary(header, chunk, leaf, static_cast<i64>(offset));
      continue;
    }
    need(header.is_data(), "it has a page of unknown type");
    bool indexed = header.encoding == PLAIN_DICTIONARY || header.encoding == RLE_DICTIONARY;
    need(!indexed || has_dictionary, "a page lacks its dictionary");
    if (budget) budget->take(sizeof(PagePlace));
    pages.push_back({static_cast<i64>(offset), static_cast<i64>(at - offset)});
    values += header.values;
    states_rows &= header.type == DATA_PAGE_V2;
    page_rows += std::max<i64>(header.rows, 0);
  }
  need(values == chunk.values, "its pages hold another number of values than its metadata says");
  need(plain == chunk.plain_bytes, "its pages take other bytes than its metadata says");
  need(!states_rows || page_rows == rows, "its pages hold another number of rows than its row group");
  need(!pages.empty() && pages[0].offset == chunk.data_offset, "its first page is not where its metadata says");
  return pages;
}

// Readers that go by an offset index would miss rows if it did not name each data page, as it is.
void walk_offset_index(const Fetch& fetch, const Chunk& chunk, i64 file_bytes, const std::vector<PagePlace>& pages) {
  if (!chunk.offset_index && !chunk.offset_index_bytes) return;
  need(chunk.offset_index >= 4 && chunk.offset_index_bytes > 0 &&
           chunk.offset_index <= file_bytes - chunk.offset_index_bytes,
       "its offset index lies outside the file");
  View index = fetch(static_cast<size_t>(chunk.offset_index), static_cast<size_t>(chunk.offset_index_bytes));
  ThriftReader reader{index.data, index.end()};
  size_t named = 0;
  i64 row_before = -1;
  constexpr const char* OTHER = "its offset index is not that of its pages";
  reader.fields([&](int field, int type) {
    if (field != 1 || type != T_LIST) return false;
    int element;
    u64 locations = reader.list(element);
    need(!locations || element == T_STRUCT, OTHER);
    for (; locations; locations--) {
      i64 offset = -1, bytes = -1, row = -1;
      reader.fields([&](int inner, int kind) {
        if (inner < 1 || inner > 3) return false;
        need(kind == (inner == 2 ? T_I32 : T_I64), OTHER);
        (inner == 1 ? offset : inner == 2 ? bytes : row) = reader.zigzag();
        return true;
      });
      need(named < pages.size() && pages[named].offset == offset && pages[named].bytes == bytes, OTHER);
      need(named ? row > row_before : row == 0, OTHER);
      row_before = row;
      named++;
    }
    return true;
  });
  need(named == pages.size() && reader.at == reader.end, OTHER);
}

}  // namespace

void walk_pages(const Footer& footer, size_t file_bytes, const Fetch& fetch, PageCount& count) {
  std::vector<std::pair<i64, i64>> places;
  for (const RowGroup& group : footer.groups) {
    for (size_t i = 0; i < group.chunks.size() && group.rows; i++) {
      const Chunk& chunk = group.chunks[i];
      if (budget) budget->take(sizeof places[0]);
      places.push_back({chunk.start(), chunk.start() + chunk.bytes});
      std::vector<PagePlace> pages = walk_chunk(fetch, chunk, footer.leaves[i], group.rows, count);
      walk_offset_index(fetch, chunk, static_cast<i64>(file_bytes), pages);
      if (budget) budget->give(pages.size() * sizeof(PagePlace));
    }
  }
  std::sort(places.begin(), places.end());
  for (size_t i = 1; i < places.size(); i++)
    need(places[i - 1].second <= places[i].first, "a column chunk begins before the end of another");
}

}  // namespace pagemerge
