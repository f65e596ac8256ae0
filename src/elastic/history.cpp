#include "elastic/history.h"

#include <algorithm>

#include "core/errors.h"

namespace maniple {
namespace {

constexpr uint8_t kLogVersion = 2;

void apply_to(History& h, const StartedRecord& r) { h.incarnation = r.incarnation; }

void apply_to(History& h, const EpochRecord& r) {
  h.epoch = r.decision;
  h.committed = r.decision.committed;
  h.record = r.decision.record;
  h.paused = false;
  h.rows_to_drop = r.decision.loads_checkpoint();
  if (r.decision.loads_checkpoint()) {
    h.suspect = false;
    h.published = r.decision.committed;
    std::erase_if(h.unverified, [&](Step step) { return step > h.published; });
  }
  h.past = r.decision.past;
  h.past.push_back({r.decision.number, r.decision.members});
  for (size_t m = 0; m < r.decision.watched.size(); ++m) {
    SlotHistory& slot = h.slots[r.decision.members[m].slice];
    slot.burn_in = false;
    slot.watched = r.decision.watched[m];
  }
}

void apply_to(History& h, const PausedRecord& r) {
  h.committed = r.committed;
  h.record = r.record;
  h.paused = true;
}

void apply_to(History& h, const LaunchRecord& r) {
  h.slots[r.slice].life = r.life;
  h.slots[r.slice].failures = r.failures;
}

void apply_to(History& h, const SlotRecord& r) {
  SlotHistory& slot = h.slots[r.slice];
  if (slot.banned && !r.banned) {
    slot.strikes = 0;
    slot.burn_in |= slot.code == static_cast<int32_t>(ExitCode::kUnhealthy);
  }
  slot.banned = r.banned;
  slot.drained = r.drained;
  slot.code = r.code;
}

void apply_to(History& h, const StrikeRecord& r) { ++h.slots[r.slice].strikes; }

void apply_to(History& h, const WishRecord& r) {
  h.target = r.target;
  h.hold = r.hold;
}

void apply_to(History& h, const RowsDroppedRecord&) { h.rows_to_drop = false; }

void apply_to(History& h, const PublishedRecord& r) {
  h.published = std::max(h.published, r.step);
  if (r.step > h.verified) h.unverified.push_back(r.step);
}

void apply_to(History& h, const SuspectRecord&) { h.suspect = true; }

void apply_to(History& h, const VerifiedRecord& r) {
  h.verified = r.step;
  std::erase_if(h.unverified, [&](Step step) { return step <= r.step; });
}

void apply_to(History& h, const VerdictRecord& r) {
  h.verdict = r.verdict;
  h.last_rows = r.rows;
  if (r.verdict.code == 0) h.committed = r.verdict.committed;
}

}  // namespace

void History::apply(const LogRecord& record) {
  std::visit([this](const auto& r) { apply_to(*this, r); }, record);
}

const PastEpoch* History::find_past(EpochNumber number) const {
  for (const PastEpoch& p : past)
    if (p.number == number) return &p;
  return nullptr;
}

std::string encode_record(const LogRecord& record) {
  WireEncoder encoder;
  encoder(kLogVersion, record);
  return encoder.take();
}

std::optional<LogRecord> decode_record(std::string_view payload) {
  WireDecoder decoder(payload);
  uint8_t version = 0;
  LogRecord record;
  decoder(version, record);
  if (!decoder.done() || version != kLogVersion) return std::nullopt;
  return record;
}

}  // namespace maniple
