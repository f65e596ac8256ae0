#include "objectives/distillation.h"

#include "objectives/distill_loss.h"
#include "objectives/teacher_targets.h"

namespace maniple {
namespace {

class Distillation : public Objective {
 public:
  Distillation(const DistillConfig& config, const std::function<double(int64_t)>& alpha,
               std::unique_ptr<Teacher> teacher)
      : config_(config), alpha_of_(alpha), teacher_(std::move(teacher)) {}

  std::vector<std::string> names() const override {
    return {"loss", "ce_loss", "kd_loss", "kl_loss", "teacher_entropy", "distill_alpha"};
  }

  void begin_attempt(int64_t step) override {
    Objective::begin_attempt(step);
    alpha_ = alpha_of_(step);
  }

  at::Tensor loss(const MicroBatch& batch, const at::Tensor& h_TD, Parameter& head,
                  int64_t vocab_size, double scale, Communicator& tp) override {
    DistillTargets targets;
    if (config_.variant == "full") {
      targets.head = &teacher_->head();
      targets.h_TD = teacher_->hidden(batch);
    } else {
      targets.sparse = on_device(sparse(batch, vocab_size, tp), h_TD.device(), head.grad.scalar_type());
    }
    DistillSums sums;
    at::Tensor loss = distill_loss(h_TD, head, vocab_size, batch.target.view({-1}), targets, alpha_,
                                   config_.temperature, scale, tp, sums);
    add(sums.num_targets, {sums.loss, sums.ce, sums.kd, sums.kd - sums.entropy, sums.entropy,
                           alpha_ * static_cast<double>(sums.num_targets)});
    return loss;
  }

 private:
  SparseTargets sparse(const MicroBatch& batch, int64_t vocab_size, Communicator& tp) {
    if (!teacher_) return sparse_targets(batch.rows, config_);
    std::vector<Row> rows = batch.rows;
    std::vector<TeacherRow> taught = teacher_targets(teacher_->hidden(batch), teacher_->head(),
                                                     vocab_size, rows, target_spec(config_), tp);
    for (size_t r = 0; r < rows.size(); ++r) rows[r].teacher = std::move(taught[r]);
    return sparse_targets(rows, config_);
  }

  static SparseTargets on_device(const SparseTargets& t, const at::Device& device,
                                 at::ScalarType wide) {
    return {t.id.to(device), t.weight.to(device, wide), t.total.to(device, wide),
            t.rest.to(device, wide), t.entropy.to(device, wide)};
  }

  const DistillConfig config_;
  const std::function<double(int64_t)> alpha_of_;
  const std::unique_ptr<Teacher> teacher_;
  double alpha_ = 0;
};

}  // namespace

double ce_weight(const DistillConfig& config, int64_t step, int64_t num_steps, double lr,
                 double peak_lr) {
  if (config.schedule == "linear") {
    const double share = num_steps > 1
                             ? static_cast<double>(step - 1) / static_cast<double>(num_steps - 1)
                             : 0.0;
    return config.alpha + share * (config.alpha_end - config.alpha);
  }
  if (config.schedule == "lr") return 1 - (1 - config.alpha) * (peak_lr > 0 ? lr / peak_lr : 1);
  return config.alpha;
}

std::unique_ptr<Objective> make_distillation(const DistillConfig& config,
                                             const std::function<double(int64_t)>& alpha,
                                             std::unique_ptr<Teacher> teacher) {
  return std::make_unique<Distillation>(config, alpha, std::move(teacher));
}

}  // namespace maniple
