"""Reads exports with other people's programs and compares. Each line of the input is a check:

gguf FILE FAKE            tensors of the file, dequantised by PyPI gguf, are those of FAKE
packed FOLDER FAKE        the same for compressed-tensors
logits FOLDER LOGITS IDS  transformers computes these logits
llama FILE LOGITS IDS [FOLDER]
                          llama.cpp makes the same greedy choices, and tokenises bytes alike, or with
                          FOLDER several texts as the tokenizer there

Prints a line for each; exits with 1 where something differs. A check whose program is not installed
is skipped.
"""
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"


def gguf_tensors(path, fake_path):
    import gguf
    import numpy as np
    from safetensors.numpy import load_file
    fake = load_file(fake_path)
    experts = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}
    plain = {"self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.weight": "attn_k.weight",
             "self_attn.v_proj.weight": "attn_v.weight", "self_attn.o_proj.weight": "attn_output.weight",
             "mlp.gate.weight": "ffn_gate_inp.weight", "input_layernorm.weight": "attn_norm.weight"}
    read = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    compared = 0
    for name, want in fake.items():
        parts = name.split(".")
        if name == "model.embed_tokens.weight":
            got = read["token_embd.weight"]
        elif ".experts." in name:
            got = read[f"blk.{parts[2]}.{experts[parts[6].split('_')[0]]}.weight"][int(parts[5])]
        elif ".".join(parts[3:]) in plain:
            got = read[f"blk.{parts[2]}.{plain['.'.join(parts[3:])]}"]
        else:
            continue
        if not np.array_equal(got.reshape(want.shape).astype(np.float32), want):
            raise ValueError(f"{name} differs")
        compared += 1
    return f"{compared} tensors equal"


def packed_tensors(folder, fake_path):
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file
    with open(f"{folder}/config.json") as file:
        config = QuantizationConfig.model_validate(json.load(file)["quantization_config"])
    scheme = next(iter(config.config_groups.values()))
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    stored, fake, compared = load_file(f"{folder}/model.safetensors"), load_file(fake_path), 0
    for name in [n for n in stored if n.endswith(".weight_packed")]:
        module = name.removesuffix("_packed").removesuffix(".weight")
        parts = {key: stored[f"{module}.{key}"] for key in ("weight_packed", "weight_scale", "weight_shape")}
        got = compressor.decompress(parts, scheme)["weight"]
        if not torch.equal(got.float(), fake[module + ".weight"]):
            raise ValueError(f"{module} differs")
        compared += 1
    return f"{compared} tensors equal"


def transformers_logits(folder, logits_path, ids_path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    with open(ids_path) as file:
        ids = torch.tensor(json.load(file))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        worst = (model(ids).logits - load_file(logits_path)["logits"]).abs().max().item()
    if not worst < 1e-4:
        raise ValueError(f"logits differ by {worst}")
    return f"logits within {worst:.1e}"


TEXTS = ["First Citizen:\nBefore we proceed any further, hear me speak.", "It's  1623;   don't\tYOU'LL see\n\n  wait?! ",
         "na\u00efve \u2014 \u4f60\u597d, \U0001f44b\r\n42x7 _a_b"]


def llama_choices(path, logits_path, ids_path, folder=None):
    import numpy as np
    from llama_cpp import Llama
    from safetensors.numpy import load_file
    with open(ids_path) as file:
        ids = json.load(file)[0]
    model = Llama(path, n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    if folder:
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        samples = [(text.encode(), tokenizer.encode(text).ids) for text in TEXTS]
    else:
        samples = [(bytes(ids), ids)]
    for text, want in samples:
        got = model.tokenize(text, add_bos=False, special=False)
        if got != want:
            raise ValueError(f"tokenises {text} as {got} and not as {want}")
    model.eval(ids)
    got, want = np.array(model.scores[:len(ids)]), load_file(logits_path)["logits"][0]
    worst = np.abs(got - want).max()
    # Close calls may fall either way: llama.cpp rounds activations to 8 bits.
    two = np.sort(want, axis=1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 2 * worst
    if (got.argmax(1) != want.argmax(1))[clear].any():
        raise ValueError("other greedy choices")
    return f"logits within {worst:.1e}, {(got.argmax(1) == want.argmax(1)).sum()} of {len(ids)} greedy choices equal"


def main():
    kinds = {"gguf": gguf_tensors, "packed": packed_tensors, "logits": transformers_logits, "llama": llama_choices}
    failures = 0
    for line in sys.stdin:
        kind, *arguments = line.split()
        try:
            result = kinds[kind](*arguments)
        except ImportError as missing:
            result = f"skipped: {missing}"
        except Exception as error:  # whatever a reader throws is a finding
            failures += 1
            result = f"FAILED: {type(error).__name__}: {str(error)[:300]}"
        print(f"{kind} {arguments[0]}: {result}", flush=True)
    sys.exit(failures > 0)


main()
