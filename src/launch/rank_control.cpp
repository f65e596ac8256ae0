#include "launch/rank_control.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <future>
#include <mutex>
#include <thread>

#include "core/errors.h"
#include "launch/control_client.h"
#include "launch/job_token.h"
#include "launch/processes.h"
#include "launch/rank_environment.h"

namespace maniple {

struct RankControl::Impl {
  Impl(const Config& c, Events e) : config(c), events(std::move(e)), timer(context) {}

  void begin() {
    ControlHello hello{config.token, Role::kRank, config.slice, config.life, config.position};
    ControlClient::Events line;
    line.connected = [this] {
      met = true;
      welcome.set_value({});
      beat();
    };
    line.frame = [this](std::string_view payload) { hear(payload); };
    line.lost = [this](const std::string& reason) {
      if (met || reason.starts_with("refused")) end("the line to the agent ended: " + reason);
    };
    client = std::make_shared<ControlClient>(context, config.agent, hello, config.timeouts.beat(),
                                             config.timeouts.connect(), line);
    client->start();
  }

  void hear(std::string_view payload) {
    silent_beats = 0;
    const auto message = decode_local(payload);
    if (!message) return;
    if (const auto* envelope = std::get_if<Envelope>(&*message)) {
      if (events.message) events.message(*envelope);
    } else if (std::holds_alternative<CoordinatorReached>(*message)) {
      if (events.reached) events.reached();
    }
  }

  void beat() {
    if (++silent_beats > config.timeouts.orphan() / config.timeouts.beat())
      return end("nothing was heard of the agent");
    RankBeat message;
    {
      std::lock_guard lock(mutex);
      message = doing;
    }
    if (events.status) {
      const auto [status, waits_for] = events.status();
      message.status = status;
      message.progress.waits_for = waits_for;
    }
    if (!message.progress.waits_for && events.waits_for)
      message.progress.waits_for = events.waits_for();
    client->send(encode_local(message));
    timer.expires_after(std::chrono::microseconds(config.timeouts.beat()));
    timer.async_wait([this](const asio::error_code& stopped) {
      if (!stopped) beat();
    });
  }

  void end(const std::string& reason) {
    if (ended) return;
    ended = true;
    if (!met) return welcome.set_value(reason);
    if (leaving) return;
    if (events.orphaned) return events.orphaned(reason);
    fmt::print(stderr, "slice {} position {}: {}\n", config.slice, config.position, reason);
    ::_exit(static_cast<int>(ExitCode::kComm));
  }

  const Config config;
  const Events events;
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> guard{context.get_executor()};
  asio::steady_timer timer;
  std::shared_ptr<ControlClient> client;
  std::promise<std::string> welcome;  // empty, or why not
  bool met = false, ended = false, leaving = false;
  Time silent_beats = 0;
  std::mutex mutex;
  RankBeat doing;
  std::thread thread;
};

std::optional<RankControl::Config> RankControl::from_environment(uint32_t position) {
  const char* agent = std::getenv(kAgentVariable);
  if (!agent) return std::nullopt;
  const auto text = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  const auto number = [&](const char* name) {
    const std::string value = text(name);
    int64_t result = 0;
    const auto [end, bad] = std::from_chars(value.data(), value.data() + value.size(), result);
    if (bad != std::errc() || end != value.data() + value.size())
      throw ConfigError(fmt::format("{} is '{}'; an agent sets it to a number", name, value));
    return result;
  };
  Config config;
  config.agent = agent;
  config.token = read_job_token(text(kTokenVariable));
  config.slice = static_cast<SliceId>(number(kSliceVariable));
  config.life = static_cast<Life>(number(kLifeVariable));
  config.position = position;
  config.burn_in = text(kBurnInVariable) == "1";
  config.host = text(kHostVariable);
  config.address = text(kAddressVariable);
  config.timeouts = Timeouts(number(kLeaseVariable));
  return config;
}

RankControl::RankControl(const Config& config, Events events)
    : impl_(std::make_unique<Impl>(config, std::move(events))) {
  auto welcome = impl_->welcome.get_future();
  impl_->begin();
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  impl_->thread = std::thread([this] {
    schedule_first();
    impl_->context.run();
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  const bool answered =
      welcome.wait_for(std::chrono::microseconds(2 * config.timeouts.connect())) ==
      std::future_status::ready;
  const std::string trouble = answered ? welcome.get() : "no answer";
  if (trouble.empty()) return;
  impl_->context.stop();
  impl_->thread.join();
  throw CommError(fmt::format("slice {} position {} cannot reach its agent at {}: {}", config.slice,
                              config.position, config.agent, trouble));
}

RankControl::~RankControl() {
  impl_->context.stop();
  impl_->thread.join();
  impl_->client->close();
}

void RankControl::progress(const Doing& doing) {
  std::lock_guard lock(impl_->mutex);
  RankBeat& beat = impl_->doing;
  beat.step = doing.step;
  beat.attempt = doing.attempt;
  beat.unit = doing.unit;
  beat.phase = doing.phase;
  ++beat.progress.count;
}

void RankControl::pace(Time unit) {
  std::lock_guard lock(impl_->mutex);
  impl_->doing.progress.unit_us = static_cast<uint64_t>(unit);
}

void RankControl::send(const Envelope& envelope) {
  asio::post(impl_->context,
             [impl = impl_.get(), frame = encode_local(envelope)] { impl->client->send(frame); });
}

void RankControl::leave(int32_t code, const std::string& reason) {
  std::promise<void> done;
  asio::post(impl_->context, [&] {
    impl_->leaving = true;
    impl_->client->send(encode_local(RankLeave{code, reason}));
    done.set_value();
  });
  done.get_future().wait();
}

}  // namespace maniple
