#include "data/token_stream.h"

namespace maniple {

int64_t TokenStream::document_of(int64_t offset) const {
  int64_t low = 0, high = num_documents();  // start(low) <= offset < start(high)
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (document_start(middle) <= offset ? low : high) = middle;
  }
  return low;
}

}  // namespace maniple
