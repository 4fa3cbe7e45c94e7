"""Some of a Transformer's own layers: a shallower model that begins with what the deep one has learned."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxscale.errors import UsageError
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.functional import Params


def with_layers(config: TransformerConfig, params: Params, layers: Sequence[int]) -> tuple[TransformerConfig, Params]:
    """The model of some layers of another one, in the order they are named; all else is the other's.

    Args:
      config: the deep model.
      params: its parameters, stacked, of host arrays.
      layers: which of its layers, from 0; at least one.

    Returns:
      The shallow model and its parameters; the parts it shares with the deep one are not copied.

    Raises:
      UsageError: there is no such layer, or none is named.

    Reference: Sanh et al. 2019, DistilBERT, section 3 (a student begins with layers of its teacher),
      https://arxiv.org/abs/1910.01108
    """
    if not layers or not all(0 <= layer < config.num_layers for layer in layers):
        raise UsageError(
            f"layers {tuple(layers)} of a model of {config.num_layers}; name some of 0 to {config.num_layers - 1}"
        )
    chosen = jax.tree.map(lambda leaf: np.asarray(leaf)[list(layers)], params["layers"])
    return dataclasses.replace(config, num_layers=len(layers)), params | {"layers": chosen}
