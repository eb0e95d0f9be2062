// Scans records of CSV: where they end, whether all values of each column are of the kind that it had so far, and what
// these are in Arrow's layout.
//
// What is said to fit is what `text_values.classified` finds of the same values, and values are those that Arrow's
// reader makes of them. Whatever takes longer to decide is left to these: "unsure" says nothing. No byte outside of the
// data and of the room that is given is touched, and nothing is allocated.
#ifndef DATALAKE_CSVSCAN_H
#define DATALAKE_CSVSCAN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CS_VERSION 2

// What the values of a column are expected to be. Those of CS_ANY are not looked at; of CS_NOTHING, all are null.
// Numbers of CS_NUMBER keep their form and their digits as decimals, those of CS_DOUBLE as doubles.
enum CsvKind {
  CS_ANY = 0,
  CS_NOTHING = 1,
  CS_BOOL = 2,
  CS_NUMBER = 3,
  CS_DOUBLE = 4,
  CS_DATE = 5,
  CS_TIME = 6,
  CS_ZONED = 7,
  CS_EMPTY = 8
};

// What values become (Arrow Columnar Format, "Fixed-size Primitive Layout" and "Variable-size Binary Layout").
enum CsvTarget {
  CS_NO_VALUES = 0,
  CS_TEXTS = 1,
  CS_BITS = 2,
  CS_INT32 = 3,
  CS_INT64 = 4,
  CS_DECIMAL = 5,  // of 128 bits
  CS_REAL = 6,     // of 64 bits
  CS_DAYS = 7,     // since 1970, of 32 bits
  CS_MICROS = 8,   // since then, of 64 bits
  CS_NANOS = 9
};

// A field of a record, without its quotes; the highest bits of its size are flags.
typedef struct {
  uint32_t at;
  uint32_t size;
} CsvField;

#define CS_QUOTED 0x80000000u
#define CS_DOUBLED 0x40000000u  // a quote is written twice in it
#define CS_SIZE 0x3FFFFFFFu

typedef struct {
  int32_t kind;       // in: CsvKind
  int32_t most;       // in: of times, most digits of a second
  int32_t target;     // in: CsvTarget; out: CS_NO_VALUES if not all values could be written
  int32_t precision;  // in: of CS_DECIMAL, its digits
  int32_t places;     // in: and those behind the point
  int32_t
      is_settled;    // in: the type was chosen: zeros may lead, digits may be more than a double keeps, a day is a time
  int32_t is_exact;  // in: whether `in_doubt` matters; else it says of numbers of many digits that they are
  int32_t digits;    // out: of CS_NUMBER, most digits before the point; none of a lone 0
  int32_t scale;     // out: and behind it
  int32_t has_point;   // out: whether any has one
  int32_t in_doubt;    // out: whether a double may not keep the digits of some
  int32_t is_far;      // out: of times, whether 64 bits do not hold some in nanoseconds
  int64_t values;      // out: fields that are neither null nor empty
  int64_t nulls;       // out: rows without a value, where there is a target
  int64_t text_bytes;  // out of cs_index: of all its fields; in: room of `data` but for CS_SLACK; out: of all its texts
  uint8_t* validity;   // room for a bit for each record; set if the record has a value
  uint8_t* data;       // room for a value for each record; of CS_TEXTS, for the texts
  int32_t* offsets;    // of CS_TEXTS, room for one more than there are records
} CsvColumn;

#define CS_SLACK 16

// How records are written, and what unquoted fields are null.
typedef struct {
  uint8_t delimiter;
  uint8_t quote;  // 0: quotes are like other bytes
  uint8_t reserved[6];
  const uint8_t* nulls;  // texts one after the other, besides the empty one
  const int64_t* null_sizes;
  int64_t null_count;
} CsvForm;

// Where the records of some data end.
typedef struct {
  int64_t cut;       // bytes of whole records
  int64_t lines;     // lines that end within these
  int32_t is_plain;  // each quote stands where it may: it opens a field, closes one, or is one of two; or all else is 0
  int32_t reserved;
} CsvCut;

int32_t cs_version(void);

// Looks for the end of the last whole record; `is_end`: no more data follow.
void cs_cut(const uint8_t* data, int64_t size, const CsvForm* form, int32_t is_end, CsvCut* cut);

// The number of records of whole lines, each of `count` fields; -1: unsure, or there are more than `room`. Line feeds,
// carriage returns, and both end a record; a blank line is none. The fields of column c are at `fields` + c * `room`.
int64_t cs_index(const uint8_t* data, int64_t size, const CsvForm* form, CsvField* fields, CsvColumn* columns,
                 int64_t count, int64_t room);

// Looks at the columns of data whose fields cs_index found. 1: all values that are wanted were written; 0: not all;
// -1: unsure of a column that is not settled.
int32_t cs_columns(const uint8_t* data, int64_t size, const CsvForm* form, const CsvField* fields, CsvColumn* columns,
                   int64_t count, int64_t room, int64_t records);

#ifdef __cplusplus
}
#endif

#endif
