#include "parallel/tcp_communicator.h"

#include <cstring>

#include "links/move_operation.h"
#include "parallel/sum_operation.h"

namespace maniple {
namespace {

// Up to here an all-reduce gathers everything and adds; beyond, it scatters the sums first.
constexpr int64_t kSmallSumBytes = 16 << 10;

void check_tensor(const at::Tensor& t) {
  MANIPLE_INVARIANT(t.device().is_cpu() && t.is_contiguous(),
                    "links move contiguous tensors of the CPU");
}

std::span<const uint8_t> bytes_of(const at::Tensor& t) {
  check_tensor(t);
  return {static_cast<const uint8_t*>(t.const_data_ptr()), t.nbytes()};
}

std::span<uint8_t> writable_bytes_of(const at::Tensor& t) {
  check_tensor(t);
  return {static_cast<uint8_t*>(t.data_ptr()), t.nbytes()};
}

void copy(std::span<const uint8_t> from, std::span<uint8_t> to) {
  MANIPLE_INVARIANT(from.size() == to.size(), "{} bytes for a place of {}", from.size(), to.size());
  if (!from.empty() && from.data() != to.data()) std::memcpy(to.data(), from.data(), from.size());
}

// Consecutive parts of rows[r] * row_bytes each.
template <typename Byte>
std::vector<std::span<Byte>> parts(std::span<Byte> whole, const std::vector<int64_t>& rows,
                                   int64_t row_bytes) {
  std::vector<std::span<Byte>> result;
  size_t at = 0;
  for (const int64_t n : rows) {
    const auto bytes = static_cast<size_t>(n * row_bytes);
    MANIPLE_INVARIANT(n >= 0 && bytes <= whole.size() - at, "parts beyond {} bytes", whole.size());
    result.push_back(whole.subspan(at, bytes));
    at += bytes;
  }
  MANIPLE_INVARIANT(at == whole.size(), "parts of {} bytes in a tensor of {}", at, whole.size());
  return result;
}

int64_t row_bytes(const at::Tensor& t) {
  int64_t bytes = static_cast<int64_t>(t.element_size());
  for (int64_t d = 1; d < t.dim(); ++d) bytes *= t.size(d);
  return bytes;
}

}  // namespace

class TcpCommunicator::LinkWork : public Work {
 public:
  LinkWork(TcpCommunicator& comm, std::shared_ptr<Operation> operation)
      : comm_(comm), operation_(std::move(operation)) {
    comm_.links_.start(operation_);
  }
  // Without a wait (an exception passes by) the tensors must not be touched any more.
  ~LinkWork() override {
    if (!waited_) comm_.links_.abandon(*operation_);
  }
  void wait() override {
    waited_ = true;
    comm_.links_.wait(*operation_, comm_.options_.deadline_s);
  }

 protected:
  TcpCommunicator& comm_;

 private:
  std::shared_ptr<Operation> operation_;
  bool waited_ = false;
};

class TcpCommunicator::SumWork : public LinkWork {
 public:
  SumWork(TcpCommunicator& comm, std::shared_ptr<SumOperation> sum, uint32_t key)
      : LinkWork(comm, sum), sum_(std::move(sum)), key_(key) {}
  void wait() override {
    LinkWork::wait();
    comm_.last_sum_check_ = {key_, sum_->checksums()};
    if (sum_->wrong_pieces().empty()) return;
    throw ChecksumError(fmt::format(
        "reduce-scatter between slices: {} of {} pieces of the sum do not have the checksum of "
        "their addends (the first is piece {}): a device or its memory is at fault",
        sum_->wrong_pieces().size(), sum_->checksums().size(), sum_->wrong_pieces()[0]));
  }

 private:
  std::shared_ptr<SumOperation> sum_;
  const uint32_t key_;
};

TcpCommunicator::TcpCommunicator(LinkSet& links, TcpOptions options)
    : links_(links), options_(options) {}

void TcpCommunicator::run(std::shared_ptr<Operation> operation) {
  LinkWork(*this, std::move(operation)).wait();
}

std::unique_ptr<Work> TcpCommunicator::begin_gather(const at::Tensor& in, at::Tensor& out,
                                                    const std::vector<int64_t>& counts) {
  const auto places =
      parts(writable_bytes_of(out), counts, static_cast<int64_t>(out.element_size()));
  const auto mine = bytes_of(in);
  copy(mine, places[rank()]);
  const std::vector<std::span<const uint8_t>> send(size(), mine);
  return std::make_unique<LinkWork>(*this, std::make_shared<MoveOperation>(rank(), send, places));
}

std::unique_ptr<Work> TcpCommunicator::begin_all_gather(const at::Tensor& in, at::Tensor& out) {
  return begin_gather(in, out, std::vector<int64_t>(size(), in.numel()));
}

void TcpCommunicator::all_gather_v(const at::Tensor& in, at::Tensor& out,
                                   const std::vector<int64_t>& counts) {
  begin_gather(in, out, counts)->wait();
}

void TcpCommunicator::all_to_all_v(const at::Tensor& in, const std::vector<int64_t>& send_rows,
                                   at::Tensor& out, const std::vector<int64_t>& recv_rows) {
  const auto send = parts(bytes_of(in), send_rows, row_bytes(in));
  const auto receive = parts(writable_bytes_of(out), recv_rows, row_bytes(out));
  copy(send[rank()], receive[rank()]);
  run(std::make_shared<MoveOperation>(rank(), send, receive));
}

std::unique_ptr<Work> TcpCommunicator::begin_reduce_scatter(const at::Tensor& in, at::Tensor& out,
                                                            const std::vector<int64_t>& counts) {
  const auto mine = bytes_of(in);
  const auto sum = writable_bytes_of(out);
  MANIPLE_INVARIANT(in.scalar_type() == at::kLong && out.scalar_type() == at::kLong,
                    "sums between slices are int64");
  if (size() == 1) copy(mine, sum);
  SumOptions options;
  options.pack = options_.pack;
  options.check = options_.check && size() > 1;
  options.key = exact_mix32(static_cast<uint32_t>(links_.step()) * 0x9e3779b9u ^
                            links_.attempt() * 0x85ebca6bu ^ links_.next_sequence());
  return std::make_unique<SumWork>(
      *this,
      std::make_shared<SumOperation>(
          rank(), std::span(reinterpret_cast<const int64_t*>(mine.data()), mine.size() / 8),
          std::span(reinterpret_cast<int64_t*>(sum.data()), sum.size() / 8), counts, options),
      options.key);
}

void TcpCommunicator::all_reduce(at::Tensor& t) {
  if (size() == 1) return;
  const int64_t n = t.numel();
  if (static_cast<int64_t>(t.nbytes()) <= kSmallSumBytes) {
    at::Tensor all = at::empty({size() * n}, t.options());
    begin_all_gather(t, all)->wait();
    auto* sum = static_cast<uint64_t*>(t.data_ptr());
    const auto* from = static_cast<const uint64_t*>(all.const_data_ptr());
    std::fill(sum, sum + n, 0);
    for (int64_t i = 0; i < size() * n; ++i) sum[i % n] += from[i];
    return;
  }
  std::vector<int64_t> counts;
  for (int64_t r = 0; r < size(); ++r) counts.push_back((r + 1) * n / size() - r * n / size());
  at::Tensor part = at::empty({counts[rank()]}, t.options());
  begin_reduce_scatter(t.view({n}), part, counts)->wait();
  all_gather_v(part, t, counts);
}

void TcpCommunicator::broadcast(at::Tensor& t, int root) {
  const bool sends = rank() == root;
  const auto whole = writable_bytes_of(t);
  std::vector<std::span<const uint8_t>> send(size());
  std::vector<std::span<uint8_t>> receive(size());
  if (sends)
    send.assign(size(), whole);
  else
    receive[root] = whole;
  run(std::make_shared<MoveOperation>(rank(), std::move(send), std::move(receive)));
}

void TcpCommunicator::barrier() {
  run(std::make_shared<MoveOperation>(rank(), std::vector<std::span<const uint8_t>>(size()),
                                      std::vector<std::span<uint8_t>>(size()), true));
}

void TcpCommunicator::check() const {
  if (const std::string broken = links_.broken(); !broken.empty()) throw CommError(broken);
}

std::unique_ptr<Communicator> TcpCommunicator::split(int, int) {
  throw CommError(
      "splitting the links between slices: the members of an epoch are one group; make "
      "groups inside a slice from its own communicator");
}

}  // namespace maniple
