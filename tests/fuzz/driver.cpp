#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "core/errors.h"
#include "core/files.h"
#include "core/random.h"
#include "fuzz.h"

namespace maniple {
namespace {

uint64_t g_iteration = 0;

// A crash must say which input it was.
void on_crash(int signal) {
  char text[64];
  const int n = std::snprintf(text, sizeof text, "crash in iteration %llu\n",
                              static_cast<unsigned long long>(g_iteration));
  if (write(2, text, static_cast<size_t>(n)) < 0) _exit(2);
  ::signal(signal, SIG_DFL);
  raise(signal);
}

// Draws of one iteration.
class Draws {
 public:
  explicit Draws(uint64_t key) : key_(key) {}
  uint64_t below(uint64_t n) { return n ? mix64(key_ + ++count_ * kGolden) % n : 0; }

 private:
  const uint64_t key_;
  uint64_t count_ = 0;
};

const char* kNumbers[] = {"0", "-1", "1", "255", "65536", "2147483648", "4294967296",
                          "9223372036854775807", "-9223372036854775808", "18446744073709551616",
                          "1e308", "1e999", "nan", "0.5"};

void mutate(std::string& s, const std::vector<std::string>& words, const std::string& other, Draws& d) {
  const size_t at = d.below(s.size() + 1), rest = s.size() - at;
  const size_t length = std::min<size_t>(rest, 1 + d.below(d.below(4) ? 8 : 200));
  switch (d.below(9)) {
    case 0: if (rest) s[at] = static_cast<char>(s[at] ^ (1 << d.below(8))); break;
    case 1: if (rest) s[at] = static_cast<char>(d.below(256)); break;
    case 2: s.erase(at, length); break;
    case 3: s.insert(at, s.substr(at, length)); break;
    case 4: if (!words.empty()) s.insert(at, words[d.below(words.size())]); break;
    case 5: s.resize(at); break;
    case 6: s = s.substr(0, at) + other.substr(d.below(other.size() + 1)); break;
    case 7: {  // a number of the text
      size_t begin = s.find_first_of("0123456789", at);
      if (begin == s.npos) break;
      size_t end = s.find_first_not_of("0123456789", begin);
      s.replace(begin, (end == s.npos ? s.size() : end) - begin, kNumbers[d.below(std::size(kNumbers))]);
      break;
    }
    case 8: {  // a binary number
      const uint64_t values[] = {0, 1, 0xff, 0x7fffffff, 0xffffffff, 1ull << 40, ~0ull, 1ull << 63};
      const uint64_t value = values[d.below(std::size(values))];
      std::memcpy(s.data() + at, &value, std::min<size_t>(rest, d.below(2) ? 4 : 8));
      break;
    }
  }
}

// True: as it must be.
bool try_one(const std::string& input) {
  try {
    fuzz_one(input);
  } catch (const InternalError& e) {
    std::fprintf(stderr, "iteration %llu: %s\n", static_cast<unsigned long long>(g_iteration), e.what());
    return false;
  } catch (const Error& e) {
    if (std::strchr(e.what(), '\n') == nullptr) return true;
    std::fprintf(stderr, "more than one line: %s\n", e.what());
    return false;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "iteration %llu: an exception that is no Error: %s\n",
                 static_cast<unsigned long long>(g_iteration), e.what());
    return false;
  }
  return true;
}

int run(int argc, char** argv) {
  for (int signal : {SIGSEGV, SIGABRT, SIGFPE, SIGBUS, SIGALRM}) ::signal(signal, on_crash);
  if (argc > 1 && std::filesystem::exists(argv[1])) {
    bool good = true;
    for (int i = 1; i < argc; ++i) good &= try_one(read_file(argv[i]));
    return !good;
  }
  const uint64_t iterations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 4000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const bool one = argc > 3;
  const uint64_t first = one ? std::strtoull(argv[3], nullptr, 10) : 0;
  const auto seeds = fuzz_seeds(), words = fuzz_dictionary();
  for (const std::string& s : seeds) fuzz_one(s);  // valid: nothing may be thrown
  for (g_iteration = first; g_iteration < first + iterations; ++g_iteration) {
    Draws draws(key_of(seed, g_iteration));
    std::string input = seeds[draws.below(seeds.size())];
    const std::string& other = seeds[draws.below(seeds.size())];
    for (uint64_t n = 1 + draws.below(4); n > 0; --n) mutate(input, words, other, draws);
    const std::string name = "finding-" + std::to_string(g_iteration);
    if (one) write_file_atomic(name, input);
    alarm(20);
    if (try_one(input)) continue;
    write_file_atomic(name, input);
    std::fprintf(stderr, "the input is in %s\n", name.c_str());
    return 1;
  }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(iterations));
  return 0;
}

}  // namespace
}  // namespace maniple

int main(int argc, char** argv) { return maniple::run(argc, argv); }
