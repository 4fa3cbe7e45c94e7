"""A Transformer for those who read its hidden states alone: without its output, and reading both ways if asked."""

import dataclasses

from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.functional import Params


def headless(config: TransformerConfig, *, both_ways: bool = False) -> TransformerConfig:
    """The same model without an output over the vocabulary; an encoder has none anyway.

    Args:
      config: the model.
      both_ways: whether a decoder's tokens read those to their right too, which makes it an encoder.

    >>> from jaxscale.nn.families import gpt_config
    >>> gpt = gpt_config(num_layers=1, d_model=8, num_heads=2, vocab_size=9, max_positions=4)
    >>> headless(gpt).tied_output, headless(gpt).headless, headless(gpt, both_ways=True).kind
    (False, True, 'encoder')
    """
    if config.kind == "encoder":
        return config
    if both_ways:
        return dataclasses.replace(config, kind="encoder", tied_output=False, headless=False)
    return dataclasses.replace(config, tied_output=False, headless=True)


def headless_params(params: Params) -> Params:
    """The parameters of the model that `headless` gives: those of the whole one but its output's."""
    return {name: leaf for name, leaf in params.items() if name != "output"}
