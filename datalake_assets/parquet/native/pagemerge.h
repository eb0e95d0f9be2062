/* The kernel's C interface: many Parquet files of one schema become one file of one row group, page by page.
 *
 * Plain C, no Python's and no Arrow's ABI: one library serves every release of both. It is loaded with ctypes, which
 * releases the interpreter's lock. Nothing is thrown, and no process ended, whatever the inputs hold.
 *
 * What `verify` proves: each page that was encoded is read again from the output's bytes, and its levels and values
 * are compared with those that were decoded from the inputs. What it does not prove: that the inputs were decoded
 * rightly, and that copied pages hold what their metadata says, since the same decoder reads both times. Whoever wants
 * that proven compares with a reader that shares no code with this one.
 *
 * Memory: the inputs that are given as paths, the output, and twice the decoded values of the largest column. All of it
 * counts against `memory_bytes`.
 */
#ifndef DATALAKE_ASSETS_PAGEMERGE_H
#define DATALAKE_ASSETS_PAGEMERGE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PM_API __attribute__((visibility("default")))
#define PM_VERSION 4

typedef enum {
  PM_OK = 0,
  PM_DAMAGED = 1,     /* the input contradicts itself, or ends early */
  PM_UNSUPPORTED = 2, /* something that is not understood here; another reader may */
  PM_NO_CODEC = 3,    /* its codec was not there when the library was built */
  PM_DIFFERS = 4,     /* another schema, or other key-values, than the first input's */
  PM_CHANGED = 5,     /* other bytes, size or number of rows than the caller expected */
  PM_MEMORY = 6,      /* more memory than is allowed, or than there is */
  PM_CANCELLED = 7,
  PM_UNREADABLE = 8, /* the system does not open or read it */
  PM_UNSORTED = 9,   /* its rows are not in order of time */
  PM_INTERNAL = 10   /* the output does not decode to what went in, or there is a fault in here */
} pm_code;

/* A file: a path, or its bytes, which have to stay for as long as the call takes, or a descriptor. */
typedef struct {
  const char* path; /* null: `data` holds it, or it is open */
  const uint8_t* data;
  int64_t size_bytes;    /* of `data`, or expected of the file; -1: not known */
  int64_t rows;          /* expected; -1: not known */
  const uint8_t* digest; /* expected XXH3-128 in canonical form, 16 bytes; null: not to be compared */
  int32_t proven;        /* somebody vouches for the bytes: values that are copied need not be decoded to prove them */
  int32_t descriptor;    /* of the file, which is read wherever it stands; -1: it is not open */
  int32_t first_group, groups; /* row groups that take part; groups = -1: all from the first on */
} pm_input;

typedef struct {
  const char* data;
  int64_t size_bytes; /* -1: there is none */
} pm_text;

/* What becomes of rows that are not in order of the time leaf. */
typedef enum { PM_ORDER_KEEP = 0, PM_ORDER_SORT = 1, PM_ORDER_REFUSE = 2 } pm_order;

typedef enum { PM_BLOOM_DROP = 0, PM_BLOOM_BUILD = 1, PM_BLOOM_REFUSE = 2 } pm_bloom;

/* Who proves the output. Parts of a page that stay compressed are gone through element by element, lest they refer to
 * bytes before their own start, unless somebody else decompresses each input by itself and compares its values. */
typedef enum {
  PM_VERIFY_NOT = 0,
  PM_VERIFY_ENCODED = 1, /* what was encoded is decoded here, and compared */
  PM_VERIFY_ELSEWHERE = 2
} pm_verify;

typedef struct {
  int32_t codec;      /* of the output, Parquet's number: 0, 1 (Snappy) or 6 (Zstandard) */
  int32_t level;      /* of Zstandard */
  int64_t page_bytes; /* at the most, before compression, but for a single row */
  int64_t page_rows;  /* at the most, but for pages of less than the next; 8 times as many of one copied as it is */
  int64_t page_least_bytes; /* before compression: readers pay for every page, however small its values are */
  int32_t verify;           /* pm_verify */
  int32_t copy;             /* copy compressed pages where they can stay as they are */
  int32_t time_leaf;        /* a leaf of integers, one a row; -1: none */
  int32_t order;            /* pm_order; sorted are nulls last, rows of equal time in their order */
  int32_t bloom;            /* pm_bloom, for columns that have bloom filters in some input */
  int64_t memory_bytes;     /* 0: no limit */
  const char* created_by;
  int64_t created_by_bytes;
  const pm_text* keys; /* of the output's key-values; null: the inputs', which have to be the same then */
  const pm_text* values;
  int64_t key_values;
  const volatile int32_t* cancelled; /* looked at between column chunks; null: nobody cancels */
} pm_options;

typedef struct {
  uint8_t* data; /* for pm_free */
  int64_t size_bytes, rows;
  int64_t time_min, time_max; /* of the time leaf's values, where there are any */
  int32_t has_times;
  int32_t unsorted;     /* rows came out of order; sorted meanwhile with PM_ORDER_SORT */
  int64_t in_bytes;     /* of all inputs */
  int64_t copied_bytes; /* of compressed values that stayed as they were */
  int64_t copied_pages, encoded_pages;
  int64_t dropped_sorting; /* inputs said how rows are sorted, and the output doesn't */
  int64_t peak_bytes;
  double read_s, footer_s, decode_s, encode_s, verify_s; /* CPU of this thread */
  int32_t bad_input;                                     /* -1: none alone */
  char reason[252];
} pm_result;

typedef enum {
  PM_CHECK_FOOTER = 0,     /* the footer alone is parsed */
  PM_CHECK_PAGES = 1,      /* page headers, lengths, numbers of values, checksums */
  PM_CHECK_DECOMPRESS = 2, /* and each page decompresses to its length */
  PM_CHECK_DECODE = 3      /* and levels, indices and values decode */
} pm_depth;

typedef struct {
  int64_t offset, size_bytes; /* in the file; size 0: it is not there */
} pm_span;

/* What is known of a file. Without PM_OK in `code` nothing counts but that and the reason. */
typedef struct {
  int32_t code;
  char reason[252];
  int64_t rows, row_groups, columns, size_bytes;
  int64_t plain_bytes;               /* of all column chunks, before compression, as the footer says */
  int64_t largest_chunk_plain_bytes; /* of one column chunk, the same */
  int64_t largest_group_bytes;       /* of the largest row group, compressed */
  int64_t most_row_bytes;            /* of a row, decoded, at the most, as far as the footer tells */
  int64_t pages, checksums;          /* that were walked; of them, with a checksum, which was right */
  uint8_t schema_digest[16]; /* XXH3-128 of the schema's elements below the root: files merge where they are equal */
  uint8_t key_values_digest[16];          /* of the footer's key-values as they stand */
  pm_span schema, key_values, created_by; /* the Thrift lists with their heads; the text */
  uint64_t bloom_leaves; /* with a bloom filter, a bit for each of the first 63 leaves, the last one for all others */
  uint32_t codecs;       /* a bit for each codec's number */
  int32_t has_sorting, has_page_index, has_chunk_key_values;
  int32_t has_repeated;        /* some leaf is repeated */
  int32_t unstated_dictionary; /* a column chunk lists dictionary encodings, and no dictionary page: docs/adr/017 */
  int32_t has_times;           /* time_min and time_max bound the time leaf by exact statistics, and it has no nulls */
  int64_t time_min, time_max;
} pm_checked;

PM_API int32_t pm_version(void);
/* Codecs that can be decompressed, a bit for each of Parquet's numbers; and that can be compressed. */
PM_API uint32_t pm_reads(void);
PM_API uint32_t pm_writes(void);
PM_API int32_t pm_merge(int64_t count, const pm_input* inputs, const pm_options* options, pm_result* result);
/* Whether each file can take part, and if not, why; as deep as `depth` says. `memory_bytes` is of one file. */
PM_API int32_t pm_check(int64_t count, const pm_input* inputs, int32_t depth, int32_t time_leaf, int64_t memory_bytes,
                        pm_checked* checked);
/* Whether all column chunks of each file can be copied as they are: every page is what the metadata says, by its
 * header, length, place and checksum, and by the offset index. Nothing is decompressed. Of `checked`, only `code`,
 * `reason`, `pages` and `checksums` are told. `memory_bytes` is of one file. */
PM_API int32_t pm_walk(int64_t count, const pm_input* inputs, int64_t memory_bytes, pm_checked* checked);
PM_API void pm_free(void* data);

#ifdef __cplusplus
}
#endif
#endif
