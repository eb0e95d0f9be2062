#include "spreading.hpp"

#include <algorithm>

namespace pagemerge {
namespace {

class Spread {
 public:
  Spread(View elements, size_t plain, const Numbers<Again>& again, Bytes& to)
      : at_(elements.data), end_(elements.end()), kept_(at_), plain_(plain), again_(again), to_(to) {}

  void run() {
    while (at_ < end_) {
      pass_unchanged();
      if (at_ < end_) change_one();
    }
    need(made_ == plain_, NOT_WHOLE);
    keep();
    put_again();
  }

 private:
  // So many bytes came again behind so many.
  struct Came {
    size_t behind, bytes;
  };

  const u8 *at_, *end_;
  const u8* kept_;  // what lies from here to `at_` stays, and was not written yet
  const size_t plain_;
  const Numbers<Again>& again_;
  Bytes& to_;
  size_t made_ = 0, place_ = 0;  // bytes of the page so far, and what came again
  Numbers<Came> came_;           // ascending, of each place all that came up to it

  // Where something comes again next.
  size_t next() const { return place_ < again_.size() ? again_[place_].behind : SIZE_MAX; }

  // Where something came again last.
  size_t last() const { return came_.size() ? came_[came_.size() - 1].behind : 0; }
  size_t came() const { return came_.size() ? came_[came_.size() - 1].bytes : 0; }

  // Elements that end before anything comes again, and refer to nothing before what came again last, nearly all.
  void pass_unchanged() {
    constexpr ptrdiff_t LONGEST = 61 + LONGEST_TAG;
    const size_t limit = std::min(next(), plain_), least = last();
    const u8* at = at_;
    size_t made = made_;
    while (end_ - at >= LONGEST) {
      const Tag& tag = TAGS.of[*at];
      const u64 distance = (load<u32>(at + 1) & tag.trailing) | static_cast<u64>(tag.high) << 8;
      const bool is_near = !tag.is_copy || distance - 1 < made - least;
      if (!tag.advance || tag.made > limit - made || !is_near) break;
      at += tag.advance;
      made += tag.made;
    }
    at_ = at;
    made_ = made;
  }

  void change_one() {
    const u8 *element = at_, *behind = at_;
    const size_t from = made_;
    size_t made = made_;
    need(pass_one(behind, end_, plain_, made), NOT_WHOLE);
    const bool is_copy = TAGS.of[*element].is_copy;
    const size_t distance = is_copy ? distance_of(element) : 0, size = made - from;
    if (made <= next() && from != next() && distance <= from - last()) {
      at_ = behind;
      made_ = made;
      return;
    }
    keep();
    const u8* bytes = behind - size;
    while (made_ < made) {
      put_again();
      const size_t some = std::min(made, next()) - made_;
      if (is_copy) {
        put_copies(distance, some);
      } else {
        put_literal(bytes + (made_ - from), some);
      }
      made_ += some;
    }
    kept_ = at_ = behind;
  }

  void keep() {
    to_.put(kept_, static_cast<size_t>(at_ - kept_));
    kept_ = at_;
  }

  // The first place of those that lie behind a byte.
  size_t place_behind(size_t byte) const {
    const Came* found = std::upper_bound(came_.data(), came_.data() + came_.size(), byte,
                                         [](size_t wanted, const Came& each) { return wanted < each.behind; });
    return static_cast<size_t>(found - came_.data());
  }

  // Where a byte of the page stands now, given the place behind it.
  size_t stands(size_t byte, size_t place) const { return byte + (place ? came_[place - 1].bytes : 0); }

  void put_again() {
    while (next() == made_) {
      const Again& each = again_[place_++];
      const size_t distance = made_ + came() - stands(each.from, place_behind(each.from));
      for (size_t left = each.size; left;) {
        const size_t some = std::min(left, LONGEST_COPY);
        put(distance, some);
        left -= some;
      }
      if (came_.size() && last() == made_) {
        came_[came_.size() - 1].bytes += each.size;
      } else {
        came_.push({made_, came() + each.size});
      }
    }
  }

  // Copies that are cut where something came between what they refer to.
  void put_copies(size_t distance, size_t size) {
    for (size_t done = 0; done < size;) {
      const size_t from = made_ + done - distance, place = place_behind(from), left = size - done;
      const size_t some = place < came_.size() ? std::min(left, came_[place].behind - from) : left;
      put(made_ + done + came() - stands(from, place), some);
      done += some;
    }
  }

  void put(size_t distance, size_t size) {
    to_.reserve(to_.size + LONGEST_TAG);
    to_.size += put_copy(distance, size, to_.data + to_.size);
  }

  void put_literal(const u8* bytes, size_t size) {
    to_.reserve(to_.size + LONGEST_TAG + size);
    to_.size += put_literal_tag(size, to_.data + to_.size);
    to_.put(bytes, size);
  }
};

}  // namespace

size_t spread(View packed, size_t plain, const Numbers<Again>& again, Bytes& to) {
  size_t whole = plain;
  for (size_t i = 0; i < again.size(); i++) whole += again[i].size;
  to.clear();
  to.reserve(packed.size + packed.size / 8 + again.size() * LONGEST_TAG);
  put_joined_head(SNAPPY, whole, to);
  const size_t head = to.size;
  Spread(elements_of(packed, plain), plain, again, to).run();
  return head;
}

}  // namespace pagemerge
