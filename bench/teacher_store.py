#!/usr/bin/env python3
"""The teacher store at scale: its size, how fast it is written and read, what a kill and a flipped byte do.

    bench/teacher_store.py [--tokens 10000000] [--rounds 5] [--out FOLDER] [overrides...]

Text: the Python sources of this machine, cut into words; the 7,935 most frequent words are ids beside
the 257 of the bytes (vocabulary 8,192). Teacher: a tiny model trained on it. What is in the folder
already is not done again; parts of the report:

  bytes     of the store per token, against 3 x distinct ids + 4
  writing   `teach` against forward pass and loss of the same teacher on as many tokens (`eval`): processor
            seconds per token of one thread, in turn; starts are subtracted (two lengths)
  step      a training step of distillation against one of cross-entropy, measured in the same way
  reading   a student trains from the store: the share of the time in which it waited for rows
  kill      the writer of another store is killed as it writes and run again
  flip      one byte of a file is flipped: `verify` names the file
"""
import argparse
import array
import collections
import json
import random
import re
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build/bin/maniple"
VOCABULARY, BYTES, END = 8192, 256, 256
SEQ_LEN, VALIDATION = 512, 0.04
TEACHER = ["model.preset=house", f"model.vocab_size={VOCABULARY}", "model.hidden_size=128",
           "model.num_hidden_layers=2", "train.precision=fp32", f"batch.seq_len={SEQ_LEN}",
           "batch.rows=8", "batch.micro_batch_rows=8", "optim.lr=3e-3", "optim.warmup_steps=10",
           f"data.validation={VALIDATION}", "run.resume=never"]


def write_tokens(out, wanted):
    """Words of Python files as a Megatron data set; one document a file."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    random.Random(1).shuffle(files)
    texts, words, number = [], collections.Counter(), 0
    for file in files:
        texts.append(re.findall(rb" ?\w+|\s+|[^\w\s]", file.read_bytes()))
        words.update(texts[-1])
        number += len(texts[-1])
        if number > wanted * 1.1:
            break
    ids = {bytes([b]): b for b in range(BYTES)}
    for word, _ in words.most_common():
        if len(ids) == VOCABULARY - 1:
            break
        ids.setdefault(word, len(ids) + 1 if len(ids) >= BYTES else len(ids))
    tokens, lengths = array.array("H"), []
    for text in texts:
        begin = len(tokens)
        for word in text:
            if word in ids:
                tokens.append(ids[word])
            else:
                tokens.extend(word)
        tokens.append(END)
        lengths.append(len(tokens) - begin)
        if len(tokens) > wanted:
            break
    out.with_suffix(".bin").write_bytes(tokens.tobytes())
    offsets, at = array.array("q"), 0
    for n in lengths:
        offsets.append(at)
        at += 2 * n
    marks = array.array("q", range(len(lengths) + 1))
    out.with_suffix(".idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(marks)) +
        array.array("i", lengths).tobytes() + offsets.tobytes() + marks.tobytes())


def run(*words, check=True):
    """Output, processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(w) for w in (PROGRAM, *words)], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (done.stdout if check else done.stderr), seconds


def store_size(store):
    text = run("inspect", store)[0]
    find = lambda pattern: re.search(pattern, text).group(1)
    return {"rows": int(find(r"rows\s+(\d+) of")), "bytes": int(find(r"bytes\s+(\d+) \(")),
            "ids": float(find(r"ids per target\s+([\d.]+)"))}


class Bench:
    def __init__(self, out, tokens, overrides):
        self.out, self.tokens = out, tokens
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "text.idx").exists():
            write_tokens(out / "text", tokens / (1 - VALIDATION) + SEQ_LEN)
        config = out / "config.yaml"
        config.write_text("{}\n")
        self.base = [config, *TEACHER, *overrides,
                     f"data.sources=[{{path: '{out}/text', kind: megatron}}]"]
        self.teacher = out / "teacher"
        if not (self.teacher / "checkpoints/latest").exists():
            run("train", *self.base, f"run.dir={self.teacher}", "train.steps=150", "checkpoint.every=150")

    def teach(self, store, *words):
        return ["teach", *self.base, f"distill.teacher={self.teacher}", f"distill.store={store}", *words]

    def write(self):
        store, begin = self.out / "store", time.monotonic()
        said = run(*self.teach(store))[0].strip().splitlines()[-1]
        if "wrote" in said:
            print(f"  {said} ({time.monotonic() - begin:.0f} s)", flush=True)
        return store

    def speed(self, rounds):
        """Processor seconds of `eval` and of `teach` for the same further tokens."""
        long, short = 96, 32  # rows; teach counts steps of 8 rows
        shares = []
        for _ in range(rounds):
            cost = {}
            for rows in (short, long):
                cost["eval", rows] = run("eval", self.teacher, "--rows", rows)[1]
                store = self.out / "timed"
                shutil.rmtree(store, ignore_errors=True)
                cost["teach", rows] = run(*self.teach(
                    store, "--rows-of-run", f"train.steps={rows // 8}", "optim.warmup_steps=0"))[1]
            further = {w: cost[w, long] - cost[w, short] for w in ("eval", "teach")}
            shares.append(further["eval"] / further["teach"])
            tokens = (long - short) * SEQ_LEN
            print(f"  forward {tokens / further['eval']:.0f} tokens/s, teach "
                  f"{tokens / further['teach']:.0f} tokens/s: {100 * shares[-1]:.0f} %", flush=True)
        return statistics.median(shares)

    def step(self, store, rounds):
        """Processor seconds of a distillation step over those of a cross-entropy step."""
        distil, ratios = ["objective.kind=distill", f"distill.store={store}"], []
        for _ in range(rounds):
            cost = {}
            for steps in (4, 20):
                for name, objective in (("ce", []), ("kd", distil)):
                    cost[name, steps] = run("train", *self.base, *objective, f"train.steps={steps}",
                                            "optim.warmup_steps=0", f"run.dir={self.out}/timed-run")[1]
            further = {w: (cost[w, 20] - cost[w, 4]) / 16 for w in ("ce", "kd")}
            ratios.append(further["kd"] / further["ce"])
            print(f"  step {further['ce']:.3f} s, with distillation {further['kd']:.3f} s: {ratios[-1]:.3f}",
                  flush=True)
        return statistics.median(ratios)

    def read(self, store):
        out = self.out / "student"
        run("train", *self.base, "objective.kind=distill", f"distill.store={store}", "train.steps=20",
            f"run.dir={out}", "model.hidden_size=64", "model.num_attention_heads=2",
            "model.num_key_value_heads=1")
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [s for s in steps if "loss" in s][2:]
        wait = sum(s["time_data"] for s in steps)
        whole = sum(s["tokens"] / s["tokens_per_s"] for s in steps)
        return wait, whole

    def kill(self):
        store, part = self.out / "killed", ["distill.shard_tokens=16384", "--rows-of-run", "train.steps=40"]
        shutil.rmtree(store, ignore_errors=True)
        job = subprocess.Popen([str(w) for w in (PROGRAM, *self.teach(store, *part))],
                               stdout=subprocess.DEVNULL)
        while len(list(store.glob("*.h5"))) < 3:
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
        job.wait()
        before = len(list(store.glob("*.h5")))
        run(*self.teach(store, *part))
        run("verify", store)  # every hash; a row that is there twice is refused
        return before, len(list(store.glob("*.h5"))), store_size(store)["rows"]

    def flip(self, store):
        file = sorted(store.glob("*.h5"))[-1]
        whole = file.read_bytes()
        at = len(whole) // 2
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        said = run("verify", store, check=False)[0]
        file.write_bytes(whole)
        return file.name in said, said.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=1e7)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/teacher-store")
    parser.add_argument("--only", default="write speed step read kill flip")
    parser.add_argument("overrides", nargs="*")
    o = parser.parse_args()
    bench = Bench(o.out.resolve(), o.tokens, ["run.threads=1", *o.overrides])
    store = bench.write() if "write" in o.only else bench.out / "store"
    if "write" in o.only:
        size = store_size(store)
        tokens = size["rows"] * SEQ_LEN
        bound = 3 * size["ids"] + 4
        print(f"bytes: {size['bytes'] / tokens:.2f} per token for {tokens} tokens, {size['ids']:.2f} distinct "
              f"ids; 3 x ids + 4 = {bound:.2f}: {100 * (size['bytes'] / tokens / bound - 1):+.2f} %")
    if "speed" in o.only:
        print(f"writing: {100 * bench.speed(o.rounds):.0f} % of the forward speed (median)")
    if "step" in o.only:
        print(f"step: {bench.step(store, o.rounds):.3f} times that of cross-entropy (median)")
    if "read" in o.only:
        wait, whole = bench.read(store)
        print(f"reading: waited {1e3 * wait:.2f} ms of {whole:.1f} s ({100 * wait / whole:.4f} %)")
    if "kill" in o.only:
        before, after, rows = bench.kill()
        print(f"kill: {before} of {after} files were there; run again: {rows} of 320 rows, none twice")
    if "flip" in o.only:
        named, said = bench.flip(store)
        print(f"flip: {'named' if named else 'NOT NAMED'}: {said}")


main()
