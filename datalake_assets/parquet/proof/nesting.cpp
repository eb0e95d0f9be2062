#include "nesting.hpp"

namespace pagecompare {

namespace {

// A Mersenne prime, and two numbers below it that were drawn.
constexpr uint64_t PRIME = (uint64_t(1) << 61) - 1;
constexpr uint64_t BASE = 0x0f3a5c917d24e6b9, OTHER_BASE = 0x16b85e03a9c7f241;
// Repetition levels below leave a word of four symbols below the prime.
constexpr uint32_t MOST_REPETITION = 31;

// Up to the prime, and by one more.
uint64_t times_plus(uint64_t one, uint64_t other, uint64_t more) {
  const unsigned __int128 product = static_cast<unsigned __int128>(one) * other + more;
  const uint64_t sum = (static_cast<uint64_t>(product) & PRIME) + static_cast<uint64_t>(product >> 61);
  return (sum & PRIME) + (sum >> 61);
}

uint64_t reduced(uint64_t number) { return number >= PRIME ? number - PRIME : number; }

bool same(const Node& one, const Node& other) {
  return one.definition == other.definition && one.repetition == other.repetition;
}

}  // namespace

void Trace::begin(const Node& group, uint32_t max_repetition) {
  group_ = group;
  is_whole_ = max_repetition <= group.repetition;
  digest_ = {};
  held_ = 0;
}

uint32_t Trace::symbols(const uint8_t* definitions, const uint8_t* repetitions, uint32_t count, uint16_t* to) const {
  const uint8_t most = static_cast<uint8_t>(group_.definition), deepest = static_cast<uint8_t>(group_.repetition);
  if (!repetitions) {
    for (uint32_t i = 0; i < count; i++) to[i] = definitions[i] < most ? definitions[i] : most;
    return count;
  }
  if (is_whole_) {
    for (uint32_t i = 0; i < count; i++)
      to[i] = static_cast<uint16_t>(repetitions[i] << 8 | (definitions[i] < most ? definitions[i] : most));
    return count;
  }
  uint32_t made = 0;
  for (uint32_t i = 0; i < count; i++) {
    to[made] = static_cast<uint16_t>(repetitions[i] << 8 | (definitions[i] < most ? definitions[i] : most));
    made += repetitions[i] <= deepest;  // else an entry of a list within the group
  }
  return made;
}

void Trace::words(uint32_t count) {
  uint64_t one = digest_.one, other = digest_.other;
  for (uint32_t i = 0; i < count; i++) {
    uint64_t word;
    memcpy(&word, symbols_ + i * PER_WORD, sizeof word);
    one = times_plus(one, BASE, word);
    other = times_plus(other, OTHER_BASE, word);
  }
  digest_.one = one;
  digest_.other = other;
}

void Trace::add(const uint8_t* definitions, const uint8_t* repetitions, uint32_t count) {
  for (uint32_t done = 0; done < count;) {
    const uint32_t some = count - done < AT_ONCE ? count - done : AT_ONCE;
    const uint32_t made =
        symbols(definitions + done, repetitions ? repetitions + done : nullptr, some, symbols_ + held_);
    const uint32_t there = held_ + made;
    words(there / PER_WORD);
    held_ = there % PER_WORD;
    memmove(symbols_, symbols_ + there - held_, held_ * sizeof *symbols_);
    digest_.count += made;
    done += some;
  }
}

Digest Trace::end() {
  memset(symbols_ + held_, 0, (PER_WORD - held_) * sizeof *symbols_);
  if (held_) words(1);
  const Digest found{reduced(digest_.one), reduced(digest_.other), digest_.count};
  digest_ = {};
  held_ = 0;
  return found;
}

Coherence::Coherence(const Footer& footer, size_t chunks, Allowance& allowance)
    : footer_(footer), chunks_(chunks), last_(allowance) {}

bool Coherence::begin(size_t leaf) {
  if (footer_.oddity) throw Unclear{footer_.oddity};
  nesting_ = &footer_.nesting[leaf];
  before_ = 0;
  with_last_ = nesting_->shared;
  with_next_ = leaf + 1 < footer_.nesting.size() ? footer_.nesting[leaf + 1].shared : Node{};
  const uint32_t max_repetition = static_cast<uint32_t>(nesting_->entries.size());
  if (max_repetition > MOST_REPETITION) throw Unclear{"its lists are too deep"};
  of_last_.begin(with_last_, max_repetition);
  of_next_.begin(with_next_, max_repetition);
  if (with_next_.definition) last_.room(chunks_);
  return max_repetition || with_last_.definition || with_next_.definition;
}

void Coherence::add(const uint8_t* definitions, const uint8_t* repetitions, uint32_t count) {
  if (!count) return;
  if (repetitions) lists(definitions, repetitions, count);
  before_ = definitions[count - 1];
  if (with_last_.definition) of_last_.add(definitions, repetitions, count);
  if (with_next_.definition && !same(with_last_, with_next_)) of_next_.add(definitions, repetitions, count);
}

// Where a list goes on, it has an entry, and had one before.
void Coherence::lists(const uint8_t* definitions, const uint8_t* repetitions, uint32_t count) {
  uint8_t wrong = 0;
  for (size_t list = 0; list < nesting_->entries.size(); list++) {
    const uint8_t level = static_cast<uint8_t>(list + 1), least = static_cast<uint8_t>(nesting_->entries[list]);
    wrong |= (repetitions[0] == level) & ((definitions[0] < least) | (before_ < least));
    for (uint32_t i = 1; i < count; i++)
      wrong |= (repetitions[i] == level) & ((definitions[i] < least) | (definitions[i - 1] < least));
  }
  if (wrong) throw Unclear{"a list goes on where it has no entry"};
}

void Coherence::end(size_t chunk) {
  before_ = 0;
  Digest* last = last_.get() + chunk;
  Digest found;
  if (with_last_.definition) {
    found = of_last_.end();
    if (found.one != last->one || found.other != last->other || found.count != last->count)
      throw Unclear{"columns of a group are there in other places than each other"};
  }
  if (with_next_.definition) *last = same(with_last_, with_next_) ? found : of_next_.end();
}

}  // namespace pagecompare
