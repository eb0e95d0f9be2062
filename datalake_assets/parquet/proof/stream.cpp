#include "stream.hpp"

namespace pagecompare {

Stream::Stream(const Leaf& leaf, std::vector<Place> places, Allowance& allowance, Unpacker& unpacker,
               Statements* statements)
    : dictionary(allowance),
      leaf_(leaf),
      places_(std::move(places)),
      definitions_(allowance),
      repetitions_(allowance),
      page_(allowance),
      flags_(allowance),
      used_(allowance),
      indices_(allowance),
      statements_(statements),
      plainer_(allowance),
      unpacker_(unpacker) {
  if (leaf.max_definition > 255 || leaf.max_repetition > 255) throw Unclear{"its columns are too deep"};
}

bool Stream::fill() {
  while (level_ == levels_) {
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
  Span body;
  if (head.kind == PageKind::DATA) {
    body = unpacked(packed, head.plain_size, true, page_);
    for (bool is_definition : {false, true}) {  // repetition levels come first
      if (!(is_definition ? has_definitions_ : has_repetitions_)) continue;
      if (body.size < 4) throw Unclear{"a page ends before its levels"};
      Span levels = body.part(4, number32(body.data));
      read_levels(levels, is_definition ? leaf_.max_definition : leaf_.max_repetition,
                  is_definition ? definitions_ : repetitions_);
      body = body.from(4 + levels.size);
    }
  } else {
    Span repeated = packed.part(0, head.repetition_size);
    Span defined = packed.part(head.repetition_size, head.definition_size);
    const uint64_t levels_size = repeated.size + defined.size;
    if ((repeated.size && !has_repetitions_) || (defined.size && !has_definitions_) || head.plain_size < levels_size)
      throw Unclear{"a page has levels where there are none"};
    if (has_repetitions_) read_levels(repeated, leaf_.max_repetition, repetitions_);
    if (has_definitions_) read_levels(defined, leaf_.max_definition, definitions_);
    body = unpacked(packed.from(levels_size), head.plain_size - static_cast<uint32_t>(levels_size), head.is_compressed,
                    page_);
  }
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
  values_left = levels_ - missing;
  read_values(head, body);
  if (statements_) {
    if (levels_ && has_repetitions_ && repetitions_.get()[0]) throw Unclear{"a page begins within a row"};
    hold(head, missing);
  }
  chunk_values_ += levels_;
  chunk_nulls_ += missing;
  chunk_rows_ += begun;
}

// Holds what is stated of the page against its values.
void Stream::hold(const PageHead& head, uint32_t missing) {
  Extremes extremes;
  const bool is_bounded = statements_->has_bounds() || head.statistics.has_least || head.statistics.has_most;
  if (is_bounded && leaf_.has_order && values_left) {
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
  const uint64_t size = uint64_t(head.head_size) + head.size;
  const uint64_t end = static_cast<uint64_t>(rest_.data - at().file.data);
  statements_->page(end - size, size, chunk_rows_, levels_, missing, head.statistics, extremes);
}

Span Stream::unpacked(Span packed, uint32_t size, bool is_compressed, Array<uint8_t>& to) {
  if (!is_compressed || at().chunk.codec == 0) {
    if (packed.size != size) throw Unclear{"a page has another size than its head says"};
    return packed;
  }
  if (!size && !packed.size) return packed;  // version 2: no values, and nothing to compress
  uint8_t* room = to.room(size);
  unpacker_.unpack(at().chunk.codec, packed, room, size);
  return {room, size};
}

void Stream::read_dictionary(const PageHead& head, Span packed) {
  if (has_dictionary_ || has_data_) throw Unclear{"a dictionary is not the first page, or not the only one"};
  if (leaf_.type == Type::BOOLEAN) throw Unclear{"truths have a dictionary"};
  has_dictionary_ = true;
  Span body = unpacked(packed, head.plain_size, true, dictionary.packed);
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
    if (!count) return;
    if (!dictionary.count || !body.size || body.data[0] > 32) throw Unclear{"indices have no width, or no entries"};
    decode_runs(body.from(1), body.data[0], count, dictionary.count - 1, indices_.get());
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
  } else if (count || body.size) {
    values = plainer_.plain(head.encoding, body, leaf_, count);
  }
  if (leaf_.width && values.size < uint64_t(count) * leaf_.width) throw Unclear{"a page ends early"};
}

}  // namespace pagecompare
