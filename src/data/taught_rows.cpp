#include "data/taught_rows.h"

#include "core/errors.h"

namespace maniple {
namespace {

class TaughtRows : public RowSource {
 public:
  TaughtRows(std::unique_ptr<RowSource> rows, std::unique_ptr<TeacherStore> store)
      : rows_(std::move(rows)), store_(std::move(store)) {}

  Row row(Split split, uint64_t number) const override {
    return split == Split::kTrain ? taught(rows_->row(split, number)) : rows_->row(split, number);
  }
  Row read(const SampleId& sample) const override { return taught(rows_->read(sample)); }
  SampleId sample_of(Split split, uint64_t number) const override {
    return rows_->sample_of(split, number);
  }
  std::vector<Source> sources() const override { return rows_->sources(); }
  int64_t num_rows(Split split) const override { return rows_->num_rows(split); }
  int64_t num_tokens() const override { return rows_->num_tokens(); }
  double bytes_per_token() const override { return rows_->bytes_per_token(); }
  uint64_t fingerprint() const override { return rows_->fingerprint(); }

 private:
  Row taught(Row row) const {
    row.teacher = store_->read(row.sample);
    for (size_t t = 0; t < row.target.size(); ++t)
      if ((row.target[t] >= 0) != (row.teacher.mass.at(t) != 0))
        throw DataError(fmt::format(
            "teacher store {} and the data disagree on whether token {} of row {} of source {:016x} "
            "has a target; write the store anew with maniple teach",
            store_->folder(), t, row.sample.row, row.sample.source));
    return row;
  }

  const std::unique_ptr<RowSource> rows_;
  const std::unique_ptr<TeacherStore> store_;
};

}  // namespace

std::unique_ptr<RowSource> attach_teacher(std::unique_ptr<RowSource> rows,
                                          std::unique_ptr<TeacherStore> store) {
  return std::make_unique<TaughtRows>(std::move(rows), std::move(store));
}

}  // namespace maniple
