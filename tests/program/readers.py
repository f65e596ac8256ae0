"""Reads exports with other people's programs and compares.

readers.py gguf FILE FAKE        tensors of the file, dequantised by PyPI gguf, are those of FAKE
readers.py packed FOLDER FAKE    the same for compressed-tensors
readers.py logits FOLDER LOGITS  transformers computes these logits for ids.json
readers.py llama FILE LOGITS     llama.cpp makes the same greedy choices, and tokenises bytes alike

Prints one line; exits with 1 where something differs, with 77 where the program is not installed.
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
            sys.exit(f"{name} differs")
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
            sys.exit(f"{module} differs")
        compared += 1
    return f"{compared} tensors equal"


def transformers_logits(folder, logits_path):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    with open("ids.json") as file:
        ids = torch.tensor(json.load(file))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        worst = (model(ids).logits - load_file(logits_path)["logits"]).abs().max().item()
    if not worst < 1e-4:
        sys.exit(f"logits differ by {worst}")
    return f"logits within {worst:.1e}"


def llama_choices(path, logits_path):
    import numpy as np
    from llama_cpp import Llama
    from safetensors.numpy import load_file
    with open("ids.json") as file:
        ids = json.load(file)[0]
    model = Llama(path, n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    text = bytes(ids)
    if model.tokenize(text, add_bos=False, special=False) != ids:
        sys.exit(f"tokenises {text} as {model.tokenize(text, add_bos=False, special=False)}")
    model.eval(ids)
    got, want = np.array(model.scores[:len(ids)]), load_file(logits_path)["logits"][0]
    worst = np.abs(got - want).max()
    # Close calls may fall either way: llama.cpp rounds activations to 8 bits.
    two = np.sort(want, axis=1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 2 * worst
    if (got.argmax(1) != want.argmax(1))[clear].any():
        sys.exit("other greedy choices")
    return f"logits within {worst:.1e}, {(got.argmax(1) == want.argmax(1)).sum()} of {len(ids)} greedy choices equal"


def main():
    kind = {"gguf": gguf_tensors, "packed": packed_tensors, "logits": transformers_logits,
            "llama": llama_choices}[sys.argv[1]]
    try:
        print(f"{sys.argv[1]} {sys.argv[2]}: {kind(sys.argv[2], sys.argv[3])}")
    except ImportError as missing:
        print(f"skipped: {missing}")
        sys.exit(77)


main()
