#include "codecs.hpp"

#include <climits>

#include "snappy.hpp"

// The build says which libraries there are; without one, for a compiler's warnings, headers tell.
#ifndef PM_WITH_SNAPPY
#define PM_WITH_SNAPPY __has_include(<snappy-c.h>)
#define PM_WITH_ZSTD __has_include(<zstd.h>)
#define PM_WITH_ZSTD_SEQUENCES __has_include(<zstd.h>)
#define PM_WITH_ZLIB __has_include(<zlib.h>)
#define PM_WITH_LZ4 __has_include(<lz4.h>)
#define PM_WITH_BROTLI __has_include(<brotli/decode.h>)
#endif

#if PM_WITH_SNAPPY
#include <snappy-c.h>
#endif
#if PM_WITH_ZSTD
#define ZSTD_STATIC_LINKING_ONLY  // for ZSTD_compressSequences
#include <zstd.h>
#endif
// Of releases before, some encode no distance as "as before".
#if PM_WITH_ZSTD && PM_WITH_ZSTD_SEQUENCES && ZSTD_VERSION_NUMBER >= 10504 && defined(ZSTD_c_searchForExternalRepcodes)
#define PM_ENCODES_REPEATS 1
#else
#define PM_ENCODES_REPEATS 0
#endif
#if PM_WITH_ZLIB
#include <zlib.h>
#endif
#if PM_WITH_LZ4
#include <lz4.h>
#endif
#if PM_WITH_BROTLI
#include <brotli/decode.h>
#endif

namespace pagemerge {

u32 readable_codecs() {
  u32 codecs = 1u << UNCOMPRESSED;
#if PM_WITH_SNAPPY
  codecs |= 1u << SNAPPY;
#endif
#if PM_WITH_ZLIB
  codecs |= 1u << GZIP;
#endif
#if PM_WITH_BROTLI
  codecs |= 1u << BROTLI;
#endif
#if PM_WITH_ZSTD
  codecs |= 1u << ZSTD;
#endif
#if PM_WITH_LZ4
  codecs |= 1u << LZ4_RAW;
#endif
  return codecs;
}

u32 writable_codecs() { return readable_codecs() & (1u << UNCOMPRESSED | 1u << SNAPPY | 1u << ZSTD); }

#if PM_WITH_ZLIB
u32 crc32_of(const u8* data, size_t size) {
  return static_cast<u32>(::crc32(::crc32(0, nullptr, 0), data, static_cast<uInt>(size)));
}
#else
// Of the polynomial 0xEDB88320, as zlib's; a byte at a time, since pages with checksums are few.
u32 crc32_of(const u8* data, size_t size) {
  static const struct Table {
    u32 of[256];
    Table() {
      for (u32 i = 0; i < 256; i++) {
        u32 value = i;
        for (int bit = 0; bit < 8; bit++) value = value & 1 ? 0xEDB88320u ^ (value >> 1) : value >> 1;
        of[i] = value;
      }
    }
  } table;
  u32 crc = 0xFFFFFFFFu;
  for (size_t i = 0; i < size; i++) crc = table.of[(crc ^ data[i]) & 255] ^ (crc >> 8);
  return crc ^ 0xFFFFFFFFu;
}
#endif

namespace {

[[noreturn, maybe_unused]] void absent(const char* codec) {
  refuse(PM_NO_CODEC, std::string(codec) + " is not built in");
}

}  // namespace

Codecs::~Codecs() {
#if PM_WITH_ZSTD
  ZSTD_freeDCtx(static_cast<ZSTD_DCtx*>(decompressor_));
  ZSTD_freeCCtx(static_cast<ZSTD_CCtx*>(compressor_));
#endif
}

void Codecs::decompress(int codec, const u8* from, size_t size, u8* to, size_t plain) {
  switch (codec) {
    case UNCOMPRESSED:
      need(size == plain, "a page has another size than its header says");
      if (size) memcpy(to, from, size);
      return;
    case SNAPPY: {
#if PM_WITH_SNAPPY
      const char* source = reinterpret_cast<const char*>(from);
      size_t length;
      need(snappy_uncompressed_length(source, size, &length) == SNAPPY_OK && length == plain, NOT_WHOLE);
      need(snappy_uncompress(source, size, reinterpret_cast<char*>(to), &length) == SNAPPY_OK && length == plain,
           NOT_WHOLE);
      return;
#else
      absent("Snappy");
#endif
    }
    case ZSTD: {
#if PM_WITH_ZSTD
      if (!decompressor_ && !(decompressor_ = ZSTD_createDCtx())) throw std::bad_alloc();
      size_t length = ZSTD_decompressDCtx(static_cast<ZSTD_DCtx*>(decompressor_), to, plain, from, size);
      need(!ZSTD_isError(length) && length == plain, NOT_WHOLE);
      return;
#else
      absent("Zstandard");
#endif
    }
    case GZIP: {
#if PM_WITH_ZLIB
      z_stream stream{};
      if (inflateInit2(&stream, 15 + 32) != Z_OK) throw std::bad_alloc();
      stream.next_in = const_cast<u8*>(from);
      stream.avail_in = static_cast<uInt>(size);
      stream.next_out = to;
      stream.avail_out = static_cast<uInt>(plain);
      bool whole = inflate(&stream, Z_FINISH) == Z_STREAM_END && stream.total_out == plain;
      inflateEnd(&stream);
      need(whole, NOT_WHOLE);
      return;
#else
      absent("gzip");
#endif
    }
    case LZ4_RAW: {
#if PM_WITH_LZ4
      int length = LZ4_decompress_safe(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to),
                                       static_cast<int>(size), static_cast<int>(plain));
      need(length >= 0 && static_cast<size_t>(length) == plain, NOT_WHOLE);
      return;
#else
      absent("LZ4");
#endif
    }
    case BROTLI: {
#if PM_WITH_BROTLI
      size_t length = plain;
      need(BrotliDecoderDecompress(size, from, &length, to) == BROTLI_DECODER_RESULT_SUCCESS && length == plain,
           NOT_WHOLE);
      return;
#else
      absent("Brotli");
#endif
    }
    case LZO:
      refuse(PM_UNSUPPORTED, "it is compressed with LZO");
    case LZ4_HADOOP:
      refuse(PM_UNSUPPORTED, "it is compressed with LZ4 in Hadoop's framing");
    default:
      refuse(PM_UNSUPPORTED, "it is compressed with a codec that is not known");
  }
}

void Codecs::compress(int codec, [[maybe_unused]] int level, const u8* from, size_t size, Bytes& to) {
  switch (codec) {
    case UNCOMPRESSED:
      to.put(from, size);
      return;
    case SNAPPY: {
#if PM_WITH_SNAPPY
      size_t length = snappy_max_compressed_length(size);
      to.reserve(to.size + length);
      snappy_status status = snappy_compress(reinterpret_cast<const char*>(from), size,
                                             reinterpret_cast<char*>(to.data + to.size), &length);
      if (status != SNAPPY_OK) refuse(PM_INTERNAL, "Snappy failed");
      to.size += length;
      return;
#else
      absent("Snappy");
#endif
    }
    case ZSTD: {
#if PM_WITH_ZSTD
      if (!compressor_ && !(compressor_ = ZSTD_createCCtx())) throw std::bad_alloc();
      size_t room = ZSTD_compressBound(size);
      to.reserve(to.size + room);
      size_t length =
          ZSTD_compressCCtx(static_cast<ZSTD_CCtx*>(compressor_), to.data + to.size, room, from, size, level);
      if (ZSTD_isError(length)) refuse(PM_INTERNAL, "Zstandard failed");
      to.size += length;
      return;
#else
      absent("Zstandard");
#endif
    }
    default:
      refuse(PM_UNSUPPORTED, "outputs are not compressed with that codec");
  }
}

bool Codecs::compress_repeats([[maybe_unused]] int level, [[maybe_unused]] View from,
                              [[maybe_unused]] const Numbers<Repeat>& repeats, [[maybe_unused]] Bytes& to) {
#if PM_ENCODES_REPEATS
  // no release promises this function to the next one: not that which it was built for, the program does without
  if (ZSTD_versionNumber() != ZSTD_VERSION_NUMBER) return false;
  static_assert(sizeof(Repeat) == sizeof(ZSTD_Sequence) &&
                offsetof(Repeat, distance) == offsetof(ZSTD_Sequence, offset) &&
                offsetof(Repeat, literals) == offsetof(ZSTD_Sequence, litLength) &&
                offsetof(Repeat, length) == offsetof(ZSTD_Sequence, matchLength));
  if (!compressor_ && !(compressor_ = ZSTD_createCCtx())) throw std::bad_alloc();
  ZSTD_CCtx* context = static_cast<ZSTD_CCtx*>(compressor_);
  const std::pair<ZSTD_cParameter, int> parameters[] = {
      {ZSTD_c_compressionLevel, level},
      {ZSTD_c_minMatch, 3},  // room for as many as there may be
      {ZSTD_c_blockDelimiters, ZSTD_sf_explicitBlockDelimiters},
      {ZSTD_c_validateSequences, 1},
      {ZSTD_c_searchForExternalRepcodes, ZSTD_ps_enable},
      {ZSTD_c_stableInBuffer, 1},  // it takes no memory for copies
      {ZSTD_c_stableOutBuffer, 1},
  };
  ZSTD_CCtx_reset(context, ZSTD_reset_session_and_parameters);
  for (const auto& [parameter, value] : parameters) {
    if (ZSTD_isError(ZSTD_CCtx_setParameter(context, parameter, value))) return false;
  }
  size_t room = ZSTD_compressBound(from.size);
  to.reserve(to.size + room);
  const ZSTD_Sequence* sequences = reinterpret_cast<const ZSTD_Sequence*>(repeats.data());
  size_t length =
      ZSTD_compressSequences(context, to.data + to.size, room, sequences, repeats.size(), from.data, from.size);
  if (ZSTD_isError(length)) return false;
  to.size += length;
  return true;
#else
  return false;
#endif
}

bool joinable(int codec, View compressed, size_t plain, View& elements) {
  if (!plain && !compressed.size) {  // of nulls alone: nothing was compressed (parquet-mr)
    elements = {};
    return true;
  }
  switch (codec) {
    case UNCOMPRESSED:
      need(compressed.size == plain, "a page has another size than its header says");
      elements = compressed;
      return true;
    case SNAPPY:
      elements = elements_of(compressed, plain);
      return true;
#if PM_WITH_ZSTD
    case ZSTD: {
      // one frame that says its length: whoever looks for more frames finds the next page's
      if (ZSTD_findFrameCompressedSize(compressed.data, compressed.size) != compressed.size) return false;
      if (ZSTD_getFrameContentSize(compressed.data, compressed.size) != plain) return false;
      elements = compressed;
      return true;
    }
#endif
    default:
      return false;
  }
}

void put_joined_head(int codec, size_t plain, Bytes& to) {
  if (codec != SNAPPY) return;
  for (; plain > 127; plain >>= 7) to.put_byte(static_cast<u8>(plain & 127) | 128);
  to.put_byte(static_cast<u8>(plain));
}

}  // namespace pagemerge
