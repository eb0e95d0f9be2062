// Decompression, by the libraries that there were when this was built.
#ifndef PAGECOMPARE_UNPACKING_HPP
#define PAGECOMPARE_UNPACKING_HPP

#include "bytes.hpp"
#include "pagecompare.h"

namespace pagecompare {

// Codecs that are there, a bit for each of Parquet's numbers.
uint32_t unpackable();

// Whether pages of a codec can be; the number may be any.
bool is_unpackable(int codec);

// CRC-32 as gzip has it; needs zlib.
uint32_t checksum_of(Span bytes);

// Whether what is compressed in parts, each by itself, decompresses to the same where the parts follow each other.
bool is_joinable(int codec);

// Those parts of what decompresses to `size` bytes: all but the length that Snappy has in front.
Span parts_of(int codec, Span packed, uint64_t size);

// Decompresses pages; what libraries allocate for it is kept for the next one.
class Unpacker {
 public:
  // `other` is asked of bytes that nobody vouches for, unless it is null.
  explicit Unpacker(pc_unpack other) : other_(other) {}
  ~Unpacker();
  Unpacker(const Unpacker&) = delete;
  Unpacker& operator=(const Unpacker&) = delete;

  // Fills exactly `size` bytes.
  void unpack(int codec, Span packed, uint8_t* to, uint64_t size, bool is_vouched_for);

 private:
  void unpack_here(int codec, Span packed, uint8_t* to, uint64_t size);

  pc_unpack other_;
  void* zstd_ = nullptr;
};

}  // namespace pagecompare

#endif
