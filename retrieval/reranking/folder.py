"""The folder a re-ranker is kept in: the format `jaxscale.reranker`, written and read.

The format is written down in docs/formats/reranker-folder.md.
"""

import dataclasses
import json
from pathlib import Path

import jax

from jaxscale import typed_json
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError
from jaxscale.store import arrays, commit
from jaxscale.store.checksums import Check
from retrieval.reranking.cross_encoder import CrossEncoder, CrossEncoderConfig, init_cross_encoder

FORMAT, VERSION = "jaxscale.reranker", 1
_FILE, _TOKENIZER, _PARAMS = "reranker.json", "tokenizer.json", "params"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerFolder:
    """A re-ranker as it was read.

    Attributes:
      model: the cross-encoder.
      identity: of the committed folder, 64 hexadecimal digits.
    """

    model: CrossEncoder
    identity: str


def save_reranker(path: Path, model: CrossEncoder, *, replace: bool = False) -> None:
    """Writes a re-ranker's folder, committed.

    Args:
      path: the folder to write.
      model: what to write; the params' leaves are host or device arrays.
      replace: whether a re-ranker's folder that is there already is replaced, in one step.

    Raises:
      UsageError: something is there already.
      MachineError: another writer is at work on it, or the disk is full.
    """
    with commit.draft(path, format=FORMAT, version=VERSION, replace=replace) as draft:
        (draft.path / _FILE).write_text(typed_json.pretty(model.config), encoding="utf-8")
        model.tokenizer.save(draft.path / _TOKENIZER)
        (draft.path / _PARAMS).mkdir()
        arrays.write_tree(draft.path / _PARAMS, model.params)
        draft.config = model.config


def is_reranker(path: Path) -> bool:
    """Whether a path holds a re-ranker's folder, or a training run that exported one."""
    place = _place(path)
    return commit.is_committed(place) and commit.open_committed(place).manifest.format == FORMAT


def read_reranker(path: Path, *, check: Check = "full") -> RerankerFolder:
    """Reads a folder written by `save_reranker`, or that of the training run at `path`.

    Args:
      path: the folder.
      check: `full` compares every byte with the manifest before it is used, `sizes` names and sizes only.

    Raises:
      DataError: there is no re-ranker's folder, or its parts do not fit one another.
      VerificationError: it is damaged; the message names the file.
    """
    committed = commit.open_committed(_place(path), format=FORMAT, version=VERSION, check=check)
    text = json.loads((committed.path / _FILE).read_text(encoding="utf-8"))
    config = typed_json.decode(CrossEncoderConfig, text, _FILE)
    params = arrays.read_tree(committed.path / _PARAMS)
    expected = arrays.named_leaves(jax.eval_shape(lambda: init_cross_encoder(config, jax.random.key(0))))
    got = arrays.named_leaves(params)
    if {name: leaf.shape for name, leaf in got.items()} != {name: leaf.shape for name, leaf in expected.items()}:
        raise DataError(f"{path}: its weights are not those that {_FILE} asks for")
    tokenizer = Tokenizer.load(committed.path / _TOKENIZER)
    return RerankerFolder(
        model=CrossEncoder(config=config, params=params, tokenizer=tokenizer), identity=committed.manifest.identity
    )


def _place(path: Path) -> Path:
    """The folder itself, or the model of a training run."""
    return path / "model" if (path / "job.json").is_file() and not commit.is_committed(path) else path
