/* The comparer's C interface: whether one Parquet row group holds the values of other files, in their order.
 *
 * It proves what the kernel that merges pages (`parquet/native`) has made, and so has no part in it: neither a header
 * nor a line is shared, and both were written from the format's specification. What it answers with PC_EQUAL was read
 * on both sides: page by page, decompressed, levels and indices unpacked, every value compared with its counterpart.
 *
 * Plain C, loaded with ctypes. Nothing is thrown, and no process ended, whatever the files hold.
 */
#ifndef DATALAKE_ASSETS_PAGECOMPARE_H
#define DATALAKE_ASSETS_PAGECOMPARE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PC_API __attribute__((visibility("default")))
#define PC_VERSION 4

typedef enum {
  PC_EQUAL = 0,   /* all levels and all values are, and the output's footer says of them what they are */
  PC_DIFFERS = 1, /* something is not; `reason` says what */
  PC_UNCLEAR = 2  /* a file is damaged, or has something that is not understood here: another reader has to say */
} pc_verdict;

/* A file's bytes, which have to stay for as long as the call takes. */
typedef struct {
  const uint8_t* data;
  int64_t size_bytes;
  int64_t rows;   /* that it is said to have */
  int32_t proven; /* somebody vouches for the bytes: neither checksums nor how levels fit together need be looked at */
} pc_file;

typedef struct {
  int32_t verdict; /* pc_verdict */
  int32_t input;   /* number of the file that it is about; -1: the output, or no one alone */
  int32_t column;  /* number of the leaf; -1: none alone */
  char reason[244];
  int64_t rows, values; /* of the output, counted; of all leaves, nulls included */
  int64_t peak_bytes;   /* that were allocated at once */
} pc_result;

/* What another library makes of compressed bytes that nobody vouches for: releases differ in which damaged ones they
 * take, and readers have that one. Fills `plain` (`is_made` 0), or says whether what is there is what it makes of them
 * (1). Returns 0 if it is not, or cannot be made. Called in the thread that asks, for all codecs but Snappy. */
typedef int32_t (*pc_unpack)(int32_t codec, const uint8_t* packed, int64_t packed_bytes, uint8_t* plain,
                             int64_t plain_bytes, int32_t is_made);

/* What a file states besides its rows, row groups and key-values, beside other files. */
typedef struct {
  int32_t like;       /* number of the first file that states the same, maybe its own; -1: it cannot be joined */
  int32_t row_groups; /* how many it has */
  int64_t rows;       /* that it has */
  int64_t offset, size_bytes;          /* of the joined file, told of the first of those that state the same */
  int64_t schema_offset, schema_bytes; /* of Arrow's own schema in the file; 0 and 0: that of the last such file */
} pc_joined;

PC_API int32_t pc_version(void);
/* Codecs that can be decompressed, a bit for each of Parquet's numbers. */
PC_API uint32_t pc_reads(void);
/* Compares the rows of the inputs, one file after the other, with those of a file of one row group, whose metadata
 * are in `footer` (a FileMetaData structure, whatever stands at the end of `output`). `memory_bytes` is the most that
 * may be allocated. `other` is asked of the inputs that are not proven; NULL: nobody is. Returns the verdict. */
PC_API int32_t pc_compare(int64_t count, const pc_file* inputs, const pc_file* output, const uint8_t* footer,
                          int64_t footer_bytes, int64_t memory_bytes, pc_unpack other, pc_result* result);
/* Reads one file to its last value, as strictly as inputs of a comparison are read: PC_EQUAL if all pages add up to
 * what its metadata say, decompress, and have levels, indices and values in their encodings; otherwise PC_UNCLEAR.
 * Levels of lists and groups fit together, across columns too, as those of inputs that are not proven. What it states
 * of values is not looked at. */
PC_API int32_t pc_read(const pc_file* file, int64_t memory_bytes, pc_result* result);
/* Joins the metadata of files: of those that state the same (columns, writer, and whatever else), all row groups and
 * key-values become one file of no pages in `joined`, as they stand, one file after the other. Who reads that one and
 * the first of the files takes the metadata of all, but for Arrow's own schema, a key-value that may differ. A file
 * that is not understood here is not joined, nor one whose chunks lie where it has no pages, or whose bounds are no
 * values of their columns. Returns how many files were looked at: as many as fit into `room` bytes, maybe none. Of
 * files, only `data` and `size_bytes` are needed. */
PC_API int64_t pc_join(int64_t count, const pc_file* files, uint8_t* joined, int64_t room, pc_joined* told);

#ifdef __cplusplus
}
#endif
#endif
