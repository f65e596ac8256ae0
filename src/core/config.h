// The resolved configuration of a run: what the YAML file and the dotted overrides say, with
// defaults filled in. The schema that reads it is core/config_schema.h.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace maniple {

struct RunConfig {
  std::string dir = "runs/default";
  uint64_t seed = 1;
  int64_t threads = 1;         // per rank; part of what fixes the bits
  std::string device = "cpu";  // cpu | cuda
  std::string resume = "auto";  // auto | never | a checkpoint folder
};

struct TrainConfig {
  int64_t steps = 100;
  std::string precision = "fp32";  // fp32 | bf16 | fp64
  bool recompute = false;          // recompute each layer's activations in backward
};

struct ModelSection {
  std::string preset;     // a hub model_type, or "house"
  std::string hf_config;  // path of a config.json; exclusive with preset
  std::string init_from;  // Hugging Face folder or checkpoint folder
  nlohmann::json overrides = nlohmann::json::object();  // model.*: Hugging Face field names
};

struct ParallelConfig {
  int64_t slices = 1;
  int64_t slice_size = 0;  // 0: ranks / slices; under launch the smallest legal
  int64_t tp = 1, ep = 1, etp = 1;
};

struct BatchConfig {
  int64_t rows = 8;  // sequences per step over all slices
  int64_t units = 0;  // R; 0: the largest divisor of rows up to 16 that the mesh allows
  int64_t micro_batch_rows = 1;
  int64_t seq_len = 256;
};

struct SourceConfig {
  std::string path;
  std::string kind;  // text | megatron
  double weight = 1;
  std::string hash = "";  // of the contents, 16 hex digits; empty: what is there is taken
};

struct DataConfig {
  std::vector<SourceConfig> sources;
  double validation = 0.01;  // share of the rows of each source that is held out
};

struct EvalConfig {
  int64_t every = 0;  // steps; 0: never
  int64_t rows = 32;
};

struct OptimConfig {
  double lr = 1e-3;
  double min_lr = 0;
  int64_t warmup_steps = 0;
  std::string schedule = "cosine";  // cosine | linear | constant | wsd
  int64_t decay_steps = 0;          // wsd: length of the final decay; 0: a tenth of the steps
  std::vector<double> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip = 1.0;  // 0: none
  int64_t block_elements = 0;  // 0: by the size of the model
};

struct MoeConfig {
  double aux_coef = -1;  // -1: the model's own value, else 1e-3
  std::string aux_scope = "previous_step";  // previous_step | round | sequence
  std::string aux_over_layers = "sum";      // sum | mean
  double z_coef = 1e-3;
  double bias_rate = 1e-3;
  std::string routing = "natural";        // natural | balanced | skewed
  std::string dispatcher = "all_to_all";  // all_to_all | all_gather
  double capacity_factor = 0;             // 0: no token is dropped
  std::string drop_policy = "probability";  // probability | position
  int64_t max_tokens = 0;  // memory guard: experts run in chunks above it; 0: none
};

struct CheckpointConfig {
  int64_t every = 0;  // steps; 0: none
  int64_t keep = 2;
  int64_t keep_every = 0;  // every n-th is permanent; 0: none
};

struct MetricsConfig {
  int64_t every = 1;
  int64_t fingerprint_every = 0;
  int64_t load_every = 10;       // table of expert counts; 0: none
  int64_t starved_after = 50;    // steps without a token, steps of imbalance: then warn
  double warn_max_vio = 0;       // 0: no warning
  double peak_gflops = 0;        // of one rank; 0: unknown, no share of it is reported
  bool tensorboard = true;
};

struct ObjectiveConfig {
  std::string kind = "causal_lm";  // causal_lm | distill
};

// Distillation: docs/distillation.md, spec model.md section 3.
struct DistillConfig {
  std::string store;    // folder of stored targets; given: training reads them
  std::string teacher;  // checkpoint or Hugging Face folder; without a store it runs in the step
  std::string variant = "sample_counts";  // see distill_variants() in objectives/distill_targets.h
  int64_t draws = 50;           // N of the sampled variants
  int64_t top_k = 20;           // k of the others
  double temperature = 1;
  double alpha = 0;             // weight of the cross-entropy
  double alpha_end = 0;         // linear: at the last step
  std::string schedule = "constant";  // of alpha: constant | linear | lr
  double importance_power = 0.5;      // draws from p^power
  bool importance_normalize = true;
  uint64_t seed = 1;            // of the draws
  std::string tokenizer;        // file that made the ids; empty: bytes for text, else unknown
  int64_t shard_tokens = 1 << 18;
};

struct QuantConfig {
  std::string format = "none";        // none | int4_channel | q4_0 | int4_g32 | int4_g128 | sfp8
  std::string estimator = "identity";  // identity | clipped
};

struct ElasticConfig {
  double lease = 2;                 // seconds of silence after which a slice is dropped
  std::string redundancy = "auto";  // auto | shadow | replicated | none
  int64_t min_slices = 1;           // with fewer the job pauses
  int64_t spares = 0;               // slices kept waiting
  int64_t max_restarts = 5;         // failures of a slice in a row before it is banned
  std::string mpirun = "mpirun";    // starts the ranks of a slice
  std::string hosts;                // of the slices: a,b:2,c; empty: this machine
  std::string remote = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ControlPath=none {host}";
  std::string address;    // of the coordinator, numeric; empty: what the hosts can reach
  std::string interface;  // of the links between slices; empty: what reaches the coordinator
};

struct SdcConfig {
  bool state = true;         // compare optimizer state and parameters with what was written
  int64_t canary_every = -1; // steps between canary units; 0: none, -1: by the number of units
  bool outliers = true;      // replay a step whose loss or gradient norm is far from its history
  bool dispatch = true;      // compare what ranks of a slice send each other with what arrives
  int64_t max_strikes = 3;   // wrong results of a slice before it is quarantined
  int64_t burn_in = 1000;    // times that a slice which was quarantined repeats the probe unit
  int64_t probation = 1000;  // steps with a canary of such a slice
};
struct FaultsConfig {
  std::string flip;    // bits to flip, for tests: slice:position:step:what:element:bit, ...
  std::string sticky;  // the same, from that step on, every time
  std::string spike;   // units whose hidden states are multiplied, by whoever computes them
  double unit_seconds = 0;  // elastic jobs, for measurements: a unit takes at least this long
};

struct Config {
  RunConfig run;
  TrainConfig train;
  ModelSection model;
  ParallelConfig parallel;
  BatchConfig batch;
  DataConfig data;
  EvalConfig eval;
  OptimConfig optim;
  MoeConfig moe;
  CheckpointConfig checkpoint;
  MetricsConfig metrics;
  ObjectiveConfig objective;
  DistillConfig distill;
  QuantConfig quant;
  ElasticConfig elastic;
  SdcConfig sdc;
  FaultsConfig faults;
};

}  // namespace maniple
