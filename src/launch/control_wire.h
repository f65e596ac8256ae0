// What the processes of an elastic job say on their control connections beside the messages of
// elastic/messages.h: the first frame of each connection and its answer, and what a rank and its
// agent tell each other. Frames and encoding are those of elastic/wire.h.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "elastic/messages.h"

namespace maniple {

enum class Role : uint8_t { kAgent, kRank, kLauncher, kOperator };
template <>
struct EnumLast<Role> {
  static constexpr Role value = Role::kOperator;
};

// The first frame from whoever connects. Nothing else is read before its token was found right.
struct ControlHello {
  std::string token;
  Role role = Role::kAgent;
  SliceId slice = 0;      // of an agent or a rank
  Life life = 0;          // of a rank; of an agent: the number of its start
  uint32_t position = 0;  // of a rank
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.token, s.role, s.slice, s.life, s.position);
  }
};
constexpr size_t kLongestHello = 256;

struct ControlAnswer {
  std::string refusal;  // empty: welcome
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.refusal);
  }
};

// --- Between a rank and its agent ----------------------------------------------------------------

// What a rank is doing; renews its part of the slice's lease.
struct RankBeat {
  Step step = 0;
  uint32_t attempt = 0, unit = 0;
  uint32_t phase = 0;  // of the step, as the trainer numbers them
  SliceProgress progress;
  std::optional<SliceStatus> status;  // of the slice; its leader knows it
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.step, s.attempt, s.unit, s.phase, s.progress, s.status);
  }
};
// The rank ends now, on purpose. A connection that ends without this is a death.
struct RankLeave {
  int32_t code = 0;
  std::string reason;  // why, if not in good order
  template <class Self, class F>
  static void fields(Self& s, F&& f) {
    f(s.code, s.reason);
  }
};
// The agent lives.
struct AgentBeat {
  template <class Self, class F>
  static void fields(Self&, F&&) {}
};
// To the leader: the agent reached the coordinator (anew); Membership wants to know.
struct CoordinatorReached {
  template <class Self, class F>
  static void fields(Self&, F&&) {}
};
// An Envelope travels between the leader and the coordinator, or is STOP or the verdict on its way
// to every rank.
using LocalMessage = std::variant<RankBeat, RankLeave, AgentBeat, CoordinatorReached, Envelope>;

// One frame each, and the payload of a frame. Anything but exactly one value of this version:
// nullopt.
std::string encode_hello(const ControlHello& hello);
std::optional<ControlHello> decode_control_hello(std::string_view payload);
std::string encode_control_answer(const ControlAnswer& answer);
std::optional<ControlAnswer> decode_control_answer(std::string_view payload);
// An agent says it to the coordinator some times in a lease, whatever its slice does, and hears it
// back: the line between them stands.
std::string encode_pulse();
bool is_pulse(std::string_view payload);
std::string encode_local(const LocalMessage& message);
std::optional<LocalMessage> decode_local(std::string_view payload);

}  // namespace maniple
