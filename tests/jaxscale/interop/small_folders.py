"""A small folder of every family as transformers would write it: its config.json, and weights from a seed.

`golden_scores.json` has the scores that transformers computes from these folders. To make it anew, with the environment
of locks/peers.txt: `python -m tests.jaxscale.interop.small_folders .venv-peers/bin/python`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.interop.huggingface import FAMILIES
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.parity import their_scores

GOLDEN = Path(__file__).with_name("golden_scores.json")
TOKENS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [40, 41, 8, 8, 30, 2, 61, 62, 63]]
TARGET = [[0, 9, 8, 7, 6, 5], [0, 17, 3, 3, 90, 91]]

LLAMA = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
SCALED_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
BERT = {name: LLAMA[name] for name in list(LLAMA)[:6]}
T5 = {"vocab_size": 300, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
CONFIGS = {
    "bert": {"model_type": "bert", **BERT},
    "gpt2": {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4},
    "llama": {"model_type": "llama", **LLAMA},
    "llama-3": {"model_type": "llama", **LLAMA, "rope_parameters": {"rope_theta": 5e5, **SCALED_ROPE}},
    "llama-tied": {"model_type": "llama", **LLAMA, "head_dim": 6, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **LLAMA, "sliding_window": 24},
    "mixtral": {"model_type": "mixtral", **LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"model_type": "qwen2", **LLAMA, "use_sliding_window": False, "sliding_window": 4},
    "qwen2-bare": {"model_type": "qwen2", **LLAMA, "architectures": ["Qwen2Model"]},
    "llama-both-ways": {"model_type": "llama", **LLAMA, "architectures": ["LlamaModel"], "is_causal": False},
    "t5": {"model_type": "t5", **T5, "num_decoder_layers": 1},
    "t5-1.1": {"model_type": "t5", **T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def write_folder(folder, name):
    """Writes the folder of a key of `CONFIGS`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    family = next(family for family in FAMILIES if CONFIGS[name]["model_type"] in family.model_types)
    names = ["lm_head.weight"] if name == "t5-1.1" else []  # which T5 has only where its output is its own
    table = family.table(family.read(JsonObject(folder / "config.json"), names))
    random = np.random.default_rng(0)
    tensors = {key: 0.3 * random.standard_normal(shape, np.float32) for key, shape in sorted(table.shapes().items())}
    prefix = "" if CONFIGS[name]["model_type"] != "gpt2" else table.prefix
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    Tokenizer.train_bpe(["the sea was calm that morning"], 270).save(folder / "tokenizer.json")


def batch_of(name):
    """What the scores are of."""
    return {"tokens": TOKENS} | ({"target": TARGET} if CONFIGS[name]["model_type"] == "t5" else {})


def main(python):
    """Writes `GOLDEN`: of each family the first 8 scores of some positions, and the sum of the magnitudes of all."""
    golden = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in CONFIGS:
            write_folder(Path(scratch, name), name)
            golden[name] = summary(their_scores(Path(scratch, name), batch_of(name), python))
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


def summary(scores):
    """The part of scores that is written down."""
    return {"first": scores[0, 0, :8].tolist(), "last": scores[1, -1, -8:].tolist(), "sum": float(np.abs(scores).sum())}


if __name__ == "__main__":
    main(sys.argv[1])
