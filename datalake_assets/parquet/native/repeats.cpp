#include "repeats.hpp"

#include <algorithm>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace pagemerge {
namespace {

constexpr size_t BLOCK_BYTES = 128 << 10;  // of Zstandard's, at the most (RFC 8878, 3.1.1.2.4)
// Bytes that have to be the same. A distance that is always the same costs next to nothing, and is that of numbers.
constexpr unsigned LEAST_OF_NUMBERS = 3, LEAST_OF_TEXTS = 4;
constexpr unsigned AT_ONCE = 64;

// Which of so many bytes are the same, a bit for each.
u64 alike_bytes(const u8* one, const u8* other) {
  u64 alike = 0;
#ifdef __SSE2__
  for (unsigned i = 0; i < AT_ONCE; i += 16) {
    const __m128i same = _mm_cmpeq_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(one + i)),
                                        _mm_loadu_si128(reinterpret_cast<const __m128i*>(other + i)));
    alike |= static_cast<u64>(static_cast<u32>(_mm_movemask_epi8(same))) << i;
  }
#else
  for (unsigned i = 0; i < AT_ONCE; i++) alike |= static_cast<u64>(one[i] == other[i]) << i;
#endif
  return alike;
}

unsigned lowest(u64 bits) { return static_cast<unsigned>(__builtin_ctzll(bits)); }

class Finder {
 public:
  Finder(View page, Numbers<Repeat>& found) : end_(page.end()), anchor_(page.data), block_(page.data), found_(found) {
    make_room();
  }

  void numbers(const u8* at, size_t width) {
    at += std::min(width, left(at));  // there is none before the first
    while (true) {
      const u8* to = left(block_) > BLOCK_BYTES ? block_ + BLOCK_BYTES : end_;
      look<LEAST_OF_NUMBERS>(at, to, width);
      end_block(to);
      if (to == end_) return;
      at = to;
    }
  }

  bool texts(const u8* at) {
    size_t before = 0;
    while (at < end_) {
      if (left(at) < 4) return false;
      const size_t size = 4 + static_cast<size_t>(load<u32>(at));
      if (size > left(at) || size > BLOCK_BYTES) return false;
      const u8* to = at + size;
      if (static_cast<size_t>(to - block_) > BLOCK_BYTES) end_block(at);
      if (static_cast<size_t>(to - block_) > BLOCK_BYTES) return false;  // levels take more than a block
      if (before) {
        const size_t common = std::min(size, before);
        look<LEAST_OF_TEXTS>(at, at + common, before);
        if (size != before) look<LEAST_OF_TEXTS>(std::max(anchor_, to - common), to, size);
      }
      before = size;
      at = to;
    }
    end_block(end_);
    return true;
  }

 private:
  size_t left(const u8* at) const { return static_cast<size_t>(end_ - at); }

  // Runs of bytes that are those at a distance before them, so many at least.
  template <unsigned Least>
  void look(const u8* at, const u8* to, size_t distance) {
    while (at < to) {
      u64 alike = alike_bytes(at, at - distance);
      const size_t some = static_cast<size_t>(to - at);
      if (some < AT_ONCE) alike &= (u64{1} << some) - 1;
      u64 begins = alike & alike >> 1 & alike >> 2;  // a run that is long enough
      if (Least > 3) begins &= alike >> 3;
      // runs that begin at the end are looked at with what follows
      unsigned done = some < AT_ONCE ? static_cast<unsigned>(some) : AT_ONCE - (Least - 1);
      while (begins) {
        const unsigned from = lowest(begins);
        const u64 unlike = ~alike >> from;
        const unsigned end = unlike ? from + lowest(unlike) : AT_ONCE;
        if (end == AT_ONCE) {
          const u8* stop = end_of_run(at + end, to, distance);
          repeat(at + from, stop, distance);
          done = static_cast<unsigned>(stop - at);
          break;
        }
        repeat(at + from, at + end, distance);
        begins &= ~u64{0} << end;
        done = std::max(done, end);
      }
      at += done;
    }
  }

  static const u8* end_of_run(const u8* at, const u8* to, size_t distance) {
    while (at < to) {
      const u64 unlike = load<u64>(at) ^ load<u64>(at - distance);
      if (unlike) {
        at += lowest(unlike) >> 3;
        break;
      }
      at += 8;
    }
    return std::min(at, to);
  }

  void repeat(const u8* from, const u8* to, size_t distance) {
    const u32 literals = static_cast<u32>(from - anchor_), length = static_cast<u32>(to - from);
    anchor_ = to;
    if (!literals && from != block_ && next_[-1].distance == distance) {
      next_[-1].length += length;
    } else {
      *next_++ = {static_cast<u32>(distance), literals, length, 0};
    }
  }

  void end_block(const u8* at) {
    *next_++ = {0, static_cast<u32>(at - anchor_), 0, 0};
    count_ = static_cast<size_t>(next_ - found_.data());
    anchor_ = block_ = at;
    make_room();
  }

  // For the repeats of a block, and its end.
  void make_room() {
    found_.resize(count_ + std::min(BLOCK_BYTES, left(block_)) / LEAST_OF_NUMBERS + 2);
    next_ = found_.data() + count_;
    found_.resize(count_);
  }

  const u8 *end_, *anchor_, *block_;  // up to where repeats were found; where the present block begins
  Numbers<Repeat>& found_;
  size_t count_ = 0;  // of blocks that ended
  Repeat* next_ = nullptr;
};

}  // namespace

bool find_repeats(View page, size_t values_at, size_t width, Numbers<Repeat>& found) {
  Finder finder(page, found);
  if (!width) return finder.texts(page.data + values_at);
  finder.numbers(page.data + values_at, width);
  return true;
}

size_t end_of_values(View page, size_t values_at, size_t width, size_t bytes) {
  if (page.size <= bytes) return page.size;
  if (bytes < values_at) return 0;
  if (width) return values_at + (bytes - values_at) / width * width;
  size_t at = values_at;
  while (page.size - at >= 4) {
    const size_t size = 4 + static_cast<size_t>(load<u32>(page.data + at));
    if (size > page.size - at || size > bytes - at) break;
    at += size;
  }
  return at;
}

}  // namespace pagemerge
