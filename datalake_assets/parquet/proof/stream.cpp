#include "stream.hpp"

namespace pagecompare {

namespace {

// Zeros that fastparquet fills its pages up with.
constexpr uint64_t FILLING = 8;

}  // namespace

Span texts(Span values, uint32_t count) {
  uint64_t place = 0;
  for (; count; count--) {
    if (values.size - place < 4) throw Unclear{"a page ends early"};
    uint64_t size = number32(values.data + place);
    if (size > INT_MAX || size > values.size - place - 4) throw Unclear{"a page ends early"};
    place += 4 + size;
  }
  return {values.data, place};
}

Stream::Stream(const Leaf& leaf, std::vector<Place> places, Allowance& allowance, Unpacker& unpacker,
               Statements* statements, Coherence* coherence)
    : dictionary(allowance),
      leaf_(leaf),
      places_(std::move(places)),
      definitions_(allowance),
      repetitions_(allowance),
      page_(allowance),
      flags_(allowance),
      used_(allowance),
      indices_(allowance),
      taken_bounds_(allowance),
      statements_(statements),
      coherence_(coherence),
      plainer_(allowance),
      unpacker_(unpacker) {
  if (leaf.max_definition > 255 || leaf.max_repetition > 255) throw Unclear{"its columns are too deep"};
}

bool Stream::fill() {
  while (level_ == levels_) {
    if (is_open_) end_page();
    if (rest_.size) {
      read_page();
      continue;
    }
    if (place_) end_chunk();
    if (place_ == places_.size()) return false;
    open_chunk();
  }
  return true;
}

void Stream::open_chunk() {
  const Place& next = places_[place_++];
  // readers refuse a codec that they lack also where no page is compressed
  if (!is_unpackable(next.chunk.codec)) throw Unclear{"its codec cannot be read here"};
  rest_ = next.file.part(static_cast<uint64_t>(next.chunk.begin), static_cast<uint64_t>(next.chunk.size));
  chunk_values_ = chunk_rows_ = chunk_nulls_ = 0;
  has_dictionary_ = has_data_ = false;
  levels_ = level_ = 0;
}

// What was found has to be what metadata say: readers go by both.
void Stream::end_chunk() {
  const Place& done = at();
  if (chunk_values_ != done.chunk.values || chunk_rows_ != done.rows)
    throw Unclear{"a column has other numbers of values or rows than its metadata say"};
  if (statements_) statements_->end(chunk_nulls_);
  if (coherence_ && !done.is_coherent) coherence_->end(place_ - 1);
  total += chunk_values_;
}

void Stream::read_page() {
  PageHead head = page_head(rest_);
  Span packed = rest_.part(head.head_size, head.size);
  rest_ = rest_.from(uint64_t(head.head_size) + head.size);
  if (head.has_checksum && !at().proven && checksum_of(packed) != head.checksum)
    throw Unclear{"the checksum of a page is not that of its bytes"};
  if (head.kind == PageKind::DICTIONARY) {
    read_dictionary(head, packed);
    return;
  }
  has_data_ = true;
  if (head.values > static_cast<uint64_t>(at().chunk.values - chunk_values_))
    throw Unclear{"a column has more values than its metadata say"};
  levels_ = head.values;
  level_ = 0;
  has_definitions_ = leaf_.max_definition > 0;
  has_repetitions_ = leaf_.max_repetition > 0;
  Packed held = head.kind == PageKind::DATA ? after_levels(head, packed) : beside_levels(head, packed);
  uint32_t missing = 0, begun = levels_;
  if (has_definitions_) {
    const uint8_t* levels = definitions_.get();
    for (uint32_t i = 0; i < levels_; i++) missing += levels[i] != leaf_.max_definition;
  }
  if (has_repetitions_) {
    const uint8_t* levels = repetitions_.get();
    if (levels_ && !chunk_values_ && levels[0]) throw Unclear{"a row group begins within a row"};
    begun = 0;
    for (uint32_t i = 0; i < levels_; i++) begun += !levels[i];
  }
  if (head.kind == PageKind::DATA_V2 && (head.nulls != missing || head.rows != begun))
    throw Unclear{"a page has other numbers of nulls or rows than its head says"};
  if (coherence_ && !at().is_coherent) tell_levels(head);
  values_left = page_values_ = levels_ - missing;
  is_packed_ = false;
  if (statements_) {
    if (levels_ && has_repetitions_ && repetitions_.get()[0]) throw Unclear{"a page begins within a row"};
    is_open_ = true;
    head_ = head;
    offset_ = static_cast<uint64_t>(packed.data - at().file.data) - head.head_size;
    missing_ = missing;
    first_row_ = chunk_rows_;
  }
  if (may_wait(head)) {
    wait(held);
  } else {
    const Span body = head.kind == PageKind::DATA ? held.plain : unpacked(held, page_);
    const bool is_plain = head.encoding == Encoding::PLAIN && leaf_.type != Type::BOOLEAN;
    page_piece_ = {held.packed, body, is_plain ? held.codec : 0};
    read_values(head, body);
    if (statements_) hold_all();
  }
  chunk_values_ += levels_;
  chunk_nulls_ += missing;
  chunk_rows_ += begun;
}

void Stream::tell_levels(const PageHead& head) {
  const uint8_t* repeated = has_repetitions_ ? repetitions_.get() : nullptr;
  if (repeated && head.kind == PageKind::DATA_V2 && levels_ && repeated[0])
    throw Unclear{"a page of version 2 begins within a row"};
  if (repeated && at().chunk.values > INT_MAX) throw Unclear{"a row group has more entries than lists may have"};
  coherence_->add(definitions_.get(), repeated, levels_);
}

// Levels of version 1 are compressed with the values.
Packed Stream::after_levels(const PageHead& head, Span packed) {
  Packed held{packed, {}, head.plain_size, at().chunk.codec};
  held.plain = unpacked(held, page_);
  for (bool is_definition : {false, true}) {  // repetition levels come first
    if (!(is_definition ? has_definitions_ : has_repetitions_)) continue;
    if (!(is_definition ? head.has_definition_runs : head.has_repetition_runs)) throw Unclear{NO_RUNS};
    if (held.plain.size < 4) throw Unclear{"a page ends before its levels"};
    Span levels = held.plain.part(4, number32(held.plain.data));
    read_levels(levels, is_definition ? leaf_.max_definition : leaf_.max_repetition,
                is_definition ? definitions_ : repetitions_);
    held.plain = held.plain.from(4 + levels.size);
    held.codec = 0;  // the values alone are no piece
  }
  return held;
}

// Those of version 2 lie before the values, as they are.
Packed Stream::beside_levels(const PageHead& head, Span packed) {
  Span repeated = packed.part(0, head.repetition_size);
  Span defined = packed.part(head.repetition_size, head.definition_size);
  const uint64_t size = repeated.size + defined.size;
  if ((repeated.size && !has_repetitions_) || (defined.size && !has_definitions_) || head.plain_size < size)
    throw Unclear{"a page has levels where there are none"};
  if (has_repetitions_) read_levels(repeated, leaf_.max_repetition, repetitions_);
  if (has_definitions_) read_levels(defined, leaf_.max_definition, definitions_);
  return {packed.from(size), {}, head.plain_size - size, head.is_compressed ? at().chunk.codec : 0};
}

bool Stream::is_bounded() const {
  return leaf_.has_order && (statements_->has_bounds() || head_.statistics.has_least || head_.statistics.has_most);
}

// Holds what is stated of the page against all of its values, none of which was passed.
void Stream::hold_all() {
  Extremes extremes;
  if (is_bounded() && values_left) {
    if (form == Form::INDEX) {
      uint8_t* used = used_.room(dictionary.count);
      memset(used, 0, dictionary.count);
      for (uint32_t i = 0; i < values_left; i++) used[index[i]] = 1;
      for (uint32_t i = 0; i < dictionary.count; i++) {
        if (!used[i]) continue;
        Span entry = dictionary.entries(i, 1);
        extend(leaf_, leaf_.width ? entry : entry.from(4), extremes);
      }
    } else {
      extremes_of(leaf_, values, values_left, extremes);
    }
  }
  hold(extremes);
}

void Stream::hold(const Extremes& extremes) {
  const uint64_t size = uint64_t(head_.head_size) + head_.size;
  statements_->page(offset_, size, first_row_, levels_, missing_, head_.statistics, extremes);
  is_open_ = false;
}

// ---- pages that wait

Span Bounds::kept(Span value, Array<uint8_t>& to) {
  uint8_t* room = to.room(value.size);
  if (value.size) memcpy(room, value.data, value.size);
  return {room, value.size};
}

void Bounds::widen(const Leaf& leaf, const Extremes& more) {
  if (!more.found) return;
  const bool is_first = !extremes.found;
  if (is_first || ordered(leaf, more.least, extremes.least) < 0) extremes.least = kept(more.least, least_);
  if (is_first || ordered(leaf, more.most, extremes.most) > 0) extremes.most = kept(more.most, most_);
  extremes.found = true;
}

Portion Stream::portion() const {
  if (!values_left || values_left != page_values_) return {};
  if (form != Form::INDEX) {
    const Span all = leaf_.width ? values.part(0, uint64_t(values_left) * leaf_.width) : texts(values, values_left);
    return all.size == values.size ? Portion{page_piece_, 0, 0, all} : Portion{};
  }
  const uint32_t first = index[0];
  if (values_left > dictionary.count || first > dictionary.count - values_left) return {};
  uint32_t wrong = 0;
  for (uint32_t i = 0; i < values_left; i++) wrong |= index[i] ^ (first + i);
  if (wrong) return {};
  return {dictionary.piece, dictionary.number, first, dictionary.entries(first, values_left)};
}

bool Stream::may_wait(const PageHead& head) const {
  return statements_ && head.kind == PageKind::DATA_V2 && head.encoding == Encoding::PLAIN && head.is_compressed &&
         values_left && leaf_.type != Type::BOOLEAN && is_joinable(at().chunk.codec);
}

void Stream::wait(const Packed& held) {
  form = leaf_.width ? Form::FIXED : Form::TEXT;
  values = {};
  is_packed_ = true;
  waiting_ = held;
  left_ = parts_of(held.codec, held.packed, held.size);
  taken_ = open_size_ = 0;
  taken_bounds_.clear();
}

bool Stream::take(const Portion& portion, uint32_t count) {
  const Piece& piece = portion.piece;
  if (!piece.codec || piece.codec != waiting_.codec) return false;
  if (open_size_) {
    if (portion.number != open_number_ || portion.first != open_next_) return false;
  } else {
    if (portion.first || piece.plain.size > waiting_.size - taken_) return false;
    const Span next = parts_of(piece.codec, piece.packed, piece.plain.size);
    if (next.size > left_.size || memcmp(next.data, left_.data, next.size)) return false;
    left_ = left_.from(next.size);
    open_size_ = piece.plain.size;
    open_number_ = portion.number;
    open_next_ = 0;
  }
  if (is_bounded()) {
    Extremes extremes;
    extremes_of(leaf_, portion.plain, count, extremes);
    taken_bounds_.widen(leaf_, extremes);
  }
  open_size_ -= portion.plain.size;
  open_next_ += count;
  taken_ += portion.plain.size;
  values_left -= count;
  return true;
}

void Stream::unpack() {
  is_packed_ = false;
  const uint32_t left = values_left;
  values = unpacked(waiting_, page_);
  if (leaf_.width && values.size < uint64_t(page_values_) * leaf_.width) throw Unclear{"a page ends early"};
  values_left = page_values_;
  hold_all();
  values_left = left;
  values = values.from(taken_);
}

// All values of a page that waited were passed.
void Stream::end_page() {
  if (left_.size || taken_ != waiting_.size) {
    unpack();  // there is more than values were taken for
    return;
  }
  is_packed_ = false;
  hold(taken_bounds_.extremes);
}

Span Stream::unpacked(const Packed& held, Array<uint8_t>& to) {
  if (!held.codec) {
    if (held.packed.size != held.size) throw Unclear{"a page has another size than its head says"};
    return held.packed;
  }
  if (!held.size && !held.packed.size) return held.packed;  // version 2: no values, and nothing to compress
  uint8_t* room = to.room(held.size);
  unpacker_.unpack(held.codec, held.packed, room, held.size, at().proven || at().input < 0);
  return {room, held.size};
}

void Stream::read_dictionary(const PageHead& head, Span packed) {
  if (has_dictionary_ || has_data_) throw Unclear{"a dictionary is not the first page, or not the only one"};
  if (leaf_.type == Type::BOOLEAN) throw Unclear{"truths have a dictionary"};
  has_dictionary_ = true;
  const int codec = at().chunk.codec;
  Span body = unpacked({packed, {}, head.plain_size, codec}, dictionary.packed);
  dictionary.piece = {packed, body, codec};
  dictionary.data = body.data;
  dictionary.count = head.values;
  dictionary.width = leaf_.width;
  dictionary.number++;
  if (leaf_.width) {
    if (uint64_t(head.values) * leaf_.width != body.size)
      throw Unclear{"a dictionary has another size than its entries"};
    return;
  }
  if (uint64_t(head.values) * 4 > body.size) throw Unclear{"a dictionary has another size than its entries"};
  uint64_t *places = dictionary.places.room(uint64_t(head.values) + 1), place = 0;
  for (uint32_t i = 0; i < head.values; i++) {
    places[i] = place;
    if (body.size - place < 4) throw Unclear{"a dictionary ends early"};
    uint64_t size = number32(body.data + place);
    if (size > INT_MAX || size > body.size - place - 4) throw Unclear{"a dictionary ends early"};
    place += 4 + size;
  }
  places[head.values] = place;
  if (place != body.size) throw Unclear{"a dictionary has another size than its entries"};
}

void Stream::read_levels(Span levels, uint32_t most, Array<uint8_t>& to) {
  decode_runs(levels, bits_for(most), levels_, most, to.room(levels_));
}

void Stream::read_values(const PageHead& head, Span body) {
  values = {};
  const uint32_t count = values_left;
  if (head.encoding == Encoding::PLAIN_DICTIONARY || head.encoding == Encoding::RLE_DICTIONARY) {
    form = Form::INDEX;
    if (!has_dictionary_) throw Unclear{"a page needs a dictionary, and there is none"};
    index = indices_.room(count);
    // Arrow refuses a width above 32 also where there are no indices
    if (body.size && body.data[0] > 32) throw Unclear{"indices are wider than any"};
    if (!count) return;
    if (!dictionary.count || !body.size) throw Unclear{"indices have no width, or no entries"};
    decode_runs(body.from(1), body.data[0], count, dictionary.count - 1, indices_.get(), FILLING);
    return;
  }
  form = leaf_.width ? Form::FIXED : Form::TEXT;
  if (leaf_.type == Type::BOOLEAN) {
    uint8_t* flags = flags_.room(count);
    if (head.encoding == Encoding::PLAIN) {
      unpack_bits(body.part(0, (uint64_t(count) + 7) / 8), 1, count, flags);
    } else if (head.encoding == Encoding::RLE) {
      if (body.size < 4 || number32(body.data) > body.size - 4) throw Unclear{"a page ends early"};
      decode_runs(body.part(4, number32(body.data)), 1, count, 1, flags);
    } else {
      throw Unclear{"its values have an encoding that is not known here"};
    }
    values = {flags, count};
  } else if (head.encoding == Encoding::PLAIN) {
    values = body;
  } else {
    values = plainer_.plain(head.encoding, body, leaf_, count);
  }
  if (leaf_.width && values.size < uint64_t(count) * leaf_.width) throw Unclear{"a page ends early"};
}

}  // namespace pagecompare
