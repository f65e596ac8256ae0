#include "launch/hosts.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <asio.hpp>
#include <charconv>
#include <cstring>
#include <memory>
#include <sstream>

#include "core/errors.h"

namespace maniple {
namespace {

constexpr char kLettersAndDigits[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") + 1 - first);
}

Host parse_host(const std::string& text) {
  Host host;
  const size_t colon = text.find(':');
  host.name = text.substr(0, colon);
  const std::string allowed = std::string(kLettersAndDigits) + "-._";
  bool good = !host.name.empty() && host.name[0] != '-' &&
              host.name.find_first_not_of(allowed) == std::string::npos;
  if (colon != text.npos) {
    const char* end = text.data() + text.size();
    const auto [rest, bad] = std::from_chars(text.data() + colon + 1, end, host.slots);
    good = good && bad == std::errc() && rest == end && host.slots > 0;
  }
  if (!good)
    throw ConfigError(fmt::format(
        "elastic.hosts: '{}' is no host; write names with commas, each with the number of its "
        "slices or without: a,b:2,c",
        text));
  return host;
}

bool is_loopback(const std::string& address) {
  return asio::ip::make_address(address).is_loopback();
}

std::string text_of(const sockaddr* address, socklen_t length) {
  char text[NI_MAXHOST] = "";
  if (::getnameinfo(address, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) return {};
  return text;
}

}  // namespace

std::vector<Host> parse_hosts(const std::string& text) {
  std::vector<Host> hosts;
  std::istringstream list(text + ",");  // so that an empty last entry is seen
  for (std::string entry; std::getline(list, entry, ',');) {
    hosts.push_back(parse_host(trimmed(entry)));
    for (size_t i = 0; i + 1 < hosts.size(); ++i)
      if (hosts[i].name == hosts.back().name)
        throw ConfigError(fmt::format("elastic.hosts: '{}' stands there twice; write {}:2",
                                      hosts[i].name, hosts[i].name));
  }
  return hosts;
}

std::vector<std::string> place_slots(const std::vector<Host>& hosts, uint32_t num_slots) {
  std::vector<std::string> places;
  for (uint32_t round = 0; places.size() < num_slots; ++round) {
    const size_t before = places.size();
    for (const Host& host : hosts)
      if ((host.slots == 0 || round < host.slots) && places.size() < num_slots)
        places.push_back(host.name);
    if (places.size() == before)
      throw ConfigError(fmt::format(
          "elastic.hosts has room for {} slices and the job has {} (parallel.slices and "
          "elastic.spares); add hosts, or raise the numbers behind them",
          before, num_slots));
  }
  return places;
}

std::vector<std::string> remote_words(const std::string& remote, const std::string& host) {
  constexpr char kPlaceholder[] = "{host}";
  std::vector<std::string> words;
  bool named = false;
  std::istringstream text(remote);
  for (std::string word; text >> word; words.push_back(word))
    if (const size_t at = word.find(kPlaceholder); at != word.npos) {
      word.replace(at, std::strlen(kPlaceholder), host);
      named = true;
    }
  if (!named)
    throw ConfigError(fmt::format(
        "elastic.remote: '{}' does not say where {{host}} stands; example: ssh -o BatchMode=yes "
        "{{host}}",
        remote));
  return words;
}

void check_plain_word(const std::string& word, const std::string& what) {
  const std::string allowed = std::string(kLettersAndDigits) + "-._/:=,+@%[]";
  const size_t bad = word.find_first_not_of(allowed);
  if (word.empty() || bad != word.npos)
    throw ConfigError(fmt::format(
        "elastic.hosts: {} '{}' goes to the hosts in a command, and a shell may change it; use "
        "letters, digits and {}",
        what, word, allowed.substr(std::strlen(kLettersAndDigits))));
}

std::string address_towards(const std::string& host) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  if (const int error = ::getaddrinfo(host.c_str(), "9", &hints, &found))
    throw CommError(fmt::format("cannot find the address of '{}': {}", host, ::gai_strerror(error)));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, ::freeaddrinfo);
  int error = 0;
  for (const addrinfo* at = found; at; at = at->ai_next) {
    const int fd = ::socket(at->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_storage own = {};
    socklen_t length = sizeof own;
    auto* address = reinterpret_cast<sockaddr*>(&own);
    // Connecting a datagram socket chooses the route and sends nothing.
    const bool good = fd >= 0 && ::connect(fd, at->ai_addr, at->ai_addrlen) == 0 &&
                      ::getsockname(fd, address, &length) == 0;
    error = errno;
    if (fd >= 0) ::close(fd);
    if (good) return text_of(address, length);
  }
  throw CommError(fmt::format("there is no way to '{}': {}", host, std::strerror(error)));
}

std::string address_for(const std::vector<Host>& hosts) {
  constexpr char kFix[] =
      "set elastic.address to the numeric address by which all hosts reach this machine";
  std::string chosen, towards;
  for (const Host& host : hosts) {
    std::string address;
    try {
      address = address_towards(host.name);
    } catch (const CommError& error) {
      throw ConfigError(fmt::format("elastic.hosts: {}; {}", error.what(), kFix));
    }
    // A host that is this machine can use the address that the others use.
    if (chosen.empty() || is_loopback(chosen)) {
      chosen = address;
      towards = host.name;
    } else if (address != chosen && !is_loopback(address)) {
      throw ConfigError(
          fmt::format("elastic.hosts: this machine sends to {} from {} and to {} from {}; {}",
                      towards, chosen, host.name, address, kFix));
    }
  }
  return chosen;
}

std::string address_of_interface(const std::string& name) {
  ifaddrs* found = nullptr;
  if (::getifaddrs(&found) != 0)
    throw ConfigError(fmt::format("elastic.interface: cannot list the interfaces of this host: {}",
                                  std::strerror(errno)));
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> owner(found, ::freeifaddrs);
  std::string names;
  for (const int family : {AF_INET, AF_INET6})
    for (const ifaddrs* at = found; at; at = at->ifa_next) {
      if (!at->ifa_addr || at->ifa_addr->sa_family != family) continue;
      const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
      if (name == at->ifa_name) return text_of(at->ifa_addr, length);
      if (family == AF_INET) names += fmt::format("{}{}", names.empty() ? "" : ", ", at->ifa_name);
    }
  throw ConfigError(fmt::format(
      "elastic.interface: '{}' has no address on this host; those with one are {}", name, names));
}

}  // namespace maniple
