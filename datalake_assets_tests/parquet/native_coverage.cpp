// Which edges of a library an input reaches, and what the kernel's codecs make of a page: linked into the build that is
// fuzzed, compiled without instrumentation.
#include <cstdint>
#include <cstring>

#if __has_include("codecs.hpp")  // the kernel's
#include "codecs.hpp"
#endif

namespace {

constexpr uint32_t SIZE = 1 << 16;
uint8_t hits[SIZE], seen[SIZE];
thread_local uintptr_t last;

// Counts of hits as AFL buckets them: once, twice, … , very often.
uint8_t bucket(uint8_t count) {
  if (count <= 3) return static_cast<uint8_t>(1 << (count - 1));
  return count <= 7 ? 8 : count <= 15 ? 16 : count <= 31 ? 32 : count <= 127 ? 64 : 128;
}

}  // namespace

extern "C" {

void __sanitizer_cov_trace_pc() {
  uintptr_t here = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  uint8_t& count = hits[(here ^ (last >> 1)) % SIZE];
  if (count < 255) count++;
  last = here;
}

// Edges that were new since the last call; forgets what was hit.
__attribute__((visibility("default"))) uint32_t pm_new_edges() {
  uint32_t fresh = 0;
  for (uint32_t i = 0; i < SIZE; i += 8) {
    uint64_t eight;
    memcpy(&eight, hits + i, 8);
    if (!eight) continue;
    for (uint32_t j = i; j < i + 8; j++) {
      if (!hits[j]) continue;
      uint8_t bits = bucket(hits[j]);
      fresh += (seen[j] | bits) != seen[j];
      seen[j] |= bits;
      hits[j] = 0;
    }
  }
  last = 0;
  return fresh;
}

#if __has_include("codecs.hpp")
// What the kernel's own libraries make of a page: 1 if they decompress it to exactly so many bytes.
__attribute__((visibility("default"))) int pm_decompresses(int codec, const uint8_t* from, uint64_t size, uint8_t* to,
                                                           uint64_t plain) {
  try {
    pagemerge::Codecs().decompress(codec, from, size, to, plain);
    return 1;
  } catch (const pagemerge::Refusal&) {
    return 0;
  }
}
#endif

}  // extern "C"
