"""Llama, Mistral, Qwen2 and Mixtral: one layout, with biases of query, key and value (Qwen2) or experts (Mixtral).

Models that embed texts have it too: folders of the bare model, without an output, whose tensors' names lack the first
part; and with `is_causal` false, which transformers reads since version 5, those that read both ways.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxscale.errors import DataError
from jaxscale.interop.family import Family, differences, read_activation, written_activation
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.mapping import Row, Table, places
from jaxscale.nn.config import ExpertsConfig, RopeScaling, TransformerConfig
from jaxscale.nn.families import decoder_config
from jaxscale.nn.headless import headless

_PREFIX = "model."
_LAYER = "model.layers.{layer}"
_EXPERT = f"{_LAYER}.block_sparse_moe.experts.{{expert}}"
_ROWS = (
    Row("model.embed_tokens.weight", "embeddings/token/table", "V D -> V D"),
    Row(f"{_LAYER}.input_layernorm.weight", "layers/attention_norm/scale", "D -> D"),
    Row(f"{_LAYER}.self_attn.q_proj.weight", "layers/attention/query/kernel", "(H C) D -> D H C"),
    Row(f"{_LAYER}.self_attn.k_proj.weight", "layers/attention/key/kernel", "(K C) D -> D K C"),
    Row(f"{_LAYER}.self_attn.v_proj.weight", "layers/attention/value/kernel", "(K C) D -> D K C"),
    Row(f"{_LAYER}.self_attn.o_proj.weight", "layers/attention/out/kernel", "D (H C) -> H C D"),
    Row(f"{_LAYER}.post_attention_layernorm.weight", "layers/mlp_norm/scale", "D -> D"),
    Row("model.norm.weight", "norm/scale", "D -> D"),
)
_QKV_BIAS_ROWS = (
    Row(f"{_LAYER}.self_attn.q_proj.bias", "layers/attention/query/bias", "(H C) -> H C"),
    Row(f"{_LAYER}.self_attn.k_proj.bias", "layers/attention/key/bias", "(K C) -> K C"),
    Row(f"{_LAYER}.self_attn.v_proj.bias", "layers/attention/value/bias", "(K C) -> K C"),
)
_MLP_ROWS = (
    Row(f"{_LAYER}.mlp.gate_proj.weight", "layers/mlp/gate/kernel", "F D -> D F"),
    Row(f"{_LAYER}.mlp.up_proj.weight", "layers/mlp/up/kernel", "F D -> D F"),
    Row(f"{_LAYER}.mlp.down_proj.weight", "layers/mlp/down/kernel", "D F -> F D"),
)
_EXPERTS_ROWS = (
    Row(f"{_LAYER}.block_sparse_moe.gate.weight", "layers/mlp/router/kernel", "E D -> D E"),
    Row(f"{_EXPERT}.w1.weight", "layers/mlp/gate", "F D -> D F"),
    Row(f"{_EXPERT}.w3.weight", "layers/mlp/up", "F D -> D F"),
    Row(f"{_EXPERT}.w2.weight", "layers/mlp/down", "D F -> F D"),
)
# Made again from the configuration.
_ROTARY = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
_OUTPUT_ROWS = (Row("lm_head.weight", "output/kernel", "V D -> D V"),)


def _read(file: JsonObject, names: Collection[str]) -> TransformerConfig:
    model_type = file.require("model_type", str)
    file.refuse_unless("attention_bias", bool, False)
    file.refuse_unless("mlp_bias", bool, False)
    rope_base, rope_scaling = _read_rope(file)
    config = decoder_config(
        num_layers=file.require("num_hidden_layers", int),
        d_model=file.require("hidden_size", int),
        num_heads=file.require("num_attention_heads", int),
        num_kv_heads=file.optional("num_key_value_heads", int, file.require("num_attention_heads", int)),
        head_dim=file.optional("head_dim", int, None),
        d_ff=file.require("intermediate_size", int),
        vocab_size=file.require("vocab_size", int),
        max_positions=_max_positions(file, model_type),
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        experts=_read_experts(file) if model_type == "mixtral" else None,
        tied_output=file.optional("tie_word_embeddings", bool, False),
    )
    config = dataclasses.replace(
        config,
        activation=read_activation(file, "hidden_act", "silu"),
        norm_epsilon=file.optional("rms_norm_eps", float, 1e-5 if model_type == "mixtral" else 1e-6),
        initial_stddev=file.optional("initializer_range", float, 0.02),
        qkv_bias=model_type == "qwen2",
    )
    both_ways = not file.optional("is_causal", bool, True)
    return headless(config, both_ways=both_ways) if both_ways or _is_bare(file, names) else config


def _is_bare(file: JsonObject, names: Collection[str]) -> bool:
    """Whether a folder is of the bare model: by its class, or by names without the first part that the others have."""
    if "lm_head.weight" in names:
        return False
    classes: list[str] = file.optional("architectures", list, [])
    without_prefix = bool(names) and not any(name.startswith(_PREFIX) for name in names)
    return without_prefix or any(name.endswith("Model") for name in classes)


def _max_positions(file: JsonObject, model_type: str) -> int:
    """Up to the window of sliding attention, within which it is attention to all that came before."""
    longest = file.require("max_position_embeddings", int)
    slides = file.optional("use_sliding_window", bool, model_type in ("mistral", "mixtral"))
    return min(longest, file.optional("sliding_window", int, longest)) if slides else longest


def _read_rope(file: JsonObject) -> tuple[float, RopeScaling | None]:
    """The base and the scaling, from `rope_parameters`, or as it was before version 5 of transformers."""
    scaling = file.within("rope_parameters" if file.values.get("rope_parameters") else "rope_scaling")
    base = scaling.optional("rope_theta", float, file.optional("rope_theta", float, 10000.0))
    kind = scaling.optional("rope_type", str, scaling.optional("type", str, "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise DataError(f"{file.path}: rope_type={kind!r} is not supported; 'default' and 'llama3' are")
    return base, RopeScaling(
        factor=scaling.require("factor", float),
        low_frequency_factor=scaling.require("low_freq_factor", float),
        high_frequency_factor=scaling.require("high_freq_factor", float),
        original_max_positions=scaling.require("original_max_position_embeddings", int),
    )


def _read_experts(file: JsonObject) -> ExpertsConfig:
    """Experts with room for every token: none is dropped, as transformers drops none."""
    num_experts, num_chosen = file.require("num_local_experts", int), file.require("num_experts_per_tok", int)
    if num_chosen < 2:
        raise DataError(f"{file.path}: num_experts_per_tok={num_chosen} is not supported, only 2 and more")
    return ExpertsConfig(
        num_experts=num_experts,
        num_experts_per_token=num_chosen,
        capacity_factor=num_experts / num_chosen,
        group_size=1,
    )


def _misfits(config: TransformerConfig) -> list[str]:
    expected = {
        "type_vocab_size": 0,
        "positions": "rope",
        "scaled_scores": True,
        "norm": "rmsnorm",
        "norm_placement": "pre",
        "parallel": False,
        "gated": True,
        "use_bias": False,
        "scaled_logits": False,
    }
    misfits = differences(config, expected)
    if config.experts is not None and config.experts.num_experts_per_token < 2:
        misfits.append("experts.num_experts_per_token=1 (not 2 or more)")
    if config.experts is not None and config.qkv_bias:
        misfits.append("qkv_bias=True beside experts (not False)")
    return misfits


def _write(config: TransformerConfig, model_type: str | None) -> dict[str, Any]:
    if config.experts is not None:
        model_type = "mixtral"
    elif config.qkv_bias:
        model_type = "qwen2"
    else:
        model_type = "mistral" if model_type == "mistral" else "llama"
    values = {
        "model_type": model_type,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "hidden_act": written_activation(config.activation),
        "rms_norm_eps": config.norm_epsilon,
        "initializer_range": config.initial_stddev,
        "tie_word_embeddings": config.tied_output,
        "sliding_window": None,
        # What version 5 of transformers reads, and what those before it do.
        "rope_parameters": {"rope_theta": config.rope_base, **(_written_scaling(config) or {"rope_type": "default"})},
        "rope_theta": config.rope_base,
        "rope_scaling": _written_scaling(config),
    }
    if config.kind == "encoder":
        values["is_causal"] = False
    if config.experts is not None:
        values |= {
            "num_local_experts": config.experts.num_experts,
            "num_experts_per_tok": config.experts.num_experts_per_token,
        }
    return values


def _written_scaling(config: TransformerConfig) -> dict[str, Any] | None:
    if config.rope_scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": config.rope_scaling.factor,
        "low_freq_factor": config.rope_scaling.low_frequency_factor,
        "high_freq_factor": config.rope_scaling.high_frequency_factor,
        "original_max_position_embeddings": config.rope_scaling.original_max_positions,
    }


def _table(config: TransformerConfig) -> Table:
    rows = [*_ROWS, *(_MLP_ROWS if config.experts is None else _EXPERTS_ROWS)]
    rows += _QKV_BIAS_ROWS if config.qkv_bias else ()
    if config.kind == "encoder" or config.headless:
        bare = [row._replace(theirs=row.theirs.removeprefix(_PREFIX)) for row in rows]
        # The output of a model that is to be used both ways is of no use, but may be there.
        return Table(places=places(bare, config), prefix=_PREFIX, ignored=rf"{_ROTARY}|lm_head\.weight")
    rows += () if config.tied_output else _OUTPUT_ROWS
    return Table(
        places=places(rows, config),
        ignored=_PREFIX.replace(".", r"\.") + _ROTARY,
        copies={"lm_head.weight": "model.embed_tokens.weight"} if config.tied_output else {},
    )


LLAMA = Family(
    model_types=("llama", "mistral", "qwen2", "mixtral"),
    architectures={
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "mixtral": "MixtralForCausalLM",
    },
    kind=TransformerConfig,
    read=_read,
    misfits=_misfits,
    write=_write,
    table=_table,
)
