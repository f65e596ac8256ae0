#include <c10/cuda/CUDAStream.h>
#include <nccl.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

// Work that was put on the stream of one thread and that has ended.
struct StubStream {
  int64_t begun = 0, ended = 0;
};

namespace {

enum class Kind { kAllGather, kReduceScatter, kAllReduce, kBroadcast, kReduce, kSend, kReceive };

struct Call {
  Kind kind;
  const char* in;
  char* out;
  size_t bytes;
  int peer;  // root of a rooted collective
};

// One operation: a call, or all calls of a group.
struct Operation {
  std::vector<Call> calls;
  StubStream* stream;
};

// The ranks of one unique id.
struct World {
  explicit World(int size) : queues(size) {}
  std::vector<std::deque<Operation>> queues;
  int joined = 0;
  ncclResult_t error = ncclSuccess;
};

std::mutex mutex;  // of all below
std::map<int, std::shared_ptr<World>> worlds;
StubCounts counts;

thread_local StubStream stream;
thread_local bool in_group = false;
thread_local std::vector<Call> group;
thread_local ncclComm_t group_comm = nullptr;

void add(char* to, const char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t a, b;
    std::memcpy(&a, to + i, 8);
    std::memcpy(&b, from + i, 8);
    a += b;
    std::memcpy(to + i, &a, 8);
  }
}

// The calls number i of all ranks, which are collective. False: they do not belong together.
bool run_collective(const std::vector<const Operation*>& all, size_t i) {
  const Call& first = all[0]->calls[i];
  for (const Operation* o : all) {
    const Call& c = o->calls[i];
    if (c.kind != first.kind || c.bytes != first.bytes || c.peer != first.peer) return false;
  }
  const size_t n = first.bytes, size = all.size();
  auto sum = [&](size_t offset, size_t bytes) {
    std::vector<char> total(bytes);
    for (const Operation* o : all) add(total.data(), o->calls[i].in + offset, bytes);
    return total;
  };
  if (first.kind == Kind::kReduceScatter || first.kind == Kind::kAllReduce) {
    const size_t parts = first.kind == Kind::kReduceScatter ? size : 1;
    const std::vector<char> total = sum(0, n * parts);
    for (size_t r = 0; r < size; ++r)
      std::memcpy(all[r]->calls[i].out, total.data() + (parts > 1 ? r * n : 0), n);
  } else if (first.kind == Kind::kReduce) {
    const std::vector<char> total = sum(0, n);
    std::memcpy(all[first.peer]->calls[i].out, total.data(), n);
  } else {
    for (size_t r = 0; r < size; ++r)
      for (size_t source = 0; source < size; ++source) {
        if (first.kind == Kind::kBroadcast && static_cast<int>(source) != first.peer) continue;
        char* to = all[r]->calls[i].out + (first.kind == Kind::kAllGather ? source * n : 0);
        std::memmove(to, all[source]->calls[i].in, n);
      }
  }
  return true;
}

// Sends and receives of a group; every one needs its counterpart.
bool run_messages(const std::vector<const Operation*>& all) {
  for (size_t r = 0; r < all.size(); ++r)
    for (const Call& c : all[r]->calls) {
      const Kind wanted = c.kind == Kind::kSend ? Kind::kReceive : Kind::kSend;
      bool found = false;
      for (const Call& d : all[c.peer]->calls)
        if (d.kind == wanted && d.peer == static_cast<int>(r) && d.bytes == c.bytes) {
          found = true;
          if (c.kind == Kind::kSend) std::memcpy(d.out, c.in, c.bytes);
        }
      if (!found) return false;
    }
  return true;
}

bool is_message(const Operation& o) {
  return !o.calls.empty() && (o.calls[0].kind == Kind::kSend || o.calls[0].kind == Kind::kReceive);
}

bool run_operation(const std::vector<const Operation*>& all) {
  bool messages = false;
  for (const Operation* o : all) messages |= is_message(*o);
  for (const Operation* o : all)
    if (messages ? !(o->calls.empty() || is_message(*o)) : o->calls.size() != all[0]->calls.size())
      return false;
  if (messages) return run_messages(all);
  for (size_t i = 0; i < all[0]->calls.size(); ++i)
    if (!run_collective(all, i)) return false;
  return true;
}

// Runs what all ranks have joined.
void advance(World& world) {
  while (world.error == ncclSuccess) {
    std::vector<const Operation*> all;
    for (const auto& queue : world.queues) {
      if (queue.empty()) return;
      all.push_back(&queue.front());
    }
    if (!run_operation(all)) {
      world.error = ncclInvalidUsage;
      return;
    }
    for (auto& queue : world.queues) {
      ++queue.front().stream->ended;
      queue.pop_front();
    }
  }
}

}  // namespace

struct ncclComm {
  std::shared_ptr<World> world;
  int rank;
};

namespace {

ncclResult_t submit(ncclComm_t comm, std::vector<Call> calls) {
  std::lock_guard lock(mutex);
  ++stream.begun;
  comm->world->queues[comm->rank].push_back({std::move(calls), &stream});
  advance(*comm->world);
  return ncclSuccess;
}

ncclResult_t call(ncclComm_t comm, const Call& c) {
  if (!in_group) return submit(comm, {c});
  group.push_back(c);
  group_comm = comm;
  return ncclSuccess;
}

const char* bytes(const void* p) { return static_cast<const char*>(p); }
char* bytes(void* p) { return static_cast<char*>(p); }
size_t width(ncclDataType_t type) { return type == ncclUint64 ? 8 : 1; }

}  // namespace

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclInvalidUsage ? "invalid usage" : "internal error";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::lock_guard lock(mutex);
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->internal, &++counts.ids, sizeof counts.ids);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking) return ncclInvalidUsage;
  int number;
  std::memcpy(&number, id.internal, sizeof number);
  std::lock_guard lock(mutex);
  auto& world = worlds[number];
  if (!world) world = std::make_shared<World>(size);
  ++world->joined;
  ++counts.started;
  *comm = new ncclComm{world, rank};
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result) {
  std::lock_guard lock(mutex);
  const World& world = *comm->world;
  *result = world.joined < static_cast<int>(world.queues.size()) ? ncclInProgress : world.error;
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  std::lock_guard lock(mutex);
  ++counts.destroyed;
  delete comm;
  return ncclSuccess;
}

// Its operations end without effect, so the stream goes on.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  std::lock_guard lock(mutex);
  ++counts.aborted;
  auto& queue = comm->world->queues[comm->rank];
  for (const Operation& o : queue) ++o.stream->ended;
  queue.clear();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  in_group = true;
  group.clear();
  group_comm = nullptr;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  in_group = false;
  return group_comm ? submit(group_comm, std::move(group)) : ncclSuccess;
}

ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t) {
  return call(comm, {Kind::kAllGather, bytes(in), bytes(out), count * width(type), 0});
}
ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type,
                               ncclRedOp_t, ncclComm_t comm, cudaStream_t) {
  return call(comm, {Kind::kReduceScatter, bytes(in), bytes(out), count * width(type), 0});
}
ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t) {
  return call(comm, {Kind::kAllReduce, bytes(in), bytes(out), count * width(type), 0});
}
ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t) {
  return call(comm, {Kind::kBroadcast, bytes(in), bytes(out), count * width(type), root});
}
ncclResult_t ncclReduce(const void* in, void* out, size_t count, ncclDataType_t type, ncclRedOp_t,
                        int root, ncclComm_t comm, cudaStream_t) {
  return call(comm, {Kind::kReduce, bytes(in), bytes(out), count * width(type), root});
}
ncclResult_t ncclSend(const void* in, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t) {
  return call(comm, {Kind::kSend, bytes(in), nullptr, count * width(type), peer});
}
ncclResult_t ncclRecv(void* out, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t) {
  return call(comm, {Kind::kReceive, nullptr, bytes(out), count * width(type), peer});
}

StubCounts stub_counts() {
  std::lock_guard lock(mutex);
  return counts;
}
void clear_stub_counts() {
  std::lock_guard lock(mutex);
  counts = {};
  worlds.clear();
}

void StubEvent::record() {
  std::lock_guard lock(mutex);
  stream_ = &stream;
  at_ = stream.begun;
}
bool StubEvent::passed() const {
  std::lock_guard lock(mutex);
  return !stream_ || stream_->ended >= at_;
}

cudaStream_t c10::cuda::getCurrentCUDAStream() { return &stream; }
