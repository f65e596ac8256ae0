// TensorBoard event files; an input that begins with M is a message, which is framed with right
// checksums.
#include "fuzz.h"
#include "metrics/event_format.h"

namespace maniple {

std::vector<std::string> fuzz_seeds() {
  Event version, step;
  version.file_version = kEventVersion;
  step.wall_time = 1e9;
  step.step = 300;
  step.session_start = true;
  step.scalars = {{"loss", 1.5f}, {"grad_norm", 2.0f}};
  const std::string first = frame_record(encode_event(version));
  return {first, first + frame_record(encode_event(step)), "M" + encode_event(step)};
}

std::vector<std::string> fuzz_dictionary() { return {"\x0a", "\x12", "\x15", "\x2a\x02\x0a"}; }

void fuzz_one(const std::string& input) {
  const bool message = !input.empty() && input[0] == 'M';
  decode_events(message ? frame_record(input.substr(1)) : input, "fuzz");
}

}  // namespace maniple
