#include "trainer/inference.h"

#include <ATen/Parallel.h>

#include "core/config_schema.h"
#include "core/errors.h"
#include "core/random.h"
#include "interop/hub_model.h"
#include "parallel/device.h"
#include "trainer/model_source.h"

namespace maniple {

InferenceModel::InferenceModel(const std::string& path, const std::string& precision,
                               const std::string& device, std::optional<Grid> grid) {
  std::unique_ptr<CheckpointInfo> checkpoint;
  HubModel hub;
  ModelConfig model_config;
  if (is_hub_model(path)) {
    hub = open_hub_model(path);
    model_config = parse_model_config(hub.config);
  } else {
    checkpoint = std::make_unique<CheckpointInfo>(open_checkpoint(path));
    config_ = parse_config(checkpoint->meta.at("config").get<std::string>(), checkpoint->folder);
    model_config = parse_model_config(nlohmann::json(checkpoint_model_json(*checkpoint, config_.model)));
    step_ = checkpoint->step;
    if (!grid && config_.quant.format != "none")
      grid = make_grid(config_.quant.format, compute_type(parse_precision(config_.train.precision)));
  }
  at::set_num_threads(static_cast<int>(config_.run.threads));
  config_.parallel = {};
  config_.train.precision = precision;
  config_.run.device = device;
  config_.batch.units = 0;
  config_.batch.micro_batch_rows = 1;
  mesh_ = std::make_unique<ProcessMesh>(MeshShape{}, make_single_communicator(),
                                        find_device(device, 0));
  trained_ = std::make_unique<TrainedModel>(config_, model_config, *mesh_);
  if (grid) trained_->optimizer->quantize_with(FakeQuantizer(*grid, /*clipped=*/false));
  for (MoeLayer* layer : trained_->moe_layers) layer->router().training = false;
  if (checkpoint)
    load_checkpoint(*trained_, *checkpoint, false);
  else
    load_hub_weights(*trained_, *hub.tensors);
  trained_->optimizer->publish();
  context_ = checkpoint ? config_.batch.seq_len : model().max_position_embeddings;
}

at::Tensor InferenceModel::logits(const at::Tensor& host_ids) {
  at::NoGradGuard no_grad;
  const at::Tensor ids = host_ids.to(mesh_->device());
  const at::Tensor position = at::arange(ids.size(1), ids.options()).expand_as(ids).contiguous();
  const at::Tensor h = trained_->decoder->forward(ids, position, at::zeros_like(ids));
  return head_logits(h);
}

at::Tensor InferenceModel::logits(const at::Tensor& ids, DecoderCache& cache) {
  return head_logits(trained_->decoder->forward(ids.to(mesh_->device()), cache));
}

at::Tensor InferenceModel::head_logits(const at::Tensor& h) {
  at::NoGradGuard no_grad;
  const Parameter& head = trained_->decoder->head();
  return at::matmul(h, head.value.narrow(0, 0, model().vocab_size).t())
      .to(accumulate_type(trained_->store.precision()));
}

void InferenceModel::sample(const std::string& prompt, int64_t num_tokens, double temperature,
                            double top_p, uint64_t seed, const std::function<void(int64_t)>& emit) {
  std::vector<int64_t> ids;
  for (char c : prompt) ids.push_back(static_cast<unsigned char>(c));
  if (ids.empty()) ids.push_back(256);
  for (int64_t id : ids)
    if (id >= model().vocab_size)
      throw DataError(fmt::format("cannot continue this prompt: byte {} is no id of a model of {}; "
                                  "sample works on models of byte tokens",
                                  id, model().vocab_size));
  DecoderCache cache;
  int64_t unread = std::min(static_cast<int64_t>(ids.size()), context_);  // last ones of ids
  for (int64_t i = 0; i < num_tokens; ++i) {
    if (cache.num_tokens + unread > context_) {
      cache = {};
      unread = (context_ + 1) / 2;
    }
    const at::Tensor in = at::tensor(std::vector<int64_t>(ids.end() - unread, ids.end()),
                                     at::TensorOptions(at::kLong)).unsqueeze(0);
    const at::Tensor z = logits(in, cache)[0][unread - 1].cpu().to(at::kDouble);
    unread = 1;
    int64_t next;
    if (temperature <= 0) {
      next = z.argmax().item<int64_t>();
    } else {
      const auto [p, order] = at::softmax(z / temperature, 0).sort(/*stable=*/true, 0, true);
      const double draw = uniform(key_of(seed, hash_name("sample")), static_cast<uint64_t>(i));
      const double* q = p.data_ptr<double>();
      double mass = 0;
      int64_t kept = 0;
      while (kept < p.numel() && mass < top_p) mass += q[kept++];
      int64_t pick = 0;
      for (double sum = q[0]; sum < draw * mass && pick + 1 < kept; sum += q[++pick]) {
      }
      next = order[pick].item<int64_t>();
    }
    ids.push_back(next);
    emit(next);
  }
}

}  // namespace maniple
