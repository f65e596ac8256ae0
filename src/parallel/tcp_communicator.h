// The communicator between equal positions of different slices in an elastic job: the operations of
// communicator.h over the links of one epoch (links/link_set.h). Rank = index of the slice among
// the members. CPU tensors. When a link breaks, a deadline passes or a watchdog shuts the links
// down, every operation throws CommError until the next epoch has made new links: the caller
// poisons its attempt.
#pragma once

#include <memory>

#include "core/errors.h"
#include "kernels/exact_sum.h"
#include "links/link_set.h"
#include "parallel/communicator.h"

namespace maniple {

// Thrown by the wait of a reduce-scatter whose sums do not have the checksums of their addends. The
// links are good and in step; the attempt is suspect.
class ChecksumError : public CommError {
 public:
  using CommError::CommError;
};

struct TcpOptions {
  double deadline_s = 600;
  bool pack = true;   // lossless packed encoding where it pays
  bool check = true;  // linear checksums through the reductions
};

class TcpCommunicator : public Communicator {
 public:
  // links: connected; must outlive the communicator.
  TcpCommunicator(LinkSet& links, TcpOptions options);

  int rank() const override { return links_.self(); }
  int size() const override { return links_.size(); }

  std::unique_ptr<Work> begin_all_gather(const at::Tensor& in, at::Tensor& out) override;
  void all_gather_v(const at::Tensor& in, at::Tensor& out,
                    const std::vector<int64_t>& counts) override;
  void all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows, at::Tensor& out,
                    const std::vector<int64_t>& recv_rows) override;
  std::unique_ptr<Work> begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                             const std::vector<int64_t>& counts) override;
  void all_reduce(at::Tensor& int64_tensor) override;
  void broadcast(at::Tensor& tensor, int root) override;
  void barrier() override;
  void check() const override;
  void fail(const std::string& reason) override { links_.shutdown(reason); }
  // Refused with CommError: the members of an epoch are one group, which only an epoch changes.
  std::unique_ptr<Communicator> split(int color, int key) override;

  // Of the last reduce-scatter that was waited for: the checksums of all addends, per piece of
  // SumOperation::kPieceElements of this rank's part, and their key. A shadow compares its copy of
  // the reduced part with them. Empty without checks or with one member.
  struct SumCheck {
    uint32_t key = 0;
    std::vector<ExactChecksum> checksums;
  };
  const SumCheck& last_sum_check() const { return last_sum_check_; }

 private:
  class LinkWork;
  class SumWork;

  std::unique_ptr<Work> begin_gather(const at::Tensor& in, at::Tensor& out,
                                     const std::vector<int64_t>& counts);
  void run(std::shared_ptr<Operation> operation);

  LinkSet& links_;
  const TcpOptions options_;
  SumCheck last_sum_check_;
};

}  // namespace maniple
