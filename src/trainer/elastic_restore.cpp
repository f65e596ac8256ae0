// From one epoch to the next: links, state, parameters.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "checkpoint/folders.h"
#include "parallel/device.h"
#include "parallel/tcp_communicator.h"
#include "trainer/agreement.h"
#include "trainer/elastic_slice_impl.h"

namespace maniple {

namespace {

constexpr uint32_t kRestoreAttempt = 1 << 20;

// A process that has none left can link to nobody, and those that wait for it accuse each other.
void require_a_descriptor() {
  const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    throw IoError(fmt::format("cannot link to the other slices: {}; raise the limit (ulimit -n)",
                              std::strerror(errno)));
  ::close(fd);
}

}  // namespace

void ElasticSlice::restore(const EpochDecision& decision, bool fresh) {
  drop_links();
  {
    std::lock_guard lock(mutex_);
    broken_.reset();
    decision_ = decision;
    note("restore", decision.number, decision.committed);
  }
  has_parameters_ = false;
  step_now_ = decision.committed;
  const bool is_linked = open_links(decision);
  progress();
  if (!is_linked) return;  // STOP has come
  links_->begin_attempt(static_cast<uint64_t>(decision.committed), kRestoreAttempt);
  if (!between([&] {
        mesh_.set_across(extend_to_device(
            std::make_unique<TcpCommunicator>(*links_, TcpOptions{.deadline_s = kDeadline}),
            mesh_.device()));
      }))
    return;
  step_.assign(rotation_ = 0);
  executions_.clear();
  if (fresh || decision.loads_checkpoint()) {
    model_.optimizer->forget();
    outliers_.clear();
    prepared_step_ = 0;
  }
  model_.optimizer->set_holders(holders(layout_, decision.members));
  progress();

  std::string trouble;
  if (decision.loads_checkpoint()) {
    try {
      agree(mesh_.in_slice(), [&] { load_start(decision.committed); });
    } catch (const AgreedError& error) {
      trouble = error.what();
    }
  }
  bool good = trouble.empty() && copy_blocks(decision) && share_small_state(decision, fresh);
  outliers_.quiet_for(5);
  has_parameters_ = good && gather_parameters();
  good = good && has_parameters_;
  if (config_.sdc.state) model_.optimizer->seal();
  std::optional<MetricRow> row;
  if (good && decision.record) {
    row = make_row();
    good = row.has_value();
  }
  {
    std::lock_guard lock(mutex_);
    if (good) note("restored", decision.number, decision.committed);
  }
  if (leads() && (good || !trouble.empty()))
    control_->on(RestoreDone{decision.number, good, trouble, row});
}

// A link set that stands, or nothing after STOP. Others may come to this epoch later.
bool ElasticSlice::open_links(const EpochDecision& d) {
  LinkConfig config;
  config.token = line_config_.token;
  config.incarnation = d.incarnation;
  config.epoch = d.number;
  config.position = static_cast<int>(mesh_.position());
  config.build = d.build.hex();
  config.self = d.index_of(line_config_.slice);
  config.connect_s = static_cast<double>(line_config_.timeouts.connect()) / kSecond;
  config.on_broken = [this, epoch = d.number](int slice, const std::string&) {
    note_broken(epoch, static_cast<SliceId>(slice));
  };
  for (size_t m = 0; m < d.members.size(); ++m) {
    std::string address = d.addresses[m];
    for (int64_t p = 0; p < mesh_.position(); ++p) address.erase(0, address.find(',') + 1);
    address = address.substr(0, address.find(','));
    const size_t colon = address.rfind(':');
    config.members.push_back({static_cast<int>(d.members[m].slice), address.substr(0, colon),
                              static_cast<uint16_t>(std::stoi(address.substr(colon + 1)))});
  }
  for (bool go_on = true; go_on;) {
    bool linked = false;
    auto links = std::make_unique<LinkSet>(link_progress_, listener_, config);
    LinkSet* open = links.get();
    {
      std::lock_guard lock(mutex_);
      links_ = std::move(links);
      if (halted_ >= d.number) links_->shutdown("STOP");
    }
    try {
      open->connect();
      linked = true;
    } catch (const CommError&) {
      // Not everybody is there yet, or STOP comes.
    }
    if (!linked) require_a_descriptor();
    if (all_agree(linked)) return true;
    go_on = all_agree(!halted());
    drop_links();
  }
  return false;
}

// Ended without the lock: the links' thread may be about to take it.
void ElasticSlice::drop_links() {
  mesh_.set_across(make_single_communicator());  // what was made of the links goes before them
  std::unique_ptr<LinkSet> links;
  std::lock_guard lock(mutex_);
  links.swap(links_);
}

// The state after step `committed`, from a checkpoint, from given weights or from random ones.
void ElasticSlice::load_start(Step committed) {
  for (MoeLayer* layer : model_.moe_layers) layer->router().reset();
  step_.applied_steps = 0;
  if (committed > 0) {
    const CheckpointInfo checkpoint =
        reopen_checkpoint(config_.run.dir + "/checkpoints/" + step_folder_name(committed));
    load_checkpoint(model_, checkpoint, true);
    step_.applied_steps = checkpoint.meta.at("applied_steps").get<int64_t>();
  } else {
    set_initial_weights(model_, config_);
  }
  state_step_ = committed;
}

// Every block that a member lacks, from one that has it.
bool ElasticSlice::copy_blocks(const EpochDecision& d) {
  const auto me = static_cast<int32_t>(d.index_of(line_config_.slice));
  const size_t members = d.members.size();
  std::vector<std::vector<int64_t>> give(members), take(members);
  for (const BlockCopy& copy : plan_copies(layout_, d)) {
    if (copy.from == me) give[copy.to].push_back(copy.block);
    if (copy.to == me) take[copy.from].push_back(copy.block);
  }
  ShardedAdamw& optimizer = *model_.optimizer;
  std::vector<at::Tensor> parts;
  std::vector<int64_t> sends, receives;
  for (size_t m = 0; m < members; ++m) {
    parts.push_back(optimizer.pack(give[m]));
    sends.push_back(parts.back().numel());
    receives.push_back(optimizer.packed_bytes(take[m]));
  }
  int64_t total = 0;
  for (const int64_t n : receives) total += n;
  at::Tensor received = at::empty({total}, parts[0].options());
  if (!between([&] { mesh_.across().all_to_all_v(at::cat(parts), sends, received, receives); }))
    return false;
  int64_t from = 0;
  for (size_t m = 0; m < members; ++m) {
    optimizer.unpack(take[m], received.narrow(0, from, receives[m]));
    from += receives[m];
  }
  optimizer.refresh_values();
  return true;
}

// What every rank has alike, from the lowest member that has it: applied steps, the sums of the
// last step, the router's state.
bool ElasticSlice::share_small_state(const EpochDecision& d, bool fresh) {
  if (d.loads_checkpoint()) return true;
  std::vector<int64_t> numbers = {step_.applied_steps};
  sums_.resize(step_.num_sums());
  numbers.insert(numbers.end(), sums_.begin(), sums_.end());
  const std::vector<double> history = outliers_.state();
  for (const double x : history) numbers.push_back(std::bit_cast<int64_t>(x));
  std::vector<at::Tensor> parts = {at::tensor(numbers, at::kLong).view(at::kByte)};
  for (MoeLayer* layer : model_.moe_layers)
    for (const at::Tensor* t : {&layer->router().bias, &layer->router().previous_f})
      parts.push_back(t->view(at::kByte).cpu());
  at::Tensor bytes = at::cat(parts);
  const auto giver = std::find_if(d.holds.begin(), d.holds.end(),
                                  [](const auto& held) { return !held.empty(); });
  const auto root = static_cast<int>(giver - d.holds.begin());
  if (!between([&] { mesh_.across().broadcast(bytes, root); })) return false;
  if (!fresh) return true;
  int64_t from = static_cast<int64_t>(parts[0].nbytes());
  const at::Tensor whole = bytes.narrow(0, 0, from).clone();
  const auto* n = reinterpret_cast<const int64_t*>(whole.const_data_ptr());
  step_.applied_steps = n[0];
  std::copy(n + 1, n + 1 + sums_.size(), sums_.begin());
  std::vector<double> history_there;
  for (size_t i = 0; i < history.size(); ++i)
    history_there.push_back(std::bit_cast<double>(n[1 + sums_.size() + i]));
  outliers_.set_state(history_there);
  for (MoeLayer* layer : model_.moe_layers)
    for (const at::Tensor* t : {&layer->router().bias, &layer->router().previous_f}) {
      const auto size = static_cast<int64_t>(t->nbytes());
      t->view(at::kByte).copy_(bytes.narrow(0, from, size));
      from += size;
    }
  state_step_ = d.committed;
  return true;
}

}  // namespace maniple
