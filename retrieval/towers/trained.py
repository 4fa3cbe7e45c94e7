"""Which weights of two towers are trained: all, or beside frozen ones the factors of LoRA and the projection."""

import dataclasses

from jaxscale import frozen
from jaxscale.nn import lora
from jaxscale.nn.functional import Params
from retrieval.towers.encoder import EncoderConfig, TowerPair


def apart(towers: TowerPair, params: Params) -> Params:
    """Puts what is not trained below `frozen`, where `jaxscale.frozen` looks for it.

    Args:
      towers: the two encoders.
      params: `{"towers": ...}` as `init_towers` makes it, and whatever else.
    """
    learned: Params = {}
    held: Params = {}
    for name, tower in params["towers"].items():
        config = towers.config("query" if name == "query" else "document")
        if config.transformer.lora is None:
            learned[name] = tower
            continue
        factors, base = lora.split(tower["transformer"])
        learned[name] = {**tower, "transformer": factors}
        held[name] = {"transformer": base}
    split = {**params, "towers": learned}
    return {**split, frozen.FROZEN: {"towers": held}} if held else split


def whole(params: Params) -> Params:
    """The inverse of `apart`: every tower with all of its weights."""
    learned = frozen.trained(params)
    return params if learned is params else lora.joined(learned, params[frozen.FROZEN])


def without_factors(config: EncoderConfig, params: Params) -> tuple[EncoderConfig, Params]:
    """The plain encoder that computes the same; host arrays, see `jaxscale.nn.lora.merged`."""
    transformer, merged = lora.merged(config.transformer, params["transformer"])
    return dataclasses.replace(config, transformer=transformer), {**params, "transformer": merged}
