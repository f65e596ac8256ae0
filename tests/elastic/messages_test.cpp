#include "elastic/messages.h"

#include <gtest/gtest.h>

#include "core/random.h"

namespace maniple {
namespace {

Prepare prepare_of(SliceId slice) {
  Prepare p{3, 4, 17, 1, slice, {}};
  p.report = {Health::kSuspect, false, 4096, {1, 2}, {3, 4}, {5, 6}, {7, 8}, kRequestStop};
  return p;
}

std::vector<Message> one_of_each() {
  const DecisionRecord record{17, Outcome::kSkip, {prepare_of(0), prepare_of(1)}};
  EpochDecision d;
  d.incarnation = 2;
  d.number = 5;
  d.lineage = 1;
  d.committed = 17;
  d.record = record;
  d.members = {{0, 1, 11}, {1, 3, 12}};
  d.addresses = {"10.0.0.1:4000", "[::1]:4001"};
  d.holds = {{3, 4}, {}};
  d.past = {{3, {{0, 1, 11}}}, {4, {{0, 1, 11}, {2, 2, 13}}}};
  d.watched = {0, 30};
  d.cause = "slice 2 is lost";
  return {AgentHello{9, 1, 2, true},
          Beat{{SlicePhase::kRunning, 5, 17}, {99, 2}},
          Dying{"why"},
          Exited{139, "why"},
          Register{{1, 2}, 3, 4, "host:1"},
          State{1, 17, record, prepare_of(0), {3, 4}, {{16, "{}"}, {17, ""}}},
          Ready{false, "block 3 differs", {{17, "x"}}},
          BrokenLink{2},
          Rows{{{1, "a"}, {2, "b"}}},
          Finished{{{3, "c"}}},
          CheckpointPart{16, 5, "json"},
          SdcFinding{7, "transient", "slice 1", {1, 2}, {3}, true},
          Launch{true},
          Kill{},
          Stop{19, true},
          Epoch{d},
          Run{},
          RowsAck{17},
          Query{},
          Dismiss{"drained"},
          Verdict{80, 17, "why"},
          Control{1, Command::kScale, 4},
          ControlReply{1, false, "no"},
          prepare_of(1)};
}

std::string payload_of(const Message& message) {
  const std::string frame = encode_message({7, 5, 1, 3, message});
  return std::string(read_frame(frame).payload);
}

TEST(Messages, EveryKindComesBackAsItWas) {
  const auto messages = one_of_each();
  ASSERT_EQ(messages.size(), std::variant_size_v<Message>);
  for (size_t i = 0; i < messages.size(); ++i) {
    ASSERT_EQ(messages[i].index(), i);
    const std::string payload = payload_of(messages[i]);
    const std::optional<Envelope> back = decode_message(payload);
    ASSERT_TRUE(back) << message_name(messages[i]);
    EXPECT_EQ(back->slice, 1u);
    EXPECT_EQ(back->life, 3u);
    EXPECT_EQ(payload_of(back->message), payload) << message_name(messages[i]);
  }
}

TEST(Messages, ShortAndLongPayloadsAreRefused) {
  for (const Message& message : one_of_each()) {
    const std::string payload = payload_of(message);
    for (size_t n = 0; n < payload.size(); ++n) EXPECT_FALSE(decode_message(payload.substr(0, n)));
    EXPECT_FALSE(decode_message(payload + '\0'));
  }
}

// What is accepted is exactly what the encoder would have written: one encoding per value.
TEST(Messages, RandomAndMutatedBytesAreRefusedOrCanonical) {
  const auto messages = one_of_each();
  uint64_t key = 1, accepted = 0;
  const auto draw = [&](uint64_t n) { return mix64(++key * kGolden) % n; };
  for (int round = 0; round < 100'000; ++round) {
    std::string bytes;
    if (round % 4 == 0) {
      bytes.resize(draw(200));
      for (char& c : bytes) c = static_cast<char>(draw(256));
      if (!bytes.empty()) bytes[0] = 1;  // the version
    } else {
      bytes = payload_of(messages[draw(messages.size())]);
      for (uint64_t n = 1 + draw(4); n > 0; --n) {
        const size_t at = draw(bytes.size());
        switch (draw(4)) {
          case 0:
            bytes[at] = static_cast<char>(draw(256));
            break;
          case 1:
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << draw(8)));
            break;
          case 2:
            bytes.erase(at, draw(8));
            break;
          default:
            bytes.insert(at, std::string(draw(8), static_cast<char>(draw(256))));
            break;
        }
        if (bytes.empty()) break;
      }
    }
    if (const auto envelope = decode_message(bytes)) {
      ++accepted;
      EXPECT_EQ(read_frame(encode_message(*envelope)).payload, bytes);
    }
  }
  EXPECT_GT(accepted, 1000u);  // the mutations reach behind the checks
}

TEST(Frames, DamagedAndOverlongFramesAreBad) {
  const std::string frame = make_frame("payload");
  EXPECT_EQ(read_frame(frame).payload, "payload");
  EXPECT_EQ(read_frame(frame + "more").size, frame.size());
  for (size_t n = 0; n < frame.size(); ++n)
    EXPECT_EQ(read_frame(frame.substr(0, n)).state, FrameState::kPartial);
  for (size_t at = 4; at < frame.size(); ++at) {
    std::string damaged = frame;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    EXPECT_EQ(read_frame(damaged).state, FrameState::kBad);
  }
  EXPECT_EQ(read_frame(frame, 6).state, FrameState::kBad);
  EXPECT_EQ(read_frame(std::string(64, '\0')).state, FrameState::kBad);
  EXPECT_EQ(read_frame(std::string(64, '\xff')).state, FrameState::kBad);
}

}  // namespace
}  // namespace maniple
