"""One training run of a Qwen3-MoE model with transformers, timed step by step: the peer of step.py.

Variants: `shipped` (eager experts, fp32 weights under bf16 autocast), `grouped` (the same with
grouped_mm), `strong` (bf16 model with fp32 masters of its own, grouped_mm: the fastest found), `fp32`
(grouped_mm). Prints one JSON object per step and a last one with the peak memory.
"""
import argparse
import json
import resource
import sys
import time

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


class MasterAdamW:
    """fp32 masters of a bf16 model under PyTorch's fused AdamW."""

    def __init__(self, params, **settings):
        self.params = list(params)
        self.masters = [p.detach().float().clone().requires_grad_() for p in self.params]
        self.inner = torch.optim.AdamW(self.masters, fused=True, **settings)

    def step(self):
        grads = [p.grad for p in self.params]
        for master, grad in zip(self.masters, grads):
            master.grad = grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.inner.step()
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.masters)
        for p, master in zip(self.params, self.masters):
            p.grad = master.grad = None


class PlainAdamW:
    def __init__(self, params, **settings):
        self.params = list(params)
        self.inner = torch.optim.AdamW(self.params, fused=True, **settings)

    def step(self):
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)


def force_routing(model, kind):
    """Replaces the router's choice, keeping its products and weights: round robin, or skewed."""

    def patched(router, hidden):
        hidden = hidden.reshape(-1, router.hidden_dim)
        logits = torch.nn.functional.linear(hidden, router.weight)
        probabilities = torch.softmax(logits, dtype=torch.float, dim=-1)
        tokens, k, experts = hidden.shape[0], router.top_k, router.num_experts
        index = (torch.arange(tokens * k) % experts).view(tokens, k)
        if kind == "skewed":
            index[::2] = torch.arange(k)
        weights = probabilities.gather(1, index)
        weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights.to(logits.dtype), index

    for layer in model.model.layers:
        router = layer.mlp.gate
        router.forward = patched.__get__(router)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder with config.json and weights")
    parser.add_argument("--init", action="store_true", help="write random weights there and stop")
    parser.add_argument("--text", help="file whose bytes are the tokens")
    parser.add_argument("--variant", default="strong")
    parser.add_argument("--routing", default="natural")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)

    if args.init:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig.from_pretrained(args.model))
        model.save_pretrained(args.model)
        return
    strong = args.variant == "strong"
    experts = "eager" if args.variant == "shipped" else "grouped_mm"
    model = Qwen3MoeForCausalLM.from_pretrained(
        args.model, dtype=torch.bfloat16 if strong else torch.float32,
        experts_implementation=experts, attn_implementation="sdpa")
    model.train()
    if args.routing != "natural":
        force_routing(model, args.routing)
    settings = dict(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = (MasterAdamW if strong else PlainAdamW)(model.parameters(), **settings)
    data = torch.frombuffer(bytearray(open(args.text, "rb").read()), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(7)
    for step in range(args.steps):
        start = time.perf_counter()
        at = torch.randint(0, len(data) - args.seq_len - 1, (args.rows,), generator=generator)
        ids = torch.stack([data[i:i + args.seq_len + 1] for i in at.tolist()]).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.variant in ("shipped", "grouped")):
            # The model's own loss, on shifted labels that are given apart.
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - start
        print(json.dumps({"step": step + 1, "loss": loss.item(), "seconds": seconds}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mib": peak, "torch": torch.__version__}))


if __name__ == "__main__":
    sys.exit(main())
