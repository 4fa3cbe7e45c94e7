"""Low-rank adaptation: factors beside frozen weights told from these, and merged with them into a plain model.

Reference: Hu et al. 2021, "LoRA", section 4.1, https://arxiv.org/abs/2106.09685
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxscale.nn import functional
from jaxscale.nn.config import LoRAConfig, TransformerConfig
from jaxscale.nn.functional import Params

# The names of a map's factors, in and out of the narrow width.
FACTORS = ("lora_a", "lora_b")


def split(params: Params) -> tuple[Params, Params]:
    """A transformer's parameters in two: the factors, and the weights beside which they stand.

    >>> split({"layers": {"query": {"kernel": 1, "lora_a": 2, "lora_b": 3}}, "norm": {"scale": 4}})
    ({'layers': {'query': {'lora_a': 2, 'lora_b': 3}}}, {'layers': {'query': {'kernel': 1}}, 'norm': {'scale': 4}})
    """
    factors: Params = {}
    base: Params = {}
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            inner = split(leaf)
            factors |= {name: inner[0]} if inner[0] else {}
            base |= {name: inner[1]} if inner[1] else {}
        else:
            (factors if name in FACTORS else base)[name] = leaf
    return factors, base


def joined(first: Params, second: Params) -> Params:
    """The inverse of `split`: one tree out of two that have no leaf in common."""
    both = {name: joined(leaf, second[name]) for name, leaf in first.items() if name in second}
    return {**first, **second, **both}


def drawn_factors(config: TransformerConfig, key: Any) -> Params:
    """Host factors for a model that starts from weights without any: A drawn, B zero.

    Args:
      config: the model; its `lora` says which.
      key: a PRNG key.
    """
    made = jax.jit(lambda: split(functional.init_params(config, key))[0])()
    return jax.tree.map(np.asarray, made)


def merged(config: TransformerConfig, params: Params) -> tuple[TransformerConfig, Params]:
    """The plain model that computes the same: W + alpha / rank A B in the place of each W with factors.

    Args:
      config: the model; returned as it is where it has no factors.
      params: its parameters, host arrays, the layers stacked.

    Returns:
      The configuration without `lora`, and the parameters without factors; the products are summed in float64.
    """
    if config.lora is None:
        return config, params
    return dataclasses.replace(config, lora=None), _merged(config.lora, params)


def _merged(lora: LoRAConfig, params: Params) -> Params:
    if FACTORS[0] not in params:
        return {name: _merged(lora, leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()}
    kernel, a, b = (np.asarray(params[name]) for name in ("kernel", *FACTORS))
    # One layer after the other: [in..., r] and [r, out...] as matrices.
    made = np.empty_like(kernel)
    for layer in range(len(kernel)):
        left, right = a[layer].reshape(-1, lora.rank), b[layer].reshape(lora.rank, -1)
        product = lora.scale * (left.astype(np.float64) @ right.astype(np.float64))
        made[layer] = kernel[layer] + product.reshape(kernel[layer].shape)
    return {**{name: leaf for name, leaf in params.items() if name not in FACTORS}, "kernel": made}
