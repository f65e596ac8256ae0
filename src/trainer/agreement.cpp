#include "trainer/agreement.h"

namespace maniple {

void agree(Communicator& world, const std::function<void()>& body) {
  int64_t code = 0;
  std::string message;
  try {
    body();
  } catch (const Error& e) {
    code = static_cast<int64_t>(e.code());
    message = e.what();
  }
  const at::Tensor mine = at::full({1}, code, at::TensorOptions(at::kLong));
  at::Tensor all = at::empty({world.size()}, mine.options());
  world.all_gather(mine, all);
  const int64_t* codes = all.data_ptr<int64_t>();
  for (int r = 0; r < world.size(); ++r)
    if (codes[r])
      throw AgreedError(static_cast<ExitCode>(codes[r]), message, r == world.rank());
}

}  // namespace maniple
