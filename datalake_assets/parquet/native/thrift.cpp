#include "thrift.hpp"

namespace pagemerge {

constexpr int MAX_DEPTH = 64;

namespace {

void know(int kind) { need(kind >= T_TRUE && kind <= T_UUID, "its metadata has a value of unknown type"); }

}  // namespace

void ThriftReader::skip(int type, int depth) {
  need(depth < MAX_DEPTH, "its metadata is nested too deep");
  switch (type) {
    case T_TRUE:
    case T_FALSE:
      return;
    case T_BYTE:
      byte();
      return;
    case T_I16:
    case T_I32:
    case T_I64:
      varint();
      return;
    case T_DOUBLE:
      need(left() >= 8, "its metadata ends early");
      at += 8;
      return;
    case T_UUID:
      need(left() >= 16, "its metadata ends early");
      at += 16;
      return;
    case T_BINARY:
      binary();
      return;
    case T_LIST:
    case T_SET: {
      int element;
      u64 count = list(element);
      if (!count) return;
      know(element);
      if (element <= T_FALSE) {  // booleans in lists take a byte
        at += count;
        return;
      }
      while (count--) skip(element, depth + 1);
      return;
    }
    case T_MAP: {
      u64 count = varint();
      if (!count) return;
      need(count <= left(), "a map in its metadata is too long");
      u8 types = byte();
      know(types >> 4);
      know(types & 15);
      while (count--) {
        for (int each : {types >> 4, types & 15}) {
          if (each <= T_FALSE) {
            byte();
          } else {
            skip(each, depth + 1);
          }
        }
      }
      return;
    }
    case T_STRUCT:
      for (;;) {
        u8 head = byte();
        if (!head) return;
        if (!(head >> 4)) varint();
        skip(head & 15, depth + 1);
      }
    default:
      refuse(PM_DAMAGED, "its metadata has a field of unknown type");
  }
}

}  // namespace pagemerge
