"""What a family of Hugging Face models needs to be known by: its configuration, both ways, and its table of tensors."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from jaxscale.errors import DataError
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.mapping import Table
from jaxscale.nn.config import EncoderDecoderConfig, TransformerConfig

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Config = TypeVar("Config", TransformerConfig, EncoderDecoderConfig)

# Their names for our activations; of those with one meaning, the first is written.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(Generic[Config]):
    """One layout of config.json and of tensors.

    Attributes:
      model_types: the values of `model_type` that have it.
      kind: of our configurations.
      architectures: the class that a folder is loaded as, by model type.
      read: our configuration out of their config.json, given the names of the folder's tensors.
      misfits: what of one of our configurations the family can't say, in words; empty where it can say all.
      write: their config.json of one of our configurations that fits, given the model type that it came from, if any.
      table: of the tensors of a model.
    """

    model_types: tuple[str, ...]
    kind: type[Config]
    architectures: Mapping[str, str]
    read: Callable[[JsonObject, Collection[str]], Config]
    misfits: Callable[[Config], Sequence[str]]
    write: Callable[[Config, str | None], dict[str, Any]]
    table: Callable[[Config], Table]


def read_activation(file: JsonObject, key: str, absent: str) -> Activation:
    """Our name of the activation that a config.json names.

    Raises:
      DataError: we have none such.
    """
    name = file.optional(key, str, absent)
    if name not in _ACTIVATIONS:
        raise DataError(f"{file.path}: {key}={name!r} is not supported; {', '.join(_ACTIVATIONS)} are")
    return _ACTIVATIONS[name]


def written_activation(activation: str) -> str:
    """Their name of one of our activations.

    >>> written_activation("gelu_tanh")
    'gelu_new'
    """
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)


def differences(config: TransformerConfig, expected: Mapping[str, Any]) -> list[str]:
    """The fields of a configuration that are not as a family has them: what they are, and would have to be."""
    got = {name: getattr(config, name) for name in expected}
    return [f"{name}={got[name]!r} (not {value!r})" for name, value in expected.items() if got[name] != value]
