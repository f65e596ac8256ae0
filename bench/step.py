#!/usr/bin/env python3
"""Training speed of Maniple against transformers, side by side on this machine.

    bench/step.py [small] [medium] [--rounds N] [--only WORD] [--out FILE]

Both sides train the two reference models (Qwen3-MoE style; 4,096 tokens per step) from the same
weights on the same text with the same number of threads and LibTorch release, in turn: one run of a
few steps each per round, so that what else the machine does hits both. A run's figure is the median
of its steps after the first two; the table shows the median over the rounds and the ratio. Peers run
with tcmalloc preloaded where that is faster (all but `shipped`). Python packages go to a folder of
their own beside Maniple's cache; nothing is installed elsewhere but tcmalloc (Debian).
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("MANIPLE_CACHE") or
             Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "maniple")
PEER = CACHE / "bench-peer"
TORCH = os.environ.get("MANIPLE_TORCH_VERSION", "2.14.0")
TRANSFORMERS = "5.23.0"
TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
PROGRAM = ROOT / "build/bin/maniple"

COMMON = dict(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], norm_topk_prob=True,
              tie_word_embeddings=False, rope_theta=10000.0, rms_norm_eps=1e-6, hidden_act="silu",
              initializer_range=0.02, decoder_sparse_step=1, mlp_only_layers=[],
              attention_bias=False, attention_dropout=0.0, router_aux_loss_coef=0.001)
MODELS = {
    "small": dict(vocab_size=8192, hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
                  num_key_value_heads=4, head_dim=64, num_experts=16, num_experts_per_tok=2,
                  moe_intermediate_size=512, intermediate_size=512, max_position_embeddings=512),
    "medium": dict(vocab_size=16384, hidden_size=1024, num_hidden_layers=8, num_attention_heads=16,
                   num_key_value_heads=4, head_dim=64, num_experts=32, num_experts_per_tok=4,
                   moe_intermediate_size=512, intermediate_size=512, max_position_embeddings=1024),
}
ROWS = {"small": (8, 512), "medium": (4, 1024)}  # sequences per step, length
STEPS = {"small": 7, "medium": 5}


def say(text):
    print(text, file=sys.stderr, flush=True)


def set_up():
    if not PROGRAM.exists():
        sys.exit(f"error: {PROGRAM} is missing; run scripts/test or scripts/quickstart first")
    if not (PEER / ".complete").exists():
        say(f"installing torch {TORCH} and transformers {TRANSFORMERS} into {PEER}")
        shutil.rmtree(PEER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(PEER),
                        "--root-user-action=ignore", "--disable-pip-version-check",
                        f"torch=={TORCH}", f"transformers=={TRANSFORMERS}"], check=True)
        (PEER / ".complete").touch()
    if not Path(TCMALLOC).exists():
        subprocess.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends",
                        "libtcmalloc-minimal4"], check=True)


class Bench:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.text = self.folder / "text.txt"
        library = Path(os.__file__).parent
        self.text.write_bytes(b"".join(p.read_bytes() for p in sorted(library.glob("*.py"))))

    def model(self, name):
        folder = self.folder / name
        if not (folder / "model.safetensors").exists():
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps({**COMMON, **MODELS[name]}))
            self.python(["--model", folder, "--init"])
        return folder

    def python(self, arguments, preload=False):
        env = {**os.environ, "PYTHONPATH": str(PEER), "TRANSFORMERS_VERBOSITY": "error"}
        if preload:
            env["LD_PRELOAD"] = TCMALLOC
        command = [sys.executable, ROOT / "bench/peer_transformers.py", *arguments]
        return subprocess.run([str(c) for c in command], env=env, check=True, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout

    def peer(self, name, variant, routing="natural"):
        rows, length = ROWS[name]
        lines = self.python(["--model", self.model(name), "--text", self.text, "--variant", variant,
                             "--routing", routing, "--rows", rows, "--seq-len", length, "--steps",
                             STEPS[name]], preload=variant != "shipped").splitlines()
        records = [json.loads(line) for line in lines]
        seconds = [r["seconds"] for r in records if "seconds" in r][2:]
        return {"tokens_per_s": rows * length / statistics.median(seconds),
                "peak_mib": records[-1]["peak_mib"], "first_loss": records[0]["loss"]}

    def maniple(self, name, precision="bf16", routing="natural", ranks=1, slices=1, ep=1, scale=1,
                units=1, threads=2, checkpoints=0):
        """scale: this many times the tokens per step. `checkpoints`: five, one every so many steps;
        the figures are then those with one every 50 steps, and `without`."""
        rows, length = ROWS[name]
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        model = self.model(name)
        command = [PROGRAM, "train", ROOT / "bench/step.yaml", f"run.dir={run}", f"run.threads={threads}",
                   f"train.precision={precision}", f"train.steps={6 * checkpoints or STEPS[name]}",
                   f"checkpoint.every={checkpoints}",
                   f"model.hf_config={model}/config.json", f"model.init_from={model}",
                   f"batch.rows={rows * scale}", f"batch.units={units}", f"batch.seq_len={length}",
                   f"batch.micro_batch_rows={rows // (ranks // slices)}", f"parallel.slices={slices}",
                   f"parallel.ep={ep}", f"moe.routing={routing}",
                   f"data.sources=[{{path: '{self.text}', kind: text}}]"]
        if ranks > 1:
            command = ["mpirun", "-n", ranks, *command]
            command = ["bash", "-c", f'. {ROOT}/scripts/lib.sh; mpi_environment; exec "$@"', "-", *command]
        result = subprocess.run([str(c) for c in command], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if result.returncode:
            sys.exit(result.stdout)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        records = [r for r in records if "loss" in r]
        speed = statistics.median([r["tokens_per_s"] for r in records[2:]])
        out = {"tokens_per_s": speed, "first_loss": records[0]["loss"]}
        if checkpoints:
            # Runs of minutes drift by more than a checkpoint costs: compare the steps of one run.
            after = [1 / r["tokens_per_s"] for r in records if r["step"] > checkpoints and r["step"] % checkpoints == 1]
            rest = [1 / r["tokens_per_s"] for r in records if r["step"] > 2 and r["step"] % checkpoints != 1]
            free = statistics.median(rest)
            out["without"] = 1 / free
            out["tokens_per_s"] = 50 / (49 * free + statistics.median(after))
        for key in records[-1]:
            if key.startswith("time_") or key.startswith("memory_"):
                out[key] = statistics.median([r[key] for r in records[2:]])
        return out


def comparisons(model):
    """(word, bar, own arguments, other side: peer variant and routing, own arguments, or what the own
    side is without)."""
    yield "bf16 natural", 1.3, {}, ("strong", "natural")
    yield "bf16 balanced", 1.3, {"routing": "balanced"}, ("strong", "balanced")
    yield "bf16 skewed", 1.3, {"routing": "skewed"}, ("strong", "skewed")
    yield "bf16 shipped", 2.0, {}, ("shipped", "natural")
    yield "fp32", 1.2, {"precision": "fp32"}, ("fp32", "natural")
    if model == "small":
        yield "2 ranks ep 2", 0.95, {"ranks": 2, "ep": 2, "threads": 1, "routing": "balanced"}, {"routing": "balanced"}
        yield "2 ranks slices 2", 0.85, {"ranks": 2, "slices": 2, "scale": 2, "units": 2, "threads": 1}, {}
        yield "checkpoints", 0.98, {"checkpoints": 8}, None
        yield "exact sums R=4", 0.94, {"scale": 4, "units": 4}, {"scale": 4, "units": 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help="small, medium (both)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="comparisons whose name has this in it")
    parser.add_argument("--out", help="also write the results there, as JSON")
    args = parser.parse_args()
    set_up()
    results = []
    with tempfile.TemporaryDirectory(prefix="maniple-bench-") as folder:
        bench = Bench(folder)
        print(f"{'model':7} {'comparison':17} {'Maniple':>8} {'other':>8} {'ratio':>6} {'bar':>5}"
              f"  {'memory':>13}")
        for model in args.models or MODELS:
            for word, bar, own, other in comparisons(model):
                if args.only not in word:
                    continue
                ours, theirs = [], []
                for _ in range(args.rounds):
                    ours.append(bench.maniple(model, **own))
                    if other is None:
                        theirs.append({"tokens_per_s": ours[-1]["without"]})
                    else:
                        theirs.append(bench.peer(model, *other) if isinstance(other, tuple)
                                      else bench.maniple(model, **other))
                a = statistics.median(r["tokens_per_s"] for r in ours)
                b = statistics.median(r["tokens_per_s"] for r in theirs)
                memory = [max((r.get("peak_mib") or r.get("memory_rss_peak_mib") or 0) for r in side)
                          for side in (ours, theirs)]
                print(f"{model:7} {word:17} {a:8.0f} {b:8.0f} {a / b:6.2f} {bar:5.2f}"
                      f"  {memory[0]:6.0f} {memory[1]:6.0f}", flush=True)
                results.append({"model": model, "comparison": word, "ratio": a / b, "bar": bar,
                                "maniple": ours, "other": theirs})
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
