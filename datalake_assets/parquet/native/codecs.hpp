// Compression. Each library may be absent: files of its codec are refused then, but for pages that are only copied.
#pragma once

#include "repeats.hpp"

namespace pagemerge {

constexpr const char* NOT_WHOLE = "a page does not decompress";

u32 readable_codecs();
u32 writable_codecs();
inline bool can_read(int codec) { return codec >= 0 && codec < 32 && (readable_codecs() >> codec & 1); }

u32 crc32_of(const u8* data, size_t size);

class Codecs {
 public:
  Codecs() = default;
  Codecs(const Codecs&) = delete;
  Codecs& operator=(const Codecs&) = delete;
  ~Codecs();

  // Decompresses to exactly so many bytes.
  void decompress(int codec, const u8* from, size_t size, u8* to, size_t plain);
  // Compresses behind what is there.
  void compress(int codec, int level, const u8* from, size_t size, Bytes& to);
  // The same by Zstandard, where what repeats is known; false if it cannot be done.
  bool compress_repeats(int level, View from, const Numbers<Repeat>& repeats, Bytes& to);

 private:
  void* decompressor_ = nullptr;
  void* compressor_ = nullptr;
};

// Whether compressed values can be put behind others under one page header (see format.hpp); `elements` is the part
// of them that stays. Refuses what does not decompress by itself to exactly so many bytes, as far as a length says so.
bool joinable(int codec, View compressed, size_t plain, View& elements);
// What stands before the joined elements.
void put_joined_head(int codec, size_t plain, Bytes& to);

}  // namespace pagemerge
