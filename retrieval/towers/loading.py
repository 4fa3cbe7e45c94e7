"""Opens the towers that any of our folders holds: a retriever, a model, a training run, or a Hugging Face model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from jaxscale.errors import DataError, UsageError
from jaxscale.interop.huggingface import import_model
from jaxscale.interop.sentence_transformers import read_projection
from jaxscale.nn import model_folder
from jaxscale.nn.functional import Params
from jaxscale.nn.headless import headless, headless_params
from jaxscale.nn.model_folder import ModelFolder, SentenceSettings, load_model
from jaxscale.nn.text import closed_by_end
from jaxscale.store import commit
from jaxscale.store.checksums import Check
from retrieval.towers import retriever_folder
from retrieval.towers.encoder import Encoder, EncoderConfig, Pooling
from retrieval.towers.fewer_dims import first_dims
from retrieval.towers.retriever_folder import LoadedTowers, join_towers, read_retriever


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOverrides:
    """How to use a model otherwise than its own settings say; None leaves a setting.

    A model without settings of its own is used with mean pooling, normalised, up to its `max_positions`, no prefixes.

    Attributes:
      pooling: how hidden states become one vector.
      normalize: whether vectors are scaled to length 1, and so compared by cosine.
      max_length: tokens kept of a text.
      append_end: whether the token that ends texts is put behind every text, also behind one that is cut.
      both_ways: whether a decoder's tokens read those to their right too.
      query_prefix: text put before every query.
      document_prefix: text put before every document.
      num_dims: keeps the first dims of every vector, scaled again; the one setting that a retriever takes too.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    append_end: bool | None = None
    both_ways: bool | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    num_dims: int | None = None

    def of_model(self) -> dict[str, Any]:
        """The fields that are given and that only a model takes."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None and name != "num_dims"}


AS_IT_SAYS = EncoderOverrides()


def load_towers(path: Path, *, overrides: EncoderOverrides = AS_IT_SAYS, check: Check = "full") -> LoadedTowers:
    """Opens a retriever folder, a model folder, the `model/` of a run folder, or a Hugging Face folder.

    Of a decoder the output over the vocabulary is left out.

    Args:
      path: the folder.
      overrides: for a model, how to use it; a retriever is what it is.
      check: `full` compares every byte with the manifest, `sizes` names and sizes only.

    Raises:
      DataError: the folder holds none of these, or it is malformed.
      VerificationError: it is damaged; the message names the file.
      UsageError: overrides are given for a retriever, or do not fit the model.
    """
    towers = _as_it_says(Path(path), overrides, check)
    return towers if overrides.num_dims is None else first_dims(towers, overrides.num_dims)


def _as_it_says(path: Path, overrides: EncoderOverrides, check: Check) -> LoadedTowers:
    """The towers with all of their dims."""
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder; expected a retriever, a model or a training run")
    if not commit.is_committed(path) and (path / "job.json").is_file():
        path = _model_of_run(path)
    if not commit.is_committed(path):
        if not (path / "config.json").is_file():
            raise DataError(
                f"{path}: holds neither MANIFEST.json nor config.json; expected a retriever, a model, a training run "
                "or a Hugging Face folder"
            )
        model = import_model(path)
        return _towers_of_model(model, path, overrides, read_projection(path, model.transformer.d_model))
    found = commit.open_committed(path).manifest.format
    if found == retriever_folder.FORMAT:
        if given := overrides.of_model():
            raise UsageError(f"{path} is a trained retriever; its {', '.join(given)} can't be overridden")
        return read_retriever(path, check=check)
    if found == model_folder.FORMAT:
        return _towers_of_model(load_model(path, check), path, overrides)
    raise DataError(f"{path} holds {found}, expected {retriever_folder.FORMAT} or {model_folder.FORMAT}")


def _model_of_run(run: Path) -> Path:
    if not commit.is_committed(run / "model"):
        raise DataError(f"{run}: this training run has exported no model yet; run the same `jaxscale train` to its end")
    return run / "model"


def _towers_of_model(
    model: ModelFolder, path: Path, overrides: EncoderOverrides, projection: Float32[np.ndarray, "D E"] | None = None
) -> LoadedTowers:
    settings = model.settings or SentenceSettings(
        pooling="mean",
        normalize=True,
        max_length=model.transformer.max_positions,
        query_prefix="",
        document_prefix="",
    )
    names = {field.name for field in dataclasses.fields(settings)}
    settings = dataclasses.replace(settings, **{n: v for n, v in overrides.of_model().items() if n in names})
    tokenizer = closed_by_end(model.tokenizer, str(path)) if overrides.append_end else model.tokenizer
    transformer = headless(model.transformer, both_ways=bool(overrides.both_ways))
    params: Params = {"transformer": headless_params(model.params)}
    if projection is not None:
        params["projection"] = {"kernel": projection}
    query, document = (
        Encoder(
            config=EncoderConfig(
                transformer=transformer,
                pooling=settings.pooling,
                normalize=settings.normalize,
                projection_dim=None if projection is None else projection.shape[1],
                prefix=prefix,
                max_length=settings.max_length,
            ),
            params=params,
            tokenizer=tokenizer,
        )
        for prefix in (settings.query_prefix, settings.document_prefix)
    )
    return join_towers(query=query, document=document, shared=True, score="cosine" if settings.normalize else "dot")
