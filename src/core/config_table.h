// The table of configuration keys: name, member, rule, help. The loader, the printer, the reference
// page and the JSON Schema walk it; a key exists where it stands here and nowhere else. Defaults
// are those of the structs of core/config.h.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"

namespace maniple {

// What a value must satisfy besides its type.
struct Rule {
  std::vector<std::string> words = {};  // the only allowed texts; empty: any
  std::vector<std::string> later = {};  // texts of the design that this build does not support
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false, below_max = false;  // the bound itself is excluded
  std::optional<double> or_value = {};        // allowed although outside the bounds
  bool non_empty = false;                     // of texts
  std::optional<size_t> count = {};           // of lists
};

inline Rule any_value() { return {}; }
inline Rule non_empty() { return {.non_empty = true}; }
inline Rule one_of(std::vector<std::string> words, std::vector<std::string> later = {}) {
  return {.words = std::move(words), .later = std::move(later)};
}
inline Rule at_least(double min) { return {.min = min}; }
inline Rule at_least_or(double min, double value) { return {.min = min, .or_value = value}; }
inline Rule above(double min) { return {.min = min, .above_min = true}; }
inline Rule share() { return {.min = 0, .max = 1, .below_max = true}; }  // [0, 1)
inline Rule between(double min, double max) { return {.min = min, .max = max}; }
inline Rule pair_of_shares() { return {.min = 0, .max = 1, .below_max = true, .count = 2}; }

struct Key {
  std::string name;  // "group.key"
  Rule rule;
  std::string help;
};

inline std::string group_of(const std::string& name) { return name.substr(0, name.find('.')); }
inline std::string leaf_of(const std::string& name) { return name.substr(name.rfind('.') + 1); }

// The keys of one entry of data.sources. `visit(const Key&, member&)` is called once a key.
template <typename Source, typename Visitor>
void describe_source(Source& s, Visitor&& visit) {
  visit(
      Key{"path", non_empty(), "text: a file or folder; megatron: the path without .bin and .idx"},
      s.path);
  visit(Key{"kind", one_of({"text", "megatron"}, {"llmc", "hdf5"}), "format of the source"},
        s.kind);
  visit(Key{"weight", above(0), "share of the rows, relative to the other sources"}, s.weight);
  visit(Key{"hash", any_value(), "16 hex digits that the contents must have; empty: not compared"}, s.hash);
}

// A field of model.*: a field of Hugging Face configs, kept as JSON only where it is given.
enum class FieldType { kInteger, kNumber, kBool, kText, kIntegers, kTexts, kObject };
struct ModelField {
  Key key;  // "model.hidden_size"
  FieldType type;
  bool nullable = false;  // null is a value of its own ("none", or "derive it")
};
const std::vector<ModelField>& model_fields();

// Keys and whole groups of the design that this build refuses by name.
const std::vector<std::string>& later_keys();    // "parallel.slice_size"
const std::vector<std::string>& later_groups();  // "elastic"

// Walks all keys in the order in which they are printed: `visit(const Key&, member&)`, members of
// type std::string, bool, int64_t, uint64_t, double, std::vector<double>, std::vector<SourceConfig>
// and, once, nlohmann::json: the model fields that are given, under the name "model.*".
template <typename ConfigT, typename Visitor>
void describe(ConfigT& c, Visitor&& visit) {
  visit(Key{"run.dir", non_empty(), "run folder: config, metrics, checkpoints"}, c.run.dir);
  visit(Key{"run.seed", at_least(0), "key of every random draw"}, c.run.seed);
  visit(Key{"run.threads", between(1, 4096), "threads per rank; part of what fixes the bits"},
        c.run.threads);
  visit(Key{"run.device", one_of({"cpu", "cuda"}), "where the ranks compute; cuda needs a build with CUDA"}, c.run.device);
  visit(
      Key{"run.resume", non_empty(),
          "auto (the newest checkpoint of the run folder, if any), never, or a checkpoint folder"},
      c.run.resume);

  visit(Key{"train.steps", at_least(1), "number of optimizer steps"}, c.train.steps);
  visit(Key{"train.precision", one_of({"fp32", "bf16", "fp64"}),
            "type of weights and activations in forward and backward"},
        c.train.precision);
  visit(Key{"train.recompute", any_value(),
            "recompute each layer's activations in the backward pass"},
        c.train.recompute);

  visit(
      Key{"model.preset", any_value(), "a hub model_type or house; exclusive with model.hf_config"},
      c.model.preset);
  visit(Key{"model.hf_config", any_value(), "path of a config.json; exclusive with model.preset"},
        c.model.hf_config);
  visit(Key{"model.init_from", any_value(),
            "initial weights: a Hugging Face folder or a checkpoint folder"},
        c.model.init_from);
  visit(Key{"model.*", any_value(), "fields that replace those of the preset or hf_config"},
        c.model.overrides);

  visit(Key{"parallel.slices", at_least(1), "complete replicas; slice size = ranks / slices"},
        c.parallel.slices);
  visit(Key{"parallel.slice_size", at_least(0),
            "ranks of a slice; 0: ranks / slices, under launch the smallest legal number"},
        c.parallel.slice_size);
  visit(Key{"parallel.tp", at_least(1), "tensor-parallel ranks of the dense layers"},
        c.parallel.tp);
  visit(Key{"parallel.ep", at_least(1), "ranks over which the experts are divided"}, c.parallel.ep);
  visit(Key{"parallel.etp", at_least(1), "ranks over which each expert's width is divided"},
        c.parallel.etp);

  visit(Key{"batch.rows", at_least(1), "sequences per step over all slices"}, c.batch.rows);
  visit(Key{"batch.units", at_least(0),
            "indivisible pieces of a step (R); 0: the largest legal divisor of rows up to 16"},
        c.batch.units);
  visit(Key{"batch.micro_batch_rows", at_least(1), "sequences per rank and forward pass"},
        c.batch.micro_batch_rows);
  visit(Key{"batch.seq_len", at_least(1), "targets per sequence"}, c.batch.seq_len);

  visit(Key{"data.sources", any_value(),
            "list of {path, kind, weight, hash}; hash: 16 hex digits that the contents must have, as "
            "config.resolved.yaml of a launched run names them"},
        c.data.sources);
  visit(Key{"data.validation", share(), "share of the rows of each source that is held out"},
        c.data.validation);
  visit(Key{"eval.every", at_least(0), "steps between evaluations; 0: never"}, c.eval.every);
  visit(Key{"eval.rows", at_least(1), "sequences per evaluation"}, c.eval.rows);

  visit(Key{"optim.lr", at_least(0), "peak learning rate"}, c.optim.lr);
  visit(Key{"optim.min_lr", at_least(0), "learning rate at the end of the decay"}, c.optim.min_lr);
  visit(Key{"optim.warmup_steps", at_least(0), "steps of linear warm-up"}, c.optim.warmup_steps);
  visit(Key{"optim.schedule", one_of({"cosine", "linear", "constant", "wsd"}),
            "course of the learning rate after the warm-up"},
        c.optim.schedule);
  visit(Key{"optim.decay_steps", at_least(0),
            "wsd: length of the final decay; 0: a tenth of the steps"},
        c.optim.decay_steps);
  visit(Key{"optim.betas", pair_of_shares(), "decay rates of the two moments"}, c.optim.betas);
  visit(Key{"optim.eps", above(0), "term of the denominator"}, c.optim.eps);
  visit(Key{"optim.weight_decay", at_least(0), "decoupled weight decay"}, c.optim.weight_decay);
  visit(Key{"optim.clip", at_least(0), "largest norm of the gradient; 0: none"}, c.optim.clip);
  visit(Key{"optim.block_elements", at_least(0),
            "elements per block of the optimizer state; 0: a 64th of the model's, as a power of two from "
            "4,096 to 1,048,576"},
        c.optim.block_elements);

  visit(Key{"moe.aux_coef", at_least_or(0, -1),
            "coefficient of the balance loss; -1: the model's own value, else 1e-3"},
        c.moe.aux_coef);
  visit(Key{"moe.aux_scope", one_of({"previous_step", "round", "sequence"}),
            "tokens over which the balance loss takes expert counts"},
        c.moe.aux_scope);
  visit(Key{"moe.aux_over_layers", one_of({"sum", "mean"}), "balance losses of the layers"},
        c.moe.aux_over_layers);
  visit(Key{"moe.z_coef", at_least(0), "coefficient of the router's z-loss"}, c.moe.z_coef);
  visit(Key{"moe.bias_rate", at_least(0), "step of the router bias (aux-loss-free balance)"},
        c.moe.bias_rate);
  visit(Key{"moe.routing", one_of({"natural", "balanced", "skewed"}),
            "balanced and skewed replace the router's choice, for measurements"},
        c.moe.routing);
  visit(Key{"moe.dispatcher", one_of({"all_to_all", "all_gather"}), "how tokens reach experts"},
        c.moe.dispatcher);
  visit(Key{"moe.capacity_factor", at_least(0),
            "training: an expert gets at most ceil(factor x experts per token x tokens / experts) of the "
            "tokens of a rank's micro-batch, the others go without it; 0: no token is dropped"},
        c.moe.capacity_factor);
  visit(Key{"moe.drop_policy", one_of({"probability", "position"}),
            "tokens beyond the capacity: those with the least weight for the expert, or the last ones"},
        c.moe.drop_policy);
  visit(Key{"moe.max_tokens", at_least(0), "memory guard: experts run in chunks above it; 0: none"},
        c.moe.max_tokens);

  visit(Key{"checkpoint.every", at_least(0), "steps between checkpoints; 0: none"},
        c.checkpoint.every);
  visit(Key{"checkpoint.keep", at_least(1), "newest checkpoints that are kept"}, c.checkpoint.keep);
  visit(Key{"checkpoint.keep_every", at_least(0), "every n-th checkpoint is permanent; 0: none"},
        c.checkpoint.keep_every);

  visit(Key{"metrics.every", at_least(1), "steps between reports"}, c.metrics.every);
  visit(Key{"metrics.fingerprint_every", at_least(0),
            "steps between fingerprints of the state; 0: never"},
        c.metrics.fingerprint_every);
  visit(Key{"metrics.load_every", at_least(0),
            "steps between tables of expert counts in expert_load.jsonl; 0: never"},
        c.metrics.load_every);
  visit(Key{"metrics.starved_after", at_least(1),
            "steps after which an expert without tokens, or lasting imbalance, is warned of"},
        c.metrics.starved_after);
  visit(Key{"metrics.warn_max_vio", at_least(0),
            "MaxVio above which the imbalance is warned of; 0: never"},
        c.metrics.warn_max_vio);
  visit(Key{"metrics.peak_gflops", at_least(0),
            "10^9 operations a second that one rank can do, for share_of_peak; 0: unknown"},
        c.metrics.peak_gflops);
  visit(Key{"metrics.tensorboard", any_value(), "write scalars for TensorBoard into tb/"},
        c.metrics.tensorboard);

  visit(Key{"objective.kind", one_of({"causal_lm", "distill"}), "what is minimised"},
        c.objective.kind);

  visit(Key{"distill.store", any_value(),
            "folder of a teacher store: maniple teach writes it, training reads it"},
        c.distill.store);
  visit(Key{"distill.teacher", any_value(),
            "checkpoint or Hugging Face folder: the teacher of maniple teach; without a store it "
            "runs inside the step"},
        c.distill.teacher);
  visit(Key{"distill.variant",
            one_of({"sample_counts", "sample_renorm", "importance", "topk_renorm", "topk_raw",
                    "topk_ghost", "topk_to_label", "full"}),
            "target that the student learns; full needs a teacher inside the step"},
        c.distill.variant);
  visit(Key{"distill.draws", between(1, 256), "draws per token of sample_* and importance"},
        c.distill.draws);
  visit(Key{"distill.top_k", between(1, 4096), "most likely ids per token of topk_*"},
        c.distill.top_k);
  visit(Key{"distill.temperature", above(0),
            "of both soft-maxes, the loss times its square; 1 for sampled variants"},
        c.distill.temperature);
  visit(Key{"distill.alpha", between(0, 1), "weight of the cross-entropy beside the distillation"},
        c.distill.alpha);
  visit(Key{"distill.alpha_end", between(0, 1), "schedule linear: alpha at the last step"},
        c.distill.alpha_end);
  visit(Key{"distill.schedule", one_of({"constant", "linear", "lr"}),
            "course of alpha; lr: the weight of the distillation, 1 - alpha, follows the learning "
            "rate"},
        c.distill.schedule);
  visit(Key{"distill.importance_power", above(0), "importance draws from p^power"},
        c.distill.importance_power);
  visit(Key{"distill.importance_normalize", any_value(), "importance weights of a token sum to 1"},
        c.distill.importance_normalize);
  visit(Key{"distill.seed", at_least(0), "key of the draws"}, c.distill.seed);
  visit(Key{"distill.tokenizer", any_value(),
            "tokenizer file that made the ids, to compare with the store; '': bytes for text, else "
            "unknown"},
        c.distill.tokenizer);
  visit(Key{"distill.shard_tokens", at_least(1), "tokens per file of a store that is written"},
        c.distill.shard_tokens);
  visit(Key{"quant.format",
            one_of({"none", "int4_channel", "q4_0", "int4_g32", "int4_g128", "sfp8"},
                   {"int8_channel", "int4_asymmetric", "fp8", "nvfp4", "mxfp4"}),
            "grid on which the weights of the projections are trained (docs/quantisation.md)"},
        c.quant.format);
  visit(Key{"quant.estimator", one_of({"identity", "clipped"}),
            "gradient of a rounded weight: passed on, or 0 where the value was out of range"},
        c.quant.estimator);

  visit(Key{"elastic.lease", between(0.1, 3600),
            "seconds of silence after which a slice is dropped; all other time-outs follow from it"},
        c.elastic.lease);
  visit(Key{"elastic.redundancy", one_of({"auto", "shadow", "replicated", "none"}),
            "slices that hold each block of the optimizer state: two, all or one; auto: shadow under "
            "launch"},
        c.elastic.redundancy);
  visit(Key{"elastic.min_slices", at_least(1), "with fewer slices the job pauses"},
        c.elastic.min_slices);
  visit(Key{"elastic.spares", at_least(0), "slices beyond parallel.slices that wait to step in"},
        c.elastic.spares);
  visit(Key{"elastic.max_restarts", at_least(0),
            "failures of a slice in a row after which it is not started again"},
        c.elastic.max_restarts);
  visit(Key{"elastic.mpirun", non_empty(), "program that starts the ranks of a slice"},
        c.elastic.mpirun);
  visit(Key{"elastic.hosts", any_value(),
            "hosts that the slices are dealt out to, a list with commas of host or host:slices; "
            "empty: all slices on this machine"},
        c.elastic.hosts);
  visit(Key{"elastic.remote", non_empty(),
            "words that run a command on {host}, with its standard input, and end with it"},
        c.elastic.remote);
  visit(Key{"elastic.address", any_value(),
            "numeric address on which the coordinator listens; empty: the one by which the hosts "
            "are reached, 127.0.0.1 without hosts"},
        c.elastic.address);
  visit(Key{"elastic.interface", any_value(),
            "network interface, on every host, for the links between slices; empty: the one by "
            "which the coordinator is reached"},
        c.elastic.interface);
  visit(Key{"sdc.state", any_value(),
            "elastic jobs: compare optimizer state, parameters and sums of gradients with what was "
            "written and added, and between the slices, in every step"},
        c.sdc.state);
  visit(Key{"sdc.canary_every", at_least(-1),
            "elastic jobs: steps between canary units, which two slices compute and compare; 0: none, "
            "-1: max(4, 250 slices / units), about 0.4 % of the time; a slice with fewer units than "
            "others computes one in every step"},
        c.sdc.canary_every);
  visit(Key{"sdc.outliers", any_value(),
            "elastic jobs: replay a step whose loss or gradient norm is far from the last 128 steps"},
        c.sdc.outliers);
  visit(Key{"sdc.dispatch", any_value(),
            "compare the rows that the ranks of a slice send each other for the experts with what arrives"},
        c.sdc.dispatch);
  visit(Key{"sdc.max_strikes", at_least(1),
            "elastic jobs: wrong results of a slice before it is quarantined, until ctl readmit"},
        c.sdc.max_strikes);
  visit(Key{"sdc.burn_in", at_least(1),
            "elastic jobs: times that a slice which was quarantined and readmitted must compute the "
            "probe unit with the same bits before it is taken"},
        c.sdc.burn_in);
  visit(Key{"sdc.probation", at_least(0),
            "elastic jobs: steps, after such a slice has joined, with a canary unit of it in each"},
        c.sdc.probation);
  visit(Key{"faults.flip", any_value(),
            "elastic jobs, for tests: bits to flip, a list with commas of "
            "slice:position:step:what:element:bit; what is master, m, v, parameter, gradient, sum, "
            "reduced, hidden, gate, index, expert or row; a slice of all is every one"},
        c.faults.flip);
  visit(Key{"faults.sticky", any_value(),
            "elastic jobs, for tests: as faults.flip, from that step on, every time; with :p behind it "
            "only with that probability"},
        c.faults.sticky);
  visit(Key{"faults.spike", any_value(),
            "for tests: a list with commas of step:unit:factor; whoever computes that unit multiplies "
            "its last hidden states by the factor, as data that nobody expected might"},
        c.faults.spike);
  visit(Key{"faults.unit_seconds", at_least(0),
            "elastic jobs, for measurements: a unit takes at least this long; the processors are free meanwhile"},
        c.faults.unit_seconds);
}

}  // namespace maniple
