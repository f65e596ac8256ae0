#include "links/wire.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "links/message_hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace maniple {
namespace {

const Hello kHello = {"a secret", 3, 7, 2, 0, 5, "x86 avx512"};

FrameHeader header() {
  FrameHeader h;
  h.bytes = 12345;
  h.incarnation = 1;
  h.epoch = 2;
  h.step = 1ull << 40;
  h.attempt = 3;
  h.sequence = 4;
  h.piece = 5;
  h.encoding = 2;
  h.note = {~0ull, 9};
  h.payload_hash = 77;
  return h;
}

TEST(Wire, HelloAndAnswerComeBack) {
  EXPECT_EQ(decode_hello(encode(kHello)), kHello);
  Hello longest = kHello;
  longest.token = std::string(kMaxTokenBytes, 't');
  longest.build = std::string(kMaxBuildBytes, 'b');
  EXPECT_EQ(decode_hello(encode(longest)), longest);
  EXPECT_EQ(decode_answer(encode_answer("")), "");
  EXPECT_EQ(decode_answer(encode_answer("no")), "no");
  EXPECT_EQ(decode_answer(encode_answer(std::string(1000, 'x'))),
            std::string(kMaxReasonBytes, 'x'));
  EXPECT_FALSE(decode_answer(encode(kHello)));
  EXPECT_FALSE(decode_hello(encode_answer("")));
}

TEST(Wire, EveryFlippedBitIsRefused) {
  const auto hello = encode(kHello);
  for (size_t bit = 0; bit < 8 * hello.size(); ++bit) {
    auto bytes = hello;
    bytes[bit / 8] ^= 1 << bit % 8;
    EXPECT_FALSE(decode_hello(bytes)) << bit;
  }
  const auto frame = encode(header());
  EXPECT_EQ(decode_frame_header(frame), header());
  for (size_t bit = 0; bit < 8 * frame.size(); ++bit) {
    auto bytes = frame;
    bytes[bit / 8] ^= 1 << bit % 8;
    EXPECT_FALSE(decode_frame_header(bytes)) << bit;
  }
}

TEST(Wire, RandomBytesAreRefused) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) {
    HelloBytes hello;
    for (auto& b : hello) b = static_cast<uint8_t>(random());
    FrameHeaderBytes frame;
    std::memcpy(frame.data(), hello.data(), frame.size());
    EXPECT_FALSE(decode_hello(hello) || decode_answer(hello) || decode_frame_header(frame));
  }
}

// Well-sealed bytes with senseless fields, as another program with the same hash might send.
TEST(Wire, GiantLengthsAreRefusedEvenWhenSealed) {
  FrameHeader h = header();
  h.bytes = kMaxPieceBytes + 1;
  EXPECT_FALSE(decode_frame_header(encode(h)));
  auto bytes = encode(kHello);
  bytes[8] = 200;  // length of the token
  const uint64_t hash = message_hash(std::span<const uint8_t>(bytes).first(kHelloBytes - 8));
  std::memcpy(bytes.data() + kHelloBytes - 8, &hash, 8);
  EXPECT_FALSE(decode_hello(bytes));
}

TEST(Wire, TokensAreEqualOnlyWhenAllBytesAre) {
  EXPECT_TRUE(equal_tokens("abc", "abc"));
  EXPECT_FALSE(equal_tokens("abc", "abd"));
  EXPECT_FALSE(equal_tokens("abc", "ab"));
  EXPECT_FALSE(equal_tokens("abc", std::string("abc\0", 4)));
  EXPECT_FALSE(equal_tokens("", ""));
  EXPECT_FALSE(equal_tokens(std::string(65, 'a'), std::string(65, 'a')));
}

TEST(MessageHash, IsXxh3OnEveryInstructionSet) {
  std::vector<uint8_t> bytes(70000);
  std::mt19937_64 random(2);
  for (auto& b : bytes) b = static_cast<uint8_t>(random());
  for (size_t n : {0, 1, 3, 8, 16, 17, 128, 129, 240, 241, 1024, 1025, 4096, 69999, 70000})
    EXPECT_EQ(message_hash(std::span<const uint8_t>(bytes).first(n)), XXH3_64bits(bytes.data(), n));
}

}  // namespace
}  // namespace maniple
