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
      visit(world_.first());
      while (!stack_.empty()) {
        Frame& frame = stack_.back();
        if (frame.next == frame.moves.size()) {
          stack_.pop_back();
          continue;
        }
        ++result_.moves;
        visit(world_.after(frame.moment, frame.moves[frame.next++]));
      }
    } catch (const std::exception& e) {
      throw Violation(e.what() + path());
    }
    result_.states = visited_.size();
    return result_;
  }

 private:
  struct Frame {
    Moment moment;
    std::vector<Move> moves;
    size_t next = 0;
  };

  void visit(const Moment& moment) {
    static_assert(std::has_unique_object_representations_v<Moment>);
    if (!visited_.insert(fingerprint(&moment, sizeof moment))) return;
    if (visited_.size() % 1'000'000 == 0 && std::getenv("MANIPLE_TRACE"))
      fmt::print(stderr, "{} M states, {:.0f} s, depth {}, {}\n", visited_.size() / 1'000'000,
                 static_cast<double>(std::clock()) / CLOCKS_PER_SEC, stack_.size(),
                 world_.sizes());
    result_.rollbacks += world_.rolled_back(moment);
    if (world_.done(moment)) {
      ++result_.ends;
      return;
    }
    Frame& frame = stack_.emplace_back(Frame{moment, {}, 0});
    result_.deepest = std::max<uint64_t>(result_.deepest, stack_.size());
    world_.moves(moment, frame.moves);
    if (!frame.moves.empty()) return;
    if (!world_.all_lost(moment))
      throw Violation("nothing moves any more:\n" + world_.status(moment));
    ++result_.ends;
  }

  // The moves that led here, the last first.
  std::string path() const {
    std::string text;
    for (size_t i = stack_.size(); i-- > 0;)
      if (stack_[i].next > 0)
        text += "\n  after " + world_.name(stack_[i].moment, stack_[i].moves[stack_[i].next - 1]);
    return text;
  }

  World world_;
  FingerprintSet visited_;
  std::vector<Frame> stack_;
  ExplorationResult result_;
};

}  // namespace

ExplorationResult explore(const ExplorationPlan& plan) { return Explorer(plan).run(); }

}  // namespace maniple::model
