// What everything here stands on: spans that know their end, memory that is counted, and the two ways to give up.
#ifndef PAGECOMPARE_BYTES_HPP
#define PAGECOMPARE_BYTES_HPP

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

namespace pagecompare {

// Thrown where this reader does not know what a file means, or where it means nothing.
struct Unclear {
  std::string why;
};

// Thrown where the output is not what its inputs are.
struct Difference {
  std::string why;
};

struct Span {
  const uint8_t* data = nullptr;
  uint64_t size = 0;

  // A part of it; a part that reaches beyond it does not exist.
  Span part(uint64_t offset, uint64_t length) const {
    if (offset > size || length > size - offset) throw Unclear{"something lies beyond the end of what holds it"};
    return {data + offset, length};
  }

  Span from(uint64_t offset) const { return part(offset, offset > size ? 0 : size - offset); }

  bool same(Span other) const { return size == other.size && (!size || !memcmp(data, other.data, size)); }
};

inline uint32_t number32(const uint8_t* at) {
  return at[0] | uint32_t(at[1]) << 8 | uint32_t(at[2]) << 16 | uint32_t(at[3]) << 24;
}

// What may still be allocated.
class Allowance {
 public:
  explicit Allowance(uint64_t bytes) : most_(bytes) {}

  void take(uint64_t bytes) {
    if (bytes > most_ - used_) throw Unclear{"it takes more memory than is allowed"};
    used_ += bytes;
    if (used_ > peak_) peak_ = used_;
  }

  void give(uint64_t bytes) { used_ -= bytes; }

  uint64_t peak() const { return peak_; }

 private:
  uint64_t most_, used_ = 0, peak_ = 0;
};

// An array that is used again and again; what it held is lost when it grows.
template <typename T>
class Array {
 public:
  explicit Array(Allowance& allowance) : allowance_(allowance) {}
  ~Array() { allowance_.give(count_ * sizeof(T)); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  // Room for so many, of no certain content.
  T* room(uint64_t count) {
    if (count > count_) {
      allowance_.give(count_ * sizeof(T));
      held_.reset();
      count_ = 0;
      if (count > (uint64_t(1) << 40)) throw Unclear{"it takes more memory than is allowed"};
      allowance_.take(count * sizeof(T));
      count_ = count;
      held_.reset(new T[count]);
    }
    return held_.get();
  }

  T* get() const { return held_.get(); }

 private:
  Allowance& allowance_;
  std::unique_ptr<T[]> held_;
  uint64_t count_ = 0;
};

}  // namespace pagecompare

#endif
