#include "csvscan.h"

#include "columns.hpp"
#include "records.hpp"

#define CS_EXPORT __attribute__((visibility("default")))

extern "C" {

CS_EXPORT int32_t cs_version(void) { return CS_VERSION; }

CS_EXPORT void cs_cut(const uint8_t* data, int64_t size, const CsvForm* form, int32_t is_end, CsvCut* cut) {
  *cut = csvscan::Cutter(data, size, *form, is_end != 0).cut();
}

CS_EXPORT int64_t cs_index(const uint8_t* data, int64_t size, const CsvForm* form, CsvField* fields, CsvColumn* columns,
                           int64_t count, int64_t room) {
  return csvscan::Indexer(data, size, *form, fields, columns, count, room).records();
}

CS_EXPORT int32_t cs_columns(const uint8_t* data, int64_t size, const CsvForm* form, const CsvField* fields,
                             CsvColumn* columns, int64_t count, int64_t room, int64_t records) {
  bool are_written = true;
  for (int64_t number = 0; number < count; ++number) {
    CsvColumn& column = columns[number];
    if (!are_written) column.target = CS_NO_VALUES;
    const bool wants_values = column.target != CS_NO_VALUES;
    if (column.is_settled && !wants_values) continue;
    const csvscan::Texts texts{data, data + size, form, fields + number * room, records};
    if (!csvscan::read_column(texts, column)) {
      if (!column.is_settled) return -1;
      column.target = CS_NO_VALUES;
    }
    if (wants_values && column.target == CS_NO_VALUES) are_written = false;
  }
  return are_written;
}
}
