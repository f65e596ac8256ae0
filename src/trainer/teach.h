// Writing a teacher store, and describing one.
#pragma once

#include "core/config.h"
#include "core/errors.h"
#include "parallel/communicator.h"

namespace maniple {

struct TeachOptions {
  bool rows_of_run = false;    // only the rows that train.steps of this config read
  bool estimate_only = false;  // say what it would take, write nothing
};

// Runs distill.teacher over the training rows of data.sources and writes the targets of
// distill.variant into distill.store; rows that the store has are left as they are, so it goes on
// after a kill and extends a store. Files are dealt to the ranks of slices x inner_dp; the same bytes
// for equal slice shape and micro-batch. Returns kOk, or kPreempted after a signal. Throws the errors
// of core/errors.h. Collective over `world`.
ExitCode teach(const Config& config, const TeachOptions& options,
               std::unique_ptr<Communicator> world);

// Throws ConfigError for a config that nothing can be taught with.
void check_teach_config(const Config& config);

// A folder that holds the header of a teacher store.
bool is_teacher_store(const std::string& path);
// What the store is and how much of the teacher it keeps, as a table on stdout; `verify` checks every
// hash first. Throws as TeacherStore.
void describe_teacher_store(const std::string& path, bool verify);
// How many tokens of the rows that both stores have got other targets, as a table on stdout: what
// another layout or micro-batch does, whose forward pass rounds otherwise. Throws as TeacherStore, and
// DataError for stores of other teachers or other choices of targets.
void compare_teacher_stores(const std::string& path, const std::string& against);

}  // namespace maniple
