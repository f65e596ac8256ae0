// Rows with their teacher's targets: a row source beside a teacher store.
#pragma once

#include <memory>

#include "data/teacher_store.h"

namespace maniple {

// Training rows carry Row::teacher; validation rows do not. Everything else is that of `rows`. The
// store must be of the same seq_len. row() throws DataError where the store lacks the row, is damaged,
// or does not mask the same tokens.
std::unique_ptr<RowSource> attach_teacher(std::unique_ptr<RowSource> rows,
                                          std::unique_ptr<TeacherStore> store);

}  // namespace maniple
