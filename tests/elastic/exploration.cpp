#include "exploration.h"

#include <ctime>

#include "world.h"

namespace maniple::model {
namespace {

// Depth-first with a stack of its own.
class Explorer {
 public:
  explicit Explorer(const ExplorationPlan& plan) : world_(plan) {}

  ExplorationResult run() {
    try {
      const Moment first = world_.first();
      visited_.insert(fingerprint_of(first));
      enter(first);
      while (!stack_.empty()) {
        Frame& frame = stack_.back();
        if (frame.at == frame.next.size())
          stack_.pop_back();
        else
          enter(Moment(frame.next[frame.at++].moment));
      }
    } catch (const std::exception& e) {
      throw Violation(e.what() + path());
    }
    result_.states = visited_.size();
    return result_;
  }

 private:
  struct Next {
    Move move;
    Moment moment;
    Key key;
  };
  struct Frame {
    Moment moment;
    std::vector<Next> next;  // that were new
    size_t at = 0;
  };

  static Key fingerprint_of(const Moment& moment) {
    static_assert(std::has_unique_object_representations_v<Moment>);
    return fingerprint(&moment, sizeof moment);
  }

  // `moment` was not known: counts it and finds what follows.
  void enter(const Moment& moment) {
    result_.rollbacks += world_.rolled_back(moment);
    if (world_.done(moment)) {
      ++result_.ends;
      return;
    }
    Frame& frame = stack_.emplace_back(Frame{moment, {}, 0});
    result_.deepest = std::max<uint64_t>(result_.deepest, stack_.size());
    world_.moves(moment, moves_);
    for (tried_ = 0; tried_ < moves_.size(); ++tried_) {
      const Moment next = world_.after(moment, moves_[tried_]);
      frame.next.push_back({moves_[tried_], next, fingerprint_of(next)});
      visited_.expect(frame.next.back().key);  // while the other moves are computed
    }
    std::erase_if(frame.next, [&](const Next& next) { return !visited_.insert(next.key); });
    result_.moves += moves_.size();
    moves_.clear();
    show_progress();
    if (tried_ > 0) return;
    if (!world_.all_lost(moment))
      throw Violation("nothing moves any more:\n" + world_.status(moment));
    ++result_.ends;
  }

  void show_progress() {
    const uint64_t millions = visited_.size() / 1'000'000;
    if (millions == shown_ || !std::getenv("MANIPLE_TRACE")) return;
    shown_ = millions;
    fmt::print(stderr, "{} M states, {:.0f} s, depth {}, {}\n", millions,
               static_cast<double>(std::clock()) / CLOCKS_PER_SEC, stack_.size(), world_.sizes());
  }

  // The moves that led here, the last first.
  std::string path() const {
    std::string text;
    if (tried_ < moves_.size())
      text += "\n  by " + world_.name(stack_.back().moment, moves_[tried_]);
    for (size_t i = stack_.size(); i-- > 0;)
      if (stack_[i].at > 0)
        text += "\n  after " + world_.name(stack_[i].moment, stack_[i].next[stack_[i].at - 1].move);
    return text;
  }

  World world_;
  FingerprintSet visited_;
  std::vector<Frame> stack_;
  std::vector<Move> moves_;  // from the top of the stack,
  size_t tried_ = 0;         // of which so many were tried
  uint64_t shown_ = 0;
  ExplorationResult result_;
};

}  // namespace

ExplorationResult explore(const ExplorationPlan& plan) { return Explorer(plan).run(); }

}  // namespace maniple::model
