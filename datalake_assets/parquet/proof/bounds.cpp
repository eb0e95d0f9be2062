#include "bounds.hpp"

#include <cmath>
#include <cstdlib>
#include <limits>

namespace pagecompare {

namespace {

template <typename T>
T number_at(const uint8_t* at) {
  T number;
  memcpy(&number, at, sizeof number);
  return number;
}

template <typename T>
int compared(Span one, Span other) {
  T left = number_at<T>(one.data), right = number_at<T>(other.data);
  return left < right ? -1 : left > right;
}

int compared_bytes(Span one, Span other) {
  const uint64_t size = one.size < other.size ? one.size : other.size;
  const int order = size ? memcmp(one.data, other.data, size) : 0;
  return order ? order : one.size < other.size ? -1 : one.size > other.size;
}

template <typename T>
void extremes_of_numbers(const uint8_t* at, uint32_t count, Extremes& to) {
  T least = std::numeric_limits<T>::has_infinity ? std::numeric_limits<T>::infinity() : std::numeric_limits<T>::max();
  T most =
      std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::lowest();
  for (uint32_t i = 0; i < count; i++) {
    const T number = number_at<T>(at + uint64_t(i) * sizeof(T));
    least = number < least ? number : least;
    most = number > most ? number : most;
  }
  if (least > most) return;  // no number among them
  memcpy(to.held, &least, sizeof least);
  memcpy(to.held + 8, &most, sizeof most);
  to.least = {to.held, sizeof least};
  to.most = {to.held + 8, sizeof most};
  to.found = true;
}

// So that most texts are told apart by one comparison.
uint64_t first_eight(Span text) {
  uint64_t number = 0;
  if (text.size >= 8) {
    memcpy(&number, text.data, 8);
    return __builtin_bswap64(number);
  }
  for (uint64_t i = 0; i < text.size; i++) number |= uint64_t(text.data[i]) << (56 - 8 * i);
  return number;
}

void extremes_of_texts(const Leaf& leaf, Span values, uint32_t count, Extremes& to) {
  uint64_t place = 0, least = 0, most = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (values.size - place < 4) throw Unclear{"a page ends early"};
    const uint32_t size = number32(values.data + place);
    Span text = values.part(place + 4, size);
    place += 4 + uint64_t(size);
    const uint64_t head = first_eight(text);
    if (!to.found || head < least || (head == least && ordered(leaf, text, to.least) < 0)) {
      to.least = text;
      least = head;
    }
    if (!to.found || head > most || (head == most && ordered(leaf, text, to.most) > 0)) {
      to.most = text;
      most = head;
    }
    to.found = true;
  }
}

// A number of 16 bits, as one that is ordered as it is.
int half_at(Span value) {
  const int bits = value.data[0] | value.data[1] << 8, size = bits & 0x7FFF;
  return bits >> 15 ? -size : size;
}

bool is_number(const Leaf& leaf, Span value) {
  if (leaf.is_half) return std::abs(half_at(value)) <= 0x7C00;
  if (leaf.type != Type::FLOAT && leaf.type != Type::DOUBLE) return true;
  if (value.size == 4) return !std::isnan(number_at<float>(value.data));
  return !std::isnan(number_at<double>(value.data));
}

}  // namespace

int ordered(const Leaf& leaf, Span one, Span other) {
  switch (leaf.type) {
    case Type::BOOLEAN:
      return compared<uint8_t>(one, other);
    case Type::INT32:
      return leaf.is_unsigned ? compared<uint32_t>(one, other) : compared<int32_t>(one, other);
    case Type::INT64:
      return leaf.is_unsigned ? compared<uint64_t>(one, other) : compared<int64_t>(one, other);
    case Type::FLOAT:
      return compared<float>(one, other);
    case Type::DOUBLE:
      return compared<double>(one, other);
    default:
      break;
  }
  if (leaf.is_half) return half_at(one) - half_at(other);
  if (leaf.is_decimal && one.data[0] >> 7 != other.data[0] >> 7) return one.data[0] >> 7 ? -1 : 1;  // a sign
  return compared_bytes(one, other);
}

void extremes_of(const Leaf& leaf, Span values, uint32_t count, Extremes& to) {
  if (leaf.type == Type::INT32)
    leaf.is_unsigned ? extremes_of_numbers<uint32_t>(values.data, count, to)
                     : extremes_of_numbers<int32_t>(values.data, count, to);
  else if (leaf.type == Type::INT64)
    leaf.is_unsigned ? extremes_of_numbers<uint64_t>(values.data, count, to)
                     : extremes_of_numbers<int64_t>(values.data, count, to);
  else if (leaf.type == Type::FLOAT)
    extremes_of_numbers<float>(values.data, count, to);
  else if (leaf.type == Type::DOUBLE)
    extremes_of_numbers<double>(values.data, count, to);
  else if (leaf.type == Type::BOOLEAN)
    extremes_of_numbers<uint8_t>(values.data, count, to);
  else if (leaf.type == Type::TEXT)
    extremes_of_texts(leaf, values, count, to);
  else
    for (uint32_t i = 0; i < count; i++) extend(leaf, values.part(uint64_t(i) * leaf.width, leaf.width), to);
}

void extend(const Leaf& leaf, Span value, Extremes& to) {
  if (!is_number(leaf, value)) return;
  if (!to.found || ordered(leaf, value, to.least) < 0) to.least = value;
  if (!to.found || ordered(leaf, value, to.most) > 0) to.most = value;
  to.found = true;
}

Statements::Statements(const Leaf& leaf, const Chunk& chunk, Span file) : leaf_(leaf), chunk_(chunk) {
  if (chunk.offset_index_size < 0 || chunk.column_index_size < 0 || chunk.offset_index < 0 || chunk.column_index < 0)
    throw Unclear{"its page indexes have no place"};
  has_offsets_ = chunk.offset_index_size > 0;
  has_columns_ = chunk.column_index_size > 0;
  if (has_columns_ && !has_offsets_) throw Unclear{"it has one of two page indexes"};
  if (has_offsets_)
    offsets_ = offset_index_of(
        file.part(static_cast<uint64_t>(chunk.offset_index), static_cast<uint64_t>(chunk.offset_index_size)));
  if (has_columns_)
    columns_ = column_index_of(
        file.part(static_cast<uint64_t>(chunk.column_index), static_cast<uint64_t>(chunk.column_index_size)));
  if (has_columns_ && columns_.is_null.size() != offsets_.size()) throw Difference{"its page indexes differ in pages"};
  if (chunk.statistics.has_old) throw Unclear{"it has bounds of the old kind"};
  has_bounds_ = chunk.statistics.has_least || chunk.statistics.has_most || has_columns_;
  if (has_bounds_ && !leaf.has_order) throw Unclear{"it has bounds of values that have no order"};
}

void Statements::page(uint64_t offset, uint64_t size, int64_t row, uint32_t values, uint32_t nulls,
                      const Statistics& said, const Extremes& extremes) {
  const size_t number = pages_++;
  if ((said.has_least || said.has_most) && !leaf_.has_order)
    throw Unclear{"it has bounds of values that have no order"};
  if (said.has_old) throw Unclear{"it has bounds of the old kind"};
  if (said.has_nulls && said.nulls != nulls) throw Difference{"a page states another number of nulls than it has"};
  within(said, extremes);
  within(chunk_.statistics, extremes);
  const Statistics& all = chunk_.statistics;
  is_least_met_ |= extremes.found && all.has_least && !ordered(leaf_, extremes.least, all.least);
  is_most_met_ |= extremes.found && all.has_most && !ordered(leaf_, extremes.most, all.most);
  if (!has_offsets_) return;
  if (number >= offsets_.size()) throw Difference{"a page is missing in its page index"};
  const IndexedPage& place = offsets_[number];
  if (static_cast<uint64_t>(place.offset) != offset || static_cast<uint64_t>(place.size) != size || place.row != row)
    throw Difference{"a page lies elsewhere than its page index says"};
  if (!has_columns_) return;
  if (columns_.is_null[number] != (nulls == values))
    throw Difference{"the page index takes a page of nulls alone for another"};
  if (!columns_.nulls.empty() && columns_.nulls[number] != nulls)
    throw Difference{"the page index states another number of nulls than a page has"};
  if (nulls == values) return;
  Statistics of_page;
  of_page.has_least = of_page.has_most = true;
  of_page.least = columns_.least[number];
  of_page.most = columns_.most[number];
  within(of_page, extremes);
}

void Statements::within(const Statistics& said, const Extremes& extremes) const {
  if (!extremes.found) return;
  for (const Span* bound : {said.has_least ? &said.least : nullptr, said.has_most ? &said.most : nullptr}) {
    if (!bound) continue;
    if (!is_value(*bound)) throw Unclear{"a bound is no value"};
    if (!is_number(leaf_, *bound)) throw Difference{"a bound is no number"};  // readers would skip all values by it
  }
  if ((said.has_least && ordered(leaf_, said.least, extremes.least) > 0) ||
      (said.has_most && ordered(leaf_, said.most, extremes.most) < 0))
    throw Difference{"a value lies outside of the bounds that are stated"};
}

// Texts, and bytes of one width, may be cut short.
bool Statements::is_value(Span bound) const {
  const bool has_width = leaf_.width && (leaf_.type != Type::FIXED || leaf_.is_decimal || leaf_.is_half);
  return !has_width || bound.size == leaf_.width;
}

void Statements::end(int64_t nulls) {
  const Statistics& said = chunk_.statistics;
  if (said.has_nulls && said.nulls != nulls) throw Difference{"another number of nulls is stated than there are"};
  if ((said.has_least && said.least_is_exact && !is_least_met_) ||
      (said.has_most && said.most_is_exact && !is_most_met_))
    throw Difference{"a bound is said to be a value, and is none"};
  if (has_offsets_ && pages_ != offsets_.size()) throw Difference{"its page index has more pages than there are"};
  if (has_columns_ && columns_.order) in_order();
}

// Readers search bounds that are in order.
void Statements::in_order() const {
  if (columns_.order != 1 && columns_.order != 2) throw Unclear{"its pages have an order that is not known"};
  const std::vector<Span>& least = columns_.least;
  const std::vector<Span>& most = columns_.most;
  const size_t none = columns_.is_null.size();
  size_t before = none;
  for (size_t i = 0; i < none; i++) {
    if (columns_.is_null[i]) continue;
    if (!is_value(least[i]) || !is_value(most[i])) throw Unclear{"a bound is no value"};
    if (before != none) {
      const int rises = columns_.order == 1 ? 1 : -1;
      if (ordered(leaf_, least[before], least[i]) * rises > 0 || ordered(leaf_, most[before], most[i]) * rises > 0)
        throw Difference{"its pages are not in the order that is stated"};
    }
    before = i;
  }
}

}  // namespace pagecompare
