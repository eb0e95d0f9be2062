// Scans records of CSV: where they end, and whether all values of each column are of the kind that it had so far.
//
// What is said to fit is what `text_values.classified` finds of the same values. Whatever takes longer to decide is
// left to that: "unsure" says nothing. No byte outside of the data is read, and nothing is allocated.
#ifndef DATALAKE_CSVSCAN_H
#define DATALAKE_CSVSCAN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CS_VERSION 1

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

typedef struct {
  int32_t kind;       // in: CsvKind
  int32_t most;       // in: of times, most digits of a second
  int32_t digits;     // out: of CS_NUMBER, most digits before the point; none of a lone 0
  int32_t scale;      // out: and behind it
  int32_t has_point;  // out: whether any has one
  int32_t in_doubt;   // out: whether a double may not keep the digits of some
  int32_t is_far;     // out: of times, whether 64 bits do not hold some in nanoseconds
  int32_t reserved;
  int64_t values;  // out: fields that are neither null nor empty
} CsvColumn;

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

// The number of records of whole lines, each of `count` fields; -1: unsure. Line feeds, carriage returns, and both end
// a record; a blank line is none.
int64_t cs_scan(const uint8_t* data, int64_t size, const CsvForm* form, CsvColumn* columns, int64_t count);

#ifdef __cplusplus
}
#endif

#endif
