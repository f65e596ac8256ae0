// The hosts of an elastic job: the list that an operator writes, which slot runs where, how a
// command is started there, and the addresses that ports are bound to.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace maniple {

struct Host {
  std::string name;
  uint32_t slots = 0;  // slices that it takes; 0: any number
  bool operator==(const Host&) const = default;
};

// "a,b:2,c", as for mpirun --host; a host without a number takes any number. Throws ConfigError.
std::vector<Host> parse_hosts(const std::string& text);

// The host of each slot: one each in the order of the list, again and again, as long as they have
// room. Throws ConfigError when there is not enough.
std::vector<std::string> place_slots(const std::vector<Host>& hosts, uint32_t num_slots);

// The words of elastic.remote, with the host in place of {host}. Throws ConfigError when it names
// none.
std::vector<std::string> remote_words(const std::string& remote, const std::string& host);

// A command may pass through a shell on its way to a host. Throws ConfigError for a word that a
// shell would change; `what` says what it is.
void check_plain_word(const std::string& word, const std::string& what);

// The numeric address by which this machine sends to a host (a name or an address); nothing is
// sent. Throws CommError.
std::string address_towards(const std::string& host);

// The one by which all these hosts can reach this machine. Throws ConfigError when they go by
// different ones or cannot be found.
std::string address_for(const std::vector<Host>& hosts);

// The first numeric address of a network interface, IPv4 before IPv6. Throws ConfigError.
std::string address_of_interface(const std::string& name);

}  // namespace maniple
