"""Makes a small random model of each family as a Hugging Face folder, with a byte-level BPE tokenizer
(Qwen's way to split text) trained on a file:  make_models.py TEXT FOLDER"""
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
COMMON = dict(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=256, initializer_range=0.2, rms_norm_eps=1e-6)
EXPERTS = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1)
FAMILIES = {
    "qwen3_moe": dict(head_dim=16, norm_topk_prob=True, mlp_only_layers=[], **EXPERTS),
    "qwen2_moe": dict(norm_topk_prob=False, intermediate_size=64, shared_expert_intermediate_size=64, **EXPERTS),
    "mixtral": dict(head_dim=16, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "gemma3_text": dict(COMMON, num_hidden_layers=6, head_dim=16, intermediate_size=96, sliding_window=16,
                        query_pre_attn_scalar=16, pad_token_id=0, eos_token_id=0, bos_token_id=0),
}


def main():
    text, folder = sys.argv[1:]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train([text], trainers.BpeTrainer(vocab_size=500, special_tokens=["<|endoftext|>"], show_progress=False,
                                                initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    for family, own in FAMILIES.items():
        set_seed(1)
        config = AutoConfig.for_model(family, **{**COMMON, **own})
        path = f"{folder}/{family}"
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(path)


main()
