#include "launch/hosts.h"

#include <gtest/gtest.h>

#include "core/errors.h"

namespace maniple {
namespace {

using Words = std::vector<std::string>;

template <class F>
std::string refusal(F&& attempt) {
  try {
    attempt();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "it was taken";
}
void expect_in(const std::string& part, const std::string& text) {
  EXPECT_NE(text.find(part), text.npos) << "'" << part << "' is not in: " << text;
}

TEST(Hosts, ListIsNamesWithCommasAndNumbersOfSlices) {
  EXPECT_EQ(parse_hosts("a, node-7.cluster:2,c_3"),
            (std::vector<Host>{{"a", 0}, {"node-7.cluster", 2}, {"c_3", 0}}));
  EXPECT_EQ(parse_hosts("a"), (std::vector<Host>{{"a", 0}}));
}

TEST(Hosts, WrongEntriesAreNamed) {
  for (const char* entry : {"b:0", "b:x", "b:", "b:-1", "b:2:3", ":2", "", "-oProxyCommand=x", "b c",
                            "b;c", "b:99999999999"})
    expect_in(std::string("'") + entry + "' is no host",
              refusal([&] { parse_hosts(std::string("a,") + entry); }));
  expect_in("'a' stands there twice; write a:2", refusal([] { parse_hosts("a,b,a"); }));
}

TEST(Hosts, SlotsGoRoundAsLongAsAHostHasRoom) {
  const auto place = [](const char* hosts, uint32_t slots) {
    return place_slots(parse_hosts(hosts), slots);
  };
  EXPECT_EQ(place("a,b", 5), (Words{"a", "b", "a", "b", "a"}));
  EXPECT_EQ(place("a:1,b:3,c:2", 6), (Words{"a", "b", "c", "b", "c", "b"}));
  EXPECT_EQ(place("a:1,b", 4), (Words{"a", "b", "b", "b"}));
  EXPECT_EQ(place("a,b,c", 2), (Words{"a", "b"}));
  expect_in("room for 4 slices and the job has 5", refusal([&] { place("a:1,b:3", 5); }));
}

TEST(Hosts, RemoteCommandNamesTheHost) {
  EXPECT_EQ(remote_words("ssh  -o X=yes {host}", "b"), (Words{"ssh", "-o", "X=yes", "b"}));
  EXPECT_EQ(remote_words("srun -N1 --nodelist={host}", "b"), (Words{"srun", "-N1", "--nodelist=b"}));
  expect_in("does not say where {host} stands", refusal([] { remote_words("ssh", "b"); }));
}

TEST(Hosts, WordsThatAShellChangesAreRefused) {
  EXPECT_NO_THROW(check_plain_word("/home/me/runs/a-1_b.2", "run.dir"));
  for (const char* word : {"", "a b", "a;b", "$HOME", "~/run", "a*", "a'b"})
    expect_in("run.dir '" + std::string(word) + "'",
              refusal([&] { check_plain_word(word, "run.dir"); }));
}

TEST(Hosts, OwnAddressIsTheOneThatReachesTheOther) {
  EXPECT_EQ(address_towards("127.0.0.1"), "127.0.0.1");
  EXPECT_EQ(address_towards("127.1.2.3"), "127.0.0.1");
  EXPECT_EQ(address_for(parse_hosts("localhost")), address_towards("localhost"));
  const std::string unknown = refusal([] { address_for(parse_hosts("host.invalid")); });
  expect_in("host.invalid", unknown);
  expect_in("set elastic.address", unknown);
  EXPECT_THROW(address_towards("host.invalid"), CommError);
}

TEST(Hosts, InterfaceIsFoundByItsName) {
  EXPECT_EQ(address_of_interface("lo"), "127.0.0.1");
  expect_in("'eth77' has no address on this host; those with one are lo",
            refusal([] { address_of_interface("eth77"); }));
}

}  // namespace
}  // namespace maniple
