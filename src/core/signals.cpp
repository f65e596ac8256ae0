#include "core/signals.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>

namespace maniple {
namespace {

std::atomic<int> g_stop_signal{0};
std::atomic<bool> g_checkpoint{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

void on_stop(int signal) {
  int none = 0;
  g_stop_signal.compare_exchange_strong(none, signal);
}

void on_checkpoint(int) { g_checkpoint = true; }

void handle(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

}  // namespace

void install_signals() {
  g_stop_signal = 0;
  g_checkpoint = false;
  for (int signal : {SIGUSR1, SIGTERM, SIGINT}) handle(signal, on_stop);
  handle(SIGUSR2, on_checkpoint);
}

bool stop_requested() { return g_stop_signal != 0; }
int stop_signal() { return g_stop_signal; }
bool checkpoint_requested() { return g_checkpoint; }
bool take_checkpoint_request() { return g_checkpoint.exchange(false); }

void set_parent_death_signal() {
  const pid_t parent = getppid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died in between: then no signal would ever come.
  if (getppid() != parent) raise(SIGKILL);
}

}  // namespace maniple
