#include "trainer/elastic_order.h"

namespace maniple {

Order order_for(const MembershipAction& action) {
  using Kind = Order::Kind;
  Order order;
  if (const auto* start = std::get_if<StartAttempt>(&action)) {
    order.kind = Kind::kAttempt;
    order.epoch = start->epoch;
    order.step = start->step;
    order.attempt = start->attempt;
    order.execution = start->execution;
  } else if (const auto* update = std::get_if<ApplyUpdate>(&action)) {
    order.kind = Kind::kUpdate;
    order.record = update->record;
  } else if (const auto* restore = std::get_if<Restore>(&action)) {
    order.kind = Kind::kRestore;
    order.decision = restore->decision;
    order.fresh = restore->fresh;
  } else if (std::holds_alternative<DropOldCopies>(action)) {
    order.kind = Kind::kDrop;
  } else if (const auto* halt = std::get_if<Halt>(&action); halt && halt->save) {
    order.kind = Kind::kSave;
  } else if (const auto* leave = std::get_if<Leave>(&action)) {
    order.kind = Kind::kLeave;
    order.code = leave->code;
  }
  return order;
}

}  // namespace maniple
