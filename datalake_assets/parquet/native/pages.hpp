// Reading the pages of a column chunk down to levels, indices and values.
#pragma once

#include "codecs.hpp"
#include "encodings.hpp"

namespace pagemerge {

// A PageHeader (parquet.thrift).
struct PageHeader {
  int type = -1;
  i64 plain_bytes = -1, bytes = -1;
  bool has_crc = false;
  u32 crc = 0;
  i64 values = -1;
  int encoding = -1, definition_encoding = RLE, repetition_encoding = RLE;
  i64 definition_bytes = 0, repetition_bytes = 0, nulls = -1, rows = -1;  // of version 2
  bool compressed = true;

  bool is_data() const { return type == DATA_PAGE || type == DATA_PAGE_V2; }
};

// Reads a header.
PageHeader parse_header(ThriftReader& reader);

// Reads a header and returns it with its body, both within the chunk; checks the body's checksum if it has one.
PageHeader next_page(ThriftReader& chunk, View& body);

// A data page, decoded as far as it has to be.
struct DataPage {
  size_t levels = 0, values = 0;
  const u8 *definition = nullptr, *repetition = nullptr;  // null where the leaf has none
  int encoding = PLAIN;                                   // RLE_DICTIONARY: `at` to `end` are indices
  const u8 *at = nullptr, *end = nullptr;
};

struct Scratch {
  Bytes page, levels, dictionary, kept, kept_repetition, check, used, out_page, packed;
  Numbers<u32> indices, ends, map;
  Numbers<Repeat> repeats;
  DecodeScratch decode;
  Codecs codecs;
};

// Repetition levels of a page, which begins a column chunk or does not.
void decode_repetition(const Leaf& leaf, const u8* at, const u8* end, size_t count, bool first, u8* out);

// Levels of a page: decodes them and counts the values that exist.
size_t decode_definition(const Leaf& leaf, const u8* at, const u8* end, size_t count, u8* out);

// Decodes the levels of a data page, and decompresses its values into `scratch.page`.
DataPage open_page(const PageHeader& header, View body, const Chunk& chunk, const Leaf& leaf, bool first,
                   Scratch& scratch);

// Decompresses a dictionary page behind `to`; returns the number of entries. `scratch.ends` says where byte arrays end.
size_t open_dictionary(const PageHeader& header, View body, const Chunk& chunk, const Leaf& leaf, Bytes& to,
                       Scratch& scratch);

// Decodes indices into `scratch.indices`, each below `entries`.
void decode_dictionary_indices(const DataPage& page, const Chunk& chunk, size_t entries, Scratch& scratch);

// Walks a chunk's pages: calls dictionary(header, body) at most once, before the first data page, and
// page(header, body, first) for each data page; checks that together they are the chunk's values, to its last byte.
template <class OnDictionary, class OnPage>
void each_page(View file, const Chunk& chunk, OnDictionary dictionary, OnPage page) {
  ThriftReader reader{file.data + chunk.start(), file.data + chunk.start() + chunk.bytes};
  i64 seen = 0;
  bool has_dictionary = false, first = true;
  while (seen < chunk.values) {
    View body;
    PageHeader header = next_page(reader, body);
    if (header.type == INDEX_PAGE) continue;
    if (header.type == DICTIONARY_PAGE) {
      need(!has_dictionary && first, "a dictionary page is out of place");
      has_dictionary = true;
      dictionary(header, body);
      continue;
    }
    need(header.is_data(), "it has a page of unknown type");
    need(header.values <= chunk.values - seen, "its pages have more values than their column chunk");
    bool indexed = header.encoding == PLAIN_DICTIONARY || header.encoding == RLE_DICTIONARY;
    need(!indexed || has_dictionary, "a page lacks its dictionary");
    page(header, body, first);
    first = false;
    seen += header.values;
  }
  need(reader.at == reader.end, "more follows the last page of a column chunk");
}

}  // namespace pagemerge
