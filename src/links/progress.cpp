#include "links/progress.h"

#include <pthread.h>
#include <signal.h>

#include <asio.hpp>
#include <thread>

namespace maniple {

struct Progress::Impl {
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> guard{context.get_executor()};
  std::thread thread;
};

Progress::Progress() : impl_(std::make_unique<Impl>()) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  impl_->thread = std::thread([this] { impl_->context.run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Progress::~Progress() {
  impl_->context.stop();
  impl_->thread.join();
}

asio::io_context& Progress::context() { return impl_->context; }

}  // namespace maniple
