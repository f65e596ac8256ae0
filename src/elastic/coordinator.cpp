#include "elastic/coordinator.h"

#include <algorithm>
#include <limits>

namespace maniple {
namespace {
constexpr Step kNoLimit = std::numeric_limits<Step>::max();
}

const char* phase_name(CoordinatorPhase phase) {
  static constexpr const char* kNames[] = {"Forming",    "Running",   "Stopping",
                                           "Collecting", "Restoring", "Paused",
                                           "Finishing",  "Done",      "Failed"};
  return kNames[static_cast<size_t>(phase)];
}

Coordinator::Coordinator(const CoordinatorConfig& config, const History& history, Step rows_written)
    : config_(config), history_(history), rows_(rows_written) {
  for (SliceId s = 0; s < config_.num_slots(); ++s) {
    Slot& slot = slots_[s];
    const auto at = history_.slots.find(s);
    const SlotHistory past = at == history_.slots.end() ? SlotHistory{} : at->second;
    slot.failures = past.failures;
    if (past.life == 0) continue;
    const bool member = history_.epoch && history_.epoch->has(s, past.life);
    slot.stage = member ? Stage::kMember : Stage::kLaunched;
  }
  if (!history_.epoch) return;
  build_ = history_.epoch->build;
  max_step_ = history_.committed;
  for (size_t m = 0; m < history_.epoch->members.size(); ++m) {
    const Member& member = history_.epoch->members[m];
    if (!is_member(member.slice)) continue;
    slots_.at(member.slice).registration =
        Register{build_, config_.config_hash, member.host, history_.epoch->addresses[m]};
  }
}

// What the job inherits, as far as a crash has kept it from the log.
void Coordinator::inherit() {
  for (const SliceId slice : config_.burn_in) {
    const auto at = history_.slots.find(slice);
    if (at != history_.slots.end() && at->second.burn_in) continue;
    const auto code = static_cast<int32_t>(ExitCode::kUnhealthy);
    for (const bool banned : {true, false})
      append(SlotRecord{slice, banned, false, code, "quarantined in an earlier job"});
  }
  for (const auto& [slice, strikes] : config_.strikes)
    while (history_.slots[slice].strikes < strikes)
      append(StrikeRecord{slice, "a wrong result in an earlier job"});
  if (history_.published >= config_.first) return;
  append(VerifiedRecord{config_.first_verified});
  append(PublishedRecord{config_.first});
}

std::vector<CoordinatorAction> Coordinator::start(Time now) {
  actions_.clear();
  now_ = phase_since_ = now;
  append(StartedRecord{history_.incarnation + 1});
  grant_leases();
  if (!history_.epoch) inherit();
  if (history_.rows_to_drop) drop_rows();
  if (history_.verdict) {
    set_phase(history_.verdict->code == 0 ? CoordinatorPhase::kDone : CoordinatorPhase::kFailed);
    receive_rows(0, history_.last_rows, history_.committed);
  } else if (!history_.epoch) {
    set_phase(CoordinatorPhase::kForming);
  } else if (history_.paused) {
    stop_at_once("the coordinator was started again while the job was paused");
  } else {
    // Whether RUN was sent is not known. Members that train will say so, others answer READY.
    set_phase(CoordinatorPhase::kRestoring);
    const std::vector<Member>& members = history_.epoch->members;
    const auto lost = std::find_if(members.begin(), members.end(),
                                   [this](const Member& m) { return !is_member(m.slice); });
    if (lost == members.end())
      send_members(Epoch{*history_.epoch});
    else  // its slot has begun another life, so nobody will speak of this one again
      stop_at_once(fmt::format("slice {} was lost before the coordinator was started again", lost->slice));
  }
  advance();
  return std::move(actions_);
}

std::vector<CoordinatorAction> Coordinator::on(const CoordinatorEvent& event, Time now) {
  actions_.clear();
  const bool late = now - now_ > config_.timeouts.late();
  now_ = std::max(now_, now);
  if (late) grant_leases();
  if (const auto* received = std::get_if<Received>(&event)) {
    receive(received->envelope);
  } else if (const auto* failing = std::get_if<SliceDying>(&event)) {
    if (slots_.contains(failing->slice) && failing->life == life_of(failing->slice)) {
      slots_.at(failing->slice).agent = 0;  // nothing is launched before the next one is here
      dying(failing->slice, failing->reason);
    }
  } else if (const auto* lost = std::get_if<SliceLost>(&event)) {
    if (slots_.contains(lost->slice) && lost->life == life_of(lost->slice)) {
      slots_.at(lost->slice).agent = 0;
      ended(lost->slice, 0, lost->reason);
    }
  } else if (const auto* published = std::get_if<CheckpointPublished>(&event)) {
    // One that a crash kept from being logged may lie ahead of a rollback: its rows come again.
    const bool reached = published->step <= rows_.written();
    if (published->step > history_.published && reached) append(PublishedRecord{published->step});
  } else if (const auto* request = std::get_if<OperatorRequest>(&event)) {
    operate(request->control);
  }
  advance();
  return std::move(actions_);
}

void Coordinator::receive(const Envelope& envelope) {
  const SliceId slice = envelope.slice;
  const auto slot = slots_.find(slice);
  // A message of a later incarnation is for another coordinator; facts of an earlier one hold.
  if (slot == slots_.end() || envelope.incarnation > history_.incarnation) return;
  if (const auto* hello = std::get_if<AgentHello>(&envelope.message))
    return receive_agent_hello(slice, *hello);
  if (slot->second.stage == Stage::kLaunched && envelope.life < life_of(slice) &&
      now_ - slot->second.nudged_at >= config_.timeouts.resend()) {
    // Its agent still runs the life before.
    slot->second.nudged_at = now_;
    launch(slice);
  }
  if (envelope.life == 0 || envelope.life != life_of(slice)) return;
  if (const auto* failing = std::get_if<Dying>(&envelope.message))
    return dying(slice, failing->reason);
  if (const auto* exited = std::get_if<Exited>(&envelope.message))
    return ended(slice, exited->code,
                 fmt::format("it exited with {}{}{}", exited->code,
                             exited->reason.empty() ? "" : ": ", exited->reason));
  slot->second.heard_at = now_;
  slot->second.suspected = false;
  if (const auto* beat = std::get_if<Beat>(&envelope.message)) return receive_beat(slice, *beat);
  if (const auto* r = std::get_if<Register>(&envelope.message)) return receive_register(slice, *r);
  if (const auto* rows = std::get_if<Rows>(&envelope.message)) {
    const bool fresh = envelope.epoch == history_.number() && is_member(slice);
    return receive_rows(slice, rows->rows, fresh ? kNoLimit : history_.committed);
  }
  if (envelope.epoch == history_.number() && is_member(slice)) receive_from_member(envelope);
}

void Coordinator::receive_agent_hello(SliceId slice, const AgentHello& hello) {
  Slot& slot = slots_.at(slice);
  const bool same_agent = slot.agent == hello.agent;
  slot.agent = hello.agent;
  slot.host = hello.host;
  if (history_.verdict) return send(slice, *history_.verdict);
  if (hello.alive && hello.life == life_of(slice)) {
    if (slot.stage == Stage::kDoomed || slot.stage == Stage::kIdle) send(slice, Kill{});
  } else if (slot.stage == Stage::kLaunched && same_agent && hello.life < life_of(slice)) {
    launch(slice);  // it has not heard of it
  } else {
    // A launch that was never seen to start is nobody's fault.
    if (slot.stage == Stage::kLaunched && slot.launched_at == 0) slot.blameless = true;
    ended(slice, 0, "its agent does not run it");
  }
}

void Coordinator::receive_beat(SliceId slice, const Beat& beat) {
  Slot& slot = slots_.at(slice);
  slot.watch.see(beat.progress, now_);
  slot.unit_time = static_cast<Time>(beat.progress.unit_us);
  const SliceStatus& status = beat.status;
  if (slot.stage == Stage::kLaunched && status.phase != SlicePhase::kWaiting)
    doom(slice, "it belongs to an epoch that is over", false);
  if (slot.stage == Stage::kMember && status.epoch == history_.number()) {
    max_step_ = std::max(max_step_, status.committed);
    const bool trains =
        status.phase == SlicePhase::kRunning || status.phase == SlicePhase::kFinished;
    if (phase_ == CoordinatorPhase::kRestoring && trains) run();
    if (phase_ != CoordinatorPhase::kCollecting && phase_ != CoordinatorPhase::kStopping && phase_ != CoordinatorPhase::kPaused &&
        !history_.verdict && status.phase == SlicePhase::kStopped)
      stop_at_once(fmt::format("slice {} has stopped", slice));
  }
  if (now_ - slot.nudged_at >= config_.timeouts.resend()) nudge(slice, status);
}

// Repeats what the slice seems not to have heard.
void Coordinator::nudge(SliceId slice, const SliceStatus& status) {
  Slot& slot = slots_.at(slice);
  slot.nudged_at = now_;
  if (history_.verdict) return send(slice, *history_.verdict);
  if (slot.stage == Stage::kDoomed || slot.stage == Stage::kIdle) {
    send(slice, Dismiss{"no member"});
    if (slot.stage == Stage::kDoomed) send(slice, Kill{});
    return;
  }
  if (slot.stage == Stage::kLaunched) return send(slice, Query{});
  if (slot.stage != Stage::kMember) return;
  const bool here = status.epoch == history_.number();
  switch (phase_) {
    case CoordinatorPhase::kStopping:
    case CoordinatorPhase::kCollecting:
      if (!answers_.contains(slice)) send(slice, Stop{stop_after_, history_.hold});
      break;
    case CoordinatorPhase::kRestoring:
      if (!ready_.contains(slice) && !(here && status.phase == SlicePhase::kRestoring))
        send(slice, Epoch{*history_.epoch});
      break;
    case CoordinatorPhase::kRunning:
    case CoordinatorPhase::kFinishing:
      if (here && status.phase == SlicePhase::kReady) send(slice, Run{});
      if (here && status.phase == SlicePhase::kFinished && !finished_.contains(slice))
        send(slice, Query{});
      break;
    default:
      break;
  }
}

void Coordinator::receive_register(SliceId slice, const Register& registration) {
  Slot& slot = slots_.at(slice);
  if (history_.verdict) return send(slice, *history_.verdict);
  if (slot.stage != Stage::kLaunched && slot.stage != Stage::kWaiting) return;
  if (registration.config_hash != config_.config_hash ||
      (history_.epoch && registration.build != build_)) {
    const char* what = registration.config_hash != config_.config_hash ? "config" : "build";
    const std::string reason = fmt::format(
        "slice {} has another {} than the job; start it with the same one", slice, what);
    ban(slice, static_cast<int32_t>(ExitCode::kConfig), reason);
    return doom(slice, reason, false);
  }
  slot.stage = Stage::kWaiting;
  slot.registration = registration;
}

void Coordinator::receive_from_member(const Envelope& envelope) {
  const SliceId slice = envelope.slice;
  const bool active = phase_ != CoordinatorPhase::kPaused && !history_.verdict;
  if (const auto* state = std::get_if<State>(&envelope.message)) {
    if (!active) return;
    answers_[slice] = *state;
    if (phase_ == CoordinatorPhase::kStopping) set_phase(CoordinatorPhase::kCollecting);
    if (phase_ != CoordinatorPhase::kCollecting) stop_at_once(fmt::format("slice {} has stopped", slice));
  } else if (const auto* ready = std::get_if<Ready>(&envelope.message)) {
    if (phase_ != CoordinatorPhase::kRestoring) return;
    if (!ready->ok) return lose_member(slice, "it cannot restore: " + ready->reason);
    receive_rows(slice, ready->open_rows, history_.committed);
    ready_.insert(slice);
  } else if (const auto* link = std::get_if<BrokenLink>(&envelope.message)) {
    if (!active || link->peer == slice || history_.epoch->index_of(link->peer) < 0) return;
    // After STOP the links are shut down, and who has not heard of it takes that for a break.
    if (phase_ == CoordinatorPhase::kCollecting && !stop_after_) return;
    broken_.insert(slice_pair(slice, link->peer));
    stop_at_once(fmt::format("the link between {} and {} broke", slice, link->peer));
  } else if (const auto* finished = std::get_if<Finished>(&envelope.message)) {
    if (phase_ == CoordinatorPhase::kRestoring) run();
    if (phase_ != CoordinatorPhase::kRunning && phase_ != CoordinatorPhase::kFinishing) return;
    max_step_ = config_.last_step;
    finished_[slice] = finished->open_rows;
    set_phase(CoordinatorPhase::kFinishing);
  } else if (const auto* part = std::get_if<CheckpointPart>(&envelope.message)) {
    receive_part(slice, *part);
  } else if (const auto* sdc = std::get_if<SdcFinding>(&envelope.message)) {
    if (active) receive_finding(*sdc);
  }
}

void Coordinator::receive_finding(const SdcFinding& sdc) {
  note("sdc_" + sdc.finding, fmt::format("step {}: {}", sdc.step, sdc.text));
  if (sdc.suspect && !history_.suspect) append(SuspectRecord{sdc.step, sdc.text});
  for (const SliceId slice : sdc.strikes)
    if (slots_.contains(slice)) strike(slice, sdc.text);
  for (const SliceId slice : sdc.quarantine) {
    if (!is_member(slice)) continue;
    ban(slice, static_cast<int32_t>(ExitCode::kUnhealthy),
        fmt::format("slice {} is quarantined: it computes wrongly", slice));
    lose_member(slice, sdc.text);
  }
}

void Coordinator::receive_rows(SliceId slice, const std::vector<MetricRow>& rows, Step limit) {
  const RowBook::Result result = rows_.accept(rows, limit);
  for (const MetricRow& row : result.write) actions_.push_back(WriteRow{row});
  for (const Step step : result.differing)
    note("row_differs",
         fmt::format("step {}: slice {} sent another row than was written", step, slice));
  const RowsAck ack{rows_.written()};
  if (!result.write.empty()) {
    send_members(ack);
    publish_complete_checkpoint();
    verify_checkpoints();
  } else if (!rows.empty()) {
    send(slice, ack);
  }
}

void Coordinator::receive_part(SliceId slice, const CheckpointPart& part) {
  if (part.step <= history_.published || part.epoch != history_.number()) return;
  std::erase_if(parts_,
                [&](const Part& p) { return p.slice == slice && p.part.step == part.step; });
  parts_.push_back({slice, part});
  publish_complete_checkpoint();
}

// A checkpoint counts when all members of one epoch wrote their parts in it and the rows up to it
// are on disk, which also says that its step is stable.
void Coordinator::publish_complete_checkpoint() {
  std::map<Step, std::map<SliceId, std::string>> complete;
  for (const Part& p : parts_)
    if (p.part.step <= rows_.written()) complete[p.part.step][p.slice] = p.part.manifest;
  for (const auto& [step, by_slice] : complete) {
    if (by_slice.size() != history_.epoch->members.size()) continue;
    PublishCheckpoint publish{step, {}, config_.verify_after ? history_.verified : step};
    for (const auto& [slice, manifest] : by_slice) publish.parts.push_back(manifest);
    actions_.push_back(publish);
    std::erase_if(parts_, [step = step](const Part& p) { return p.part.step <= step; });
  }
}

// A slice that computes wrongly is found within verify_after steps.
void Coordinator::verify_checkpoints() {
  Step verified = history_.verified;
  for (const Step step : history_.unverified)
    if (step + config_.verify_after <= rows_.written()) verified = std::max(verified, step);
  if (verified > history_.verified && !history_.suspect) append(VerifiedRecord{verified});
}

Life Coordinator::life_of(SliceId slice) const {
  const auto at = history_.slots.find(slice);
  return at == history_.slots.end() ? 0 : at->second.life;
}

void Coordinator::set_phase(CoordinatorPhase phase) {
  if (phase_ != phase) phase_since_ = now_;
  phase_ = phase;
}

void Coordinator::append(const LogRecord& record) {
  history_.apply(record);
  actions_.push_back(Append{record});
}

void Coordinator::send(SliceId slice, const Message& message) {
  actions_.push_back(
      Send{{history_.incarnation, history_.number(), slice, life_of(slice), message}});
}

void Coordinator::send_members(const Message& message) {
  for (auto& [slice, slot] : slots_) {
    if (slot.stage != Stage::kMember) continue;
    slot.nudged_at = now_;
    send(slice, message);
  }
}

void Coordinator::note(const std::string& event, const std::string& text) {
  actions_.push_back(Note{event, text});
}

}  // namespace maniple
