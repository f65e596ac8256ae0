// From the config to what a step minimises and where its targets come from.
#pragma once

#include "objectives/objective.h"
#include "trainer/step.h"

namespace maniple {

// `rows`, with the targets of distill.store attached where the config asks for it. Refuses a store
// that does not fit: values of the config, the vocabulary (ConfigError); tokenizer, contents of the
// data, rows that the run needs and the store lacks, damage (DataError); none at all (NoInputError).
std::unique_ptr<RowSource> attach_targets(const Config& config, const ModelConfig& student,
                                          std::unique_ptr<RowSource> rows);

// What the user should know about the attached targets, one line each.
std::vector<std::string> target_warnings(const Config& config, const RowSource& rows);

// Loads the teacher where one runs inside the step. Throws AgreedError. Collective over the world.
std::unique_ptr<Objective> make_objective(const Config& config, const ModelConfig& student,
                                          ProcessMesh& mesh);

// What made the ids of the data: "bytes", "file:<hash>" or "unknown".
std::string tokenizer_name(const Config& config);

// Throws ConfigError unless teacher and student have the same vocabulary.
void check_vocabulary(const std::string& teacher, int64_t teacher_size, int64_t student_size);

}  // namespace maniple
