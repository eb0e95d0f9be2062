#include "unpacking.hpp"

#include <climits>

#include "decoding.hpp"

// The build says which libraries there are. For a compiler's warnings, which have no build, all are.
#ifndef PC_WITH_SNAPPY
#define PC_WITH_SNAPPY 1
#endif
#ifndef PC_WITH_ZSTD
#define PC_WITH_ZSTD 1
#endif
#ifndef PC_WITH_ZLIB
#define PC_WITH_ZLIB 1
#endif
#ifndef PC_WITH_LZ4
#define PC_WITH_LZ4 1
#endif
#ifndef PC_WITH_BROTLI
#define PC_WITH_BROTLI 1
#endif

#if PC_WITH_SNAPPY
#include <snappy-c.h>
#endif
#if PC_WITH_ZSTD
#include <zstd.h>
#endif
#if PC_WITH_ZLIB
#include <zlib.h>
#endif
#if PC_WITH_LZ4
#include <lz4.h>
#endif
#if PC_WITH_BROTLI
#include <brotli/decode.h>
#endif

namespace pagecompare {

namespace {

enum Codec { NONE = 0, SNAPPY = 1, GZIP = 2, BROTLI = 4, ZSTD = 6, LZ4_RAW = 7 };

#if PC_WITH_ZLIB
// One gzip member, or several, one after the other.
bool inflated(Span packed, uint8_t* to, uint64_t size) {
  if (packed.size > UINT_MAX || size > UINT_MAX) return false;
  z_stream stream{};
  if (inflateInit2(&stream, 15 + 32) != Z_OK) return false;
  stream.next_in = const_cast<Bytef*>(packed.data);
  stream.avail_in = static_cast<uInt>(packed.size);
  stream.next_out = to;
  stream.avail_out = static_cast<uInt>(size);
  int code = inflate(&stream, Z_FINISH);
  while (code == Z_STREAM_END && stream.avail_in && stream.avail_out) {
    if (inflateReset(&stream) != Z_OK) break;
    code = inflate(&stream, Z_FINISH);
  }
  bool is_whole = code == Z_STREAM_END && !stream.avail_in && !stream.avail_out;
  inflateEnd(&stream);
  return is_whole;
}
#endif

// Whether all frames say how many bytes they make, and that is so many together: then whoever decompresses them finds
// that they do, or refuses them (RFC 8878, 3.1.1.1.4).
bool states_size([[maybe_unused]] int codec, [[maybe_unused]] Span packed, [[maybe_unused]] uint64_t size) {
#if PC_WITH_ZSTD
  if (codec != ZSTD) return false;
  uint64_t made = 0;
  while (packed.size) {
    if (packed.size < 4 || number32(packed.data) != ZSTD_MAGICNUMBER) return false;
    const uint64_t some = ZSTD_getFrameContentSize(packed.data, packed.size);  // above any size where it is not stated
    const size_t length = ZSTD_findFrameCompressedSize(packed.data, packed.size);
    if (some > size - made || !length || length > packed.size) return false;  // errors are above any size, too
    made += some;
    packed = packed.from(length);
  }
  return made == size;
#else
  return false;
#endif
}

}  // namespace

uint32_t unpackable() {
  return 1u << NONE | (PC_WITH_SNAPPY ? 1u << SNAPPY : 0) | (PC_WITH_ZLIB ? 1u << GZIP : 0) |
         (PC_WITH_BROTLI ? 1u << BROTLI : 0) | (PC_WITH_ZSTD ? 1u << ZSTD : 0) | (PC_WITH_LZ4 ? 1u << LZ4_RAW : 0);
}

bool is_unpackable(int codec) { return codec >= NONE && codec <= LZ4_RAW && unpackable() >> codec & 1; }

uint32_t checksum_of(Span bytes) {
#if PC_WITH_ZLIB
  uLong sum = crc32(0, nullptr, 0);
  for (uint64_t at = 0; at < bytes.size; at += UINT_MAX) {
    uint64_t some = bytes.size - at < UINT_MAX ? bytes.size - at : UINT_MAX;
    sum = crc32(sum, bytes.data + at, static_cast<uInt>(some));
  }
  return static_cast<uint32_t>(sum);
#else
  (void)bytes;
  throw Unclear{"checksums of pages cannot be compared: zlib was not there when this was built"};
#endif
}

bool is_joinable(int codec) { return (codec == SNAPPY || codec == ZSTD) && unpackable() >> codec & 1; }

Span parts_of(int codec, Span packed, uint64_t size) {
  if (codec != SNAPPY) return packed;
  uint64_t place = 0;
  if (varint_at(packed, place) != size) throw Unclear{"a page does not decompress to what its head says"};
  return packed.from(place);
}

Unpacker::~Unpacker() {
#if PC_WITH_ZSTD
  ZSTD_freeDCtx(static_cast<ZSTD_DCtx*>(zstd_));
#endif
}

void Unpacker::unpack(int codec, Span packed, uint8_t* to, uint64_t size, bool is_vouched_for) {
  if (!is_unpackable(codec)) throw Unclear{"its codec cannot be read here"};
  const bool asks = other_ && !is_vouched_for && codec != NONE && codec != SNAPPY;
  const bool is_made = !asks || !states_size(codec, packed, size);
  if (is_made) unpack_here(codec, packed, to, size);
  if (asks && !other_(codec, packed.data, static_cast<int64_t>(packed.size), to, static_cast<int64_t>(size), is_made))
    throw Unclear{"another library makes something else of a compressed page"};
}

void Unpacker::unpack_here(int codec, Span packed, uint8_t* to, uint64_t size) {
  bool is_whole = false;
  [[maybe_unused]] const char* from = reinterpret_cast<const char*>(packed.data);
  [[maybe_unused]] char* target = reinterpret_cast<char*>(to);
  switch (codec) {
    case NONE:
      is_whole = packed.size == size;
      if (is_whole && size) memcpy(to, packed.data, size);
      break;
#if PC_WITH_SNAPPY
    case SNAPPY: {
      size_t found = 0;
      is_whole = snappy_uncompressed_length(from, packed.size, &found) == SNAPPY_OK && found == size &&
                 snappy_uncompress(from, packed.size, target, &found) == SNAPPY_OK && found == size;
      break;
    }
#endif
#if PC_WITH_ZLIB
    case GZIP:
      is_whole = inflated(packed, to, size);
      break;
#endif
#if PC_WITH_BROTLI
    case BROTLI: {
      size_t found = size;
      is_whole = BrotliDecoderDecompress(packed.size, packed.data, &found, to) == BROTLI_DECODER_RESULT_SUCCESS &&
                 found == size;
      break;
    }
#endif
#if PC_WITH_ZSTD
    case ZSTD:
      if (!zstd_) zstd_ = ZSTD_createDCtx();
      is_whole =
          zstd_ && ZSTD_decompressDCtx(static_cast<ZSTD_DCtx*>(zstd_), to, size, packed.data, packed.size) == size;
      break;
#endif
#if PC_WITH_LZ4
    case LZ4_RAW:
      is_whole = packed.size <= INT_MAX && size <= INT_MAX &&
                 LZ4_decompress_safe(from, target, static_cast<int>(packed.size), static_cast<int>(size)) ==
                     static_cast<int>(size);
      break;
#endif
    default:
      break;
  }
  if (!is_whole) throw Unclear{"a page does not decompress to what its head says"};
}

}  // namespace pagecompare
