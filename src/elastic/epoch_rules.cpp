#include "elastic/epoch_rules.h"

#include <algorithm>
#include <set>

namespace maniple {
namespace {

bool counts(const History& history, const State& state) {
  return history.epoch && state.lineage == history.epoch->lineage && !state.holds.empty();
}

// Whether this PREPARE is one of those that committed the step of `record`.
bool belongs(const Prepare& prepared, const DecisionRecord& record) {
  return std::find(record.prepares.begin(), record.prepares.end(), prepared) !=
         record.prepares.end();
}

}  // namespace

Settlement settle(const History& history, const std::map<SliceId, State>& answers) {
  Settlement result{history.committed, history.record};
  for (const auto& [slice, state] : answers) {
    const bool proven = state.record && state.record->step == state.committed;
    if (counts(history, state) && proven && state.committed > result.committed)
      result = {state.committed, state.record};
  }
  return result;
}

std::vector<EpochNumber> usable_holds(const History& history, const Settlement& settlement,
                                      const State& state) {
  if (!counts(history, state)) return {};
  const bool has_it = state.committed == settlement.committed;
  const bool can_finish = state.committed + 1 == settlement.committed && settlement.record &&
                          state.prepared && belongs(*state.prepared, *settlement.record);
  if (!has_it && !can_finish) return {};
  std::vector<EpochNumber> holds;
  for (const EpochNumber number : state.holds)
    if (history.find_past(number)) holds.push_back(number);
  return holds;
}

EpochDecision next_epoch(const History& history, const BlockLayout& layout,
                         const std::map<SliceId, State>& answers,
                         const std::vector<Candidate>& survivors,
                         const std::vector<Candidate>& newcomers, const Fingerprint& build,
                         const std::string& cause) {
  const Settlement settlement = settle(history, answers);
  std::map<SliceId, std::pair<Candidate, std::vector<EpochNumber>>> members;
  for (const Candidate& c : survivors) {
    const auto answer = answers.find(c.member.slice);
    members[c.member.slice] = {c, answer == answers.end()
                                      ? std::vector<EpochNumber>{}
                                      : usable_holds(history, settlement, answer->second)};
  }
  for (const Candidate& c : newcomers) members[c.member.slice] = {c, {}};

  EpochDecision d;
  d.incarnation = history.incarnation;
  d.number = history.number() + 1;
  d.lineage = history.epoch ? history.epoch->lineage : d.number;
  d.committed = settlement.committed;
  d.record = settlement.record;
  d.build = build;
  d.cause = cause;
  std::set<EpochNumber> mentioned;
  for (const auto& [slice, entry] : members) {
    d.members.push_back(entry.first.member);
    d.addresses.push_back(entry.first.address);
    d.holds.push_back(entry.second);
    mentioned.insert(entry.second.begin(), entry.second.end());
  }
  for (const EpochNumber number : mentioned) d.past.push_back(*history.find_past(number));
  if (d.number == 1 || history.suspect || lost_block(layout, d)) {
    d.lineage = d.number;
    d.committed = history.suspect ? history.verified : history.published;
    d.record.reset();
    d.past.clear();
    d.holds.assign(d.members.size(), {});
  }
  return d;
}

}  // namespace maniple
