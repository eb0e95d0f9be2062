// A column's levels and values, page by page, through one column chunk after the other.
#ifndef PAGECOMPARE_STREAM_HPP
#define PAGECOMPARE_STREAM_HPP

#include "bounds.hpp"
#include "decoding.hpp"
#include "nesting.hpp"
#include "unpacking.hpp"

namespace pagecompare {

// Where a column chunk lies.
struct Place {
  Span file;  // up to where its metadata begin
  Chunk chunk;
  int64_t rows;
  int input;  // number of the file; -1: the output
  bool proven;
  bool is_coherent;  // its levels fit together, or somebody vouches for them
};

// How the values of a page are held.
enum class Form {
  FIXED,  // one after the other, each as wide as the next
  TEXT,   // each after its length, in four bytes
  INDEX   // numbers of entries of the dictionary
};

// Values in PLAIN, all of them, and what they were decompressed from.
struct Piece {
  Span packed, plain;
  int codec = 0;  // 0: there is none
};

// Values of a page that are some of a piece: entries of a dictionary that follow each other, or all of a page in PLAIN.
struct Portion {
  Piece piece;
  uint64_t number = 0;  // of the dictionary, 0: there is none
  uint32_t first = 0;   // of its entries
  Span plain;           // of the piece, what these values are
};

// The values of a page, as they lie in the file.
struct Packed {
  Span packed, plain;  // plain: where it had to be decompressed for its levels
  uint64_t size = 0;   // decompressed
  int codec = 0;       // 0: it is not compressed
};

// The bytes that texts take, so many, each after its length.
Span texts(Span values, uint32_t count);

// Entries, as PLAIN has them; with each one's place where they differ in length.
struct Dictionary {
  explicit Dictionary(Allowance& allowance) : packed(allowance), places(allowance) {}

  // An entry, its length included, or several that follow each other.
  Span entries(uint32_t first, uint32_t some) const {
    if (width) return {data + uint64_t(first) * width, uint64_t(some) * width};
    const uint64_t begin = places.get()[first];
    return {data + begin, places.get()[first + some] - begin};
  }

  const uint8_t* data = nullptr;
  uint32_t count = 0, width = 0;
  uint64_t number = 0;  // of dictionaries that were read so far
  Piece piece;
  Array<uint8_t> packed;
  Array<uint64_t> places;
};

// The least and the most of values that are elsewhere by now.
class Bounds {
 public:
  explicit Bounds(Allowance& allowance) : least_(allowance), most_(allowance) {}

  void clear() { extremes.found = false; }
  void widen(const Leaf& leaf, const Extremes& more);

  Extremes extremes;

 private:
  static Span kept(Span value, Array<uint8_t>& to);

  Array<uint8_t> least_, most_;
};

class Stream {
 public:
  // What is stated of the chunk is held against what is read of it, if there is one to be held; and levels of chunks
  // that need it are told to whoever knows whether they fit together, if they say anything.
  Stream(const Leaf& leaf, std::vector<Place> places, Allowance& allowance, Unpacker& unpacker,
         Statements* statements = nullptr, Coherence* coherence = nullptr);

  // Goes on to the next page with levels where all of this one were passed; false where there is none.
  bool fill();

  // Passes levels of the present page; the values are passed by whoever reads them.
  void pass(uint32_t count) { level_ += count; }

  uint32_t levels_left() const { return levels_ - level_; }
  const uint8_t* definitions() const { return has_definitions_ ? definitions_.get() + level_ : nullptr; }
  const uint8_t* repetitions() const { return has_repetitions_ ? repetitions_.get() + level_ : nullptr; }

  // Number of the file that is read; of the output, -1.
  int input() const { return place_ ? places_[place_ - 1].input : -1; }

  // All values of the present page, if none was passed yet and they are of a piece that was compressed as one: they are
  // those of a page in PLAIN, or entries of a dictionary that follow each other, each once.
  Portion portion() const;

  // Pages of the output are not decompressed before they have to be. Whether this one waits for that:
  bool is_packed() const { return is_packed_; }

  // Whether the next values of a page that waits are those of a portion, so many: they are if the compressed bytes of
  // its piece come next, since pieces were decompressed by themselves. A part of Snappy's elements refers to nothing
  // before its own start then, and a frame of Zstandard's never does; so they make here what they made there. The
  // portions of a piece have to come one after the other, from its first value on.
  bool take(const Portion& portion, uint32_t count);

  // Decompresses the page that waits; values that were taken are passed.
  void unpack();

  // Of the present page, from the next value on.
  Form form = Form::FIXED;
  Span values;
  const uint32_t* index = nullptr;
  uint32_t values_left = 0;
  Dictionary dictionary;

  // Of all that was read, nulls included.
  int64_t total = 0;

 private:
  void open_chunk();
  void end_chunk();
  void read_page();
  void read_dictionary(const PageHead& head, Span body);
  void read_levels(Span at, uint32_t most, Array<uint8_t>& to);
  void tell_levels(const PageHead& head);
  void read_values(const PageHead& head, Span at);
  bool may_wait(const PageHead& head) const;
  void wait(const Packed& held);
  void end_page();
  bool is_bounded() const;
  void hold_all();
  void hold(const Extremes& extremes);
  Packed after_levels(const PageHead& head, Span packed);
  Packed beside_levels(const PageHead& head, Span packed);
  Span unpacked(const Packed& held, Array<uint8_t>& to);
  const Place& at() const { return places_[place_ - 1]; }

  const Leaf& leaf_;
  std::vector<Place> places_;
  size_t place_ = 0;  // of the next chunk
  Span rest_;         // of the chunk
  int64_t chunk_values_ = 0, chunk_rows_ = 0, chunk_nulls_ = 0;
  bool has_dictionary_ = false, has_data_ = false;
  uint32_t levels_ = 0, level_ = 0;
  bool has_definitions_ = false, has_repetitions_ = false;
  uint32_t page_values_ = 0;  // of the present page
  Piece page_piece_;          // its values in PLAIN, if they were compressed as one
  // Of a page of the output that waits: all of its values, what is left of them, and how many bytes were taken.
  bool is_packed_ = false;
  Packed waiting_;
  Span left_;
  uint64_t taken_ = 0;
  // Of the piece that was found last: bytes that were not taken yet, its dictionary, and the entry that has to be next.
  uint64_t open_size_ = 0, open_number_ = 0;
  uint32_t open_next_ = 0;
  // The page whose statements are not held against its values yet.
  bool is_open_ = false;
  PageHead head_{};
  uint64_t offset_ = 0;
  uint32_t missing_ = 0;
  int64_t first_row_ = 0;
  Array<uint8_t> definitions_, repetitions_, page_, flags_;
  Array<uint8_t> used_;  // entries of the dictionary, in the present page
  Array<uint32_t> indices_;
  Bounds taken_bounds_;
  Statements* statements_;
  Coherence* coherence_;
  Plainer plainer_;
  Unpacker& unpacker_;
};

}  // namespace pagecompare

#endif
