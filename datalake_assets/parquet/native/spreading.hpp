// A dictionary page that becomes a PLAIN one, though some of its values come again, without being compressed anew.
#pragma once

#include "snappy.hpp"

namespace pagemerge {

// What comes again behind so many bytes of what is compressed: `size` bytes that are there `from` on, before them.
struct Again {
  size_t behind, from, size;
};

// Makes of compressed bytes the same with some that come again, in their order. Copies are the same copies, further
// back where something came between; what comes again are copies, too. Returns where elements begin in `to`.
size_t spread(View packed, size_t plain, const Numbers<Again>& again, Bytes& to);

}  // namespace pagemerge
