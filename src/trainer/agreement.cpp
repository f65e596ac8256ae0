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

std::string broadcast_text(std::string text, Communicator& comm) {
  at::Tensor size = at::full({1}, static_cast<int64_t>(text.size()), at::TensorOptions(at::kLong));
  comm.broadcast(size, 0);
  text.resize(static_cast<size_t>(size.item<int64_t>()));
  if (text.empty()) return text;
  at::Tensor bytes = at::from_blob(text.data(), {static_cast<int64_t>(text.size())},
                                   at::TensorOptions(at::kByte));
  comm.broadcast(bytes, 0);
  return text;
}

std::string agree_on_text(Communicator& world, const std::function<std::string()>& body) {
  std::string text;
  agree(world, [&] {
    if (world.rank() == 0) text = body();
  });
  return broadcast_text(text, world);
}

}  // namespace maniple
