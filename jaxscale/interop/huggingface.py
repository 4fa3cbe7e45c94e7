"""Folders of the BERT family as Hugging Face's transformers writes them: config.json, model.safetensors, tokenizer."""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Float32

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.sentence_transformers import read_settings
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.families import bert_config
from jaxscale.nn.functional import Params
from jaxscale.nn.model_folder import ModelFolder, check_params, check_vocabulary

WEIGHTS_FILE = "model.safetensors"

Tensors = dict[str, Float32[np.ndarray, "..."]]

# The names of transformers for our activations.
_ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh", "relu", "silu"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
# Not part of the encoder: an index that is always 0, 1, 2..., and the heads of the pretraining tasks.
_IGNORED = re.compile(r"embeddings\.(position|token_type)_ids|pooler\..*|cls\..*|classifier\..*")


def import_bert(folder: str | Path) -> ModelFolder:
    """Reads a folder of the BERT family.

    Args:
      folder: holds config.json, model.safetensors (float32, float16 or bfloat16) and tokenizer.json or vocab.txt;
        the settings of sentence-transformers, where they are there too, become the model's settings.

    Returns:
      The model, its parameters in float32.

    Raises:
      DataError: a file is missing or malformed, the architecture is another one, or a tensor is missing, unexpected,
        of a wrong shape or not finite; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    config = _read_config(JsonObject(folder / "config.json"))
    params = _params_of(config, _read_tensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    check_params(config, params)
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(config, tokenizer)
    return ModelFolder(
        config=config,
        params=params,
        tokenizer=tokenizer,
        settings=read_settings(folder, config.max_positions),
        provenance={
            "source": "huggingface",
            "name": folder.resolve().name,
            **{name: _sha256(folder / name) for name in ("config.json", WEIGHTS_FILE)},
        },
    )


def _read_config(file: JsonObject) -> TransformerConfig:
    model_type = file.require("model_type", str)
    if model_type != "bert":
        raise DataError(f"{file.path}: model_type={model_type!r} is not supported, only 'bert'")
    file.refuse_unless("position_embedding_type", str, "absolute")
    file.refuse_unless("is_decoder", bool, False)
    file.refuse_unless("add_cross_attention", bool, False)
    activation = file.optional("hidden_act", str, "gelu")
    if activation not in _ACTIVATIONS:
        raise DataError(f"{file.path}: hidden_act={activation!r} is not supported; {', '.join(_ACTIVATIONS)} are")
    config = bert_config(
        num_layers=file.require("num_hidden_layers", int),
        d_model=file.require("hidden_size", int),
        num_heads=file.require("num_attention_heads", int),
        d_ff=file.require("intermediate_size", int),
        vocab_size=file.require("vocab_size", int),
        max_positions=file.require("max_position_embeddings", int),
        type_vocab_size=file.optional("type_vocab_size", int, 2),
        dropout_rate=file.optional("hidden_dropout_prob", float, 0.1),
    )
    return dataclasses.replace(
        config,
        activation=_ACTIVATIONS[activation],
        norm_epsilon=file.optional("layer_norm_eps", float, 1e-12),
        initial_stddev=file.optional("initializer_range", float, 0.02),
    )


def _read_tensors(path: Path) -> Tensors:
    """Every tensor of the encoder in float32, by its name without the prefix `bert.` and with today's norm names."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; pickled weights are not read, save the model as safetensors")
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file: {error}") from None
    tensors: Tensors = {}
    for full_name, entry in entries:
        name = full_name.removeprefix("bert.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if _IGNORED.fullmatch(name):
            continue
        if entry["dtype"] not in _DTYPES:
            raise DataError(f"{path}: tensor {full_name} is {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
        values = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = values.astype(np.float32)
    return tensors


def _params_of(config: TransformerConfig, tensors: Tensors, path: Path) -> Params:
    """Our tree out of transformers' tensors; every tensor is used once."""
    left = dict(tensors)
    d, h, c, f = config.d_model, config.num_heads, config.head_dim, config.d_ff

    def take(name: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
        if name not in left:
            raise DataError(f"{path}: tensor {name} of shape {list(shape)} is missing")
        tensor = left.pop(name)
        if tensor.shape != shape:
            raise DataError(f"{path}: tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        return tensor

    def norm(name: str) -> Params:
        return {"scale": take(f"{name}.weight", (d,)), "bias": take(f"{name}.bias", (d,))}

    def linear(name: str, num_in: int, num_out: int, in_dims: tuple[int, ...], out_dims: tuple[int, ...]) -> Params:
        # torch keeps [out, in].
        kernel = take(f"{name}.weight", (num_out, num_in)).T.reshape(*in_dims, *out_dims)
        return {"kernel": kernel, "bias": take(f"{name}.bias", (num_out,)).reshape(out_dims)}

    def layer(index: int) -> Params:
        at = f"encoder.layer.{index}"
        return {
            "attention": {
                **{n: linear(f"{at}.attention.self.{n}", d, h * c, (d,), (h, c)) for n in ("query", "key", "value")},
                "out": linear(f"{at}.attention.output.dense", h * c, d, (h, c), (d,)),
            },
            "attention_norm": norm(f"{at}.attention.output.LayerNorm"),
            "mlp": {
                "up": linear(f"{at}.intermediate.dense", d, f, (d,), (f,)),
                "down": linear(f"{at}.output.dense", f, d, (f,), (d,)),
            },
            "mlp_norm": norm(f"{at}.output.LayerNorm"),
        }

    params = {
        "embeddings": {
            "token": {"table": take("embeddings.word_embeddings.weight", (config.vocab_size, d))},
            "position": {"table": take("embeddings.position_embeddings.weight", (config.max_positions, d))},
            "token_type": {"table": take("embeddings.token_type_embeddings.weight", (config.type_vocab_size, d))},
        },
        "norm": norm("embeddings.LayerNorm"),
        "layers": _stack([layer(index) for index in range(config.num_layers)]),
    }
    if left:
        raise DataError(f"{path}: unexpected tensor {min(left)} of shape {list(left[min(left)].shape)}")
    return params


def _stack(layers: list[Params]) -> Params:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
