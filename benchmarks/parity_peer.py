"""The peers' side of benchmarks/parity.py: writes a folder for every family, with random weights, by transformers."""

import sys
from pathlib import Path

import torch
import transformers as hf

SIZES = {
    "vocab_size": 384,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
T5_SIZES = {"vocab_size": 384, "d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 3, "num_heads": 4}
GROUPED = {"num_key_value_heads": 2}
SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def models() -> dict[str, hf.PreTrainedModel]:
    """By name; weights are those of transformers' own initialisation."""
    gpt2 = hf.GPT2Config(vocab_size=384, n_positions=64, n_embd=48, n_layer=3, n_head=4)
    configs = {
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES, **GROUPED)),
        "llama-3": (hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES, **GROUPED, rope_parameters=SCALED_ROPE)),
        "llama-tied": (hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES, head_dim=8, tie_word_embeddings=True)),
        "mistral": (hf.MistralForCausalLM, hf.MistralConfig(**SIZES, **GROUPED, sliding_window=48)),
        "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig(**SIZES, **GROUPED, num_local_experts=4)),
        "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(**SIZES, **GROUPED)),
        "gpt2": (hf.GPT2LMHeadModel, gpt2),
        "bert": (hf.BertModel, hf.BertConfig(**SIZES)),
        "bert-masked": (hf.BertForMaskedLM, hf.BertConfig(**SIZES)),
        "t5": (hf.T5ForConditionalGeneration, hf.T5Config(**T5_SIZES, num_decoder_layers=2)),
        "t5-1.1": (
            hf.T5ForConditionalGeneration,
            hf.T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        ),
    }
    return {name: kind(config) for name, (kind, config) in configs.items()}


def stir(model: hf.PreTrainedModel) -> None:
    """Moves norms and biases, which begin as 0 or 1, so far that each shows in the scores."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def main(folder: str) -> None:
    """Writes the folders below `folder`."""
    torch.manual_seed(0)
    for name, model in models().items():
        if name == "t5-1.1":  # its published folders have an own output
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        stir(model)
        model.save_pretrained(Path(folder, name), max_shard_size="60KB" if name == "mixtral" else "5GB")


if __name__ == "__main__":
    main(sys.argv[1])
