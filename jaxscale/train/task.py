"""A task of the user's own, told by three functions and a Flax model, as the loop wants to train it.

The idea is Redco's: everything that scales (sharding, accumulation, resuming, several processes) is not in them.
Reference: Tan et al. 2023, "RedCoast", section 3, https://arxiv.org/abs/2310.16355
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int64, PRNGKeyArray

from jaxscale import typed_json
from jaxscale.data.batches import BatchSchedule
from jaxscale.errors import UsageError
from jaxscale.sharding.initialise import place
from jaxscale.sharding.plan import batch_sharded
from jaxscale.store import arrays, commit
from jaxscale.train.job import TrainingIdentity
from jaxscale.train.objective import Batch, Params
from jaxscale.train.randomness import named_key
from jaxscale.train.state import host_value
from jaxscale.train.user_model import Adapter, UserModel, adapted

FORMAT, VERSION = "jaxscale.params", 1
_PARAMS = "params"

Metrics = dict[str, Float[Array, ""]]
# Sums over held-out batches, of a batch: the loss and the metrics.
_Measure = Callable[[Params, Mapping[str, jax.Array]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be learned.

    Attributes:
      name: part of what makes a run what it is: its folder refuses another task's.
      model: a function of a random key that makes a `flax.nnx.Module`, or a `flax.linen.Module`.
      collate: examples -> a batch: numpy arrays by name, each with one row per example. An example's row must not
        depend on the others beside it: pad to one length, not to the longest.
      loss: (model, batch, random key) -> a scalar, the mean over the examples, and scalars to log. The model is called
        as its class says; everything is traced by jax.
      predict: (model, batch) -> arrays with a row per example.
      inputs: of a batch what a Linen model is called with, as a tuple; not used by an nnx module.
      settings: whatever else makes the run what it is, as JSON values.
    """

    name: str
    model: UserModel
    collate: Callable[[Sequence[Any]], dict[str, np.ndarray]]
    loss: Callable[[Any, Mapping[str, jax.Array], PRNGKeyArray], tuple[Float[Array, ""], Metrics]]
    predict: Callable[[Any, Mapping[str, jax.Array]], Any]
    inputs: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def adapter(self, examples: Sequence[Any]) -> Adapter:
        """The model, its inputs shaped by a batch of these examples."""
        return adapted(self.model, self.inputs, self.collate(examples))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskObjective:
    """What `jaxscale.train` trains of a task: see `jaxscale.train.objective.Objective`.

    Attributes:
      task: the task.
      examples: to train on; any objects.
      held_out: to evaluate on, in whole batches; what is left over of them is left out. Empty for none.
      training: the loop's part of the identity.
    """

    task: Task
    examples: Sequence[Any]
    held_out: Sequence[Any]
    training: TrainingIdentity

    def __post_init__(self) -> None:
        if len(self.training.batch_sizes.distinct) > 1:
            raise UsageError("batch_ramp: a task is trained in batches of one size; give global_batch_size alone")
        if 0 < len(self.held_out) < self._size:
            raise UsageError(
                f"held_out has {len(self.held_out)} examples, expected none or a batch at least: "
                f"global_batch_size={self._size}"
            )
        _ = self._schedule  # refuses fewer examples than a batch has

    @property
    def identity(self) -> dict[str, Any]:
        """The task's name and settings, the loop's part, and the hash of the first batch for the data."""
        return {
            "training": typed_json.encode(self.training),
            "task": self.task.name,
            "settings": typed_json.encode(dict(self.task.settings)),
            "num_examples": len(self.examples),
            "num_held_out": len(self.held_out),
            "first_batch_sha256": _sha256(self.batch(0)),
        }

    @property
    def starting_params(self) -> Params | None:
        """None: fresh ones."""
        return None

    def init_params(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters of the user's model."""
        return self.adapter.init_params(key)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The user's loss of the user's model."""
        loss, metrics = self.task.loss(self.adapter.bound(params), batch, key)
        return loss.astype(jnp.float32), {name: value.astype(jnp.float32) for name, value in metrics.items()}

    def sample_ids(self, number: int) -> Int64[np.ndarray, " B"]:
        """The examples of batch `number`, by their places."""
        return self._schedule.indices(number)

    def batch(self, number: int, rows: slice = slice(None)) -> Batch:
        """The user's batch of those examples whose turn it is; each epoch has another order."""
        return self.task.collate([self.examples[i] for i in self.sample_ids(number)[rows].tolist()])

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """The shapes of the first batch, which are those of all."""
        return [{name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in self.batch(0).items()}]

    def evaluate(self, params: Params, mesh: Mesh) -> dict[str, float]:
        """The loss and the metrics on held-out examples, the mean over whole batches."""
        starts = range(0, len(self.held_out) - self._size + 1, self._size)
        found = [self._measure(params, self._held_out_batch(start, mesh)) for start in starts]
        return {
            name: float(np.mean([float(one[name]) for one in found], dtype=np.float64)) for name in (found or [{}])[0]
        }

    def export(self, params: Params, path: Path) -> None:
        """Writes the parameters as a committed folder of format `jaxscale.params`."""
        with commit.draft(path, format=FORMAT, version=VERSION, replace=True) as draft:
            arrays.write_tree(draft.path / _PARAMS, params)
            draft.config = {"task": self.task.name}
            draft.counts["params"] = sum(leaf.size for leaf in jax.tree.leaves(params))

    def read_params(self, path: Path) -> Params:
        """What `export` wrote, as numpy arrays.

        Raises:
          DataError: it is of another model.
          VerificationError: it is damaged.
        """
        committed = commit.open_committed(path, format=FORMAT, version=VERSION, check="full")
        shapes = jax.eval_shape(lambda: self.init_params(jax.random.key(0)))
        params: Params = arrays.read_tree(committed.path / _PARAMS, shapes)
        return params

    @functools.cached_property
    def adapter(self) -> Adapter:
        """The user's model."""
        return self.task.adapter([self.examples[i] for i in self.sample_ids(0).tolist()])

    @functools.cached_property
    def _measure(self) -> _Measure:
        key = named_key(self.training.seed, "held-out")

        def measure(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            loss, metrics = self.loss(params, batch, key)
            return {"loss": loss, **metrics}

        compiled: _Measure = jax.jit(measure)
        return compiled

    def _held_out_batch(self, start: int, mesh: Mesh) -> dict[str, jax.Array]:
        batch = self.task.collate(self.held_out[start : start + self._size])
        placed: dict[str, jax.Array] = place(batch, dict.fromkeys(batch, batch_sharded(mesh)))
        return placed

    @property
    def _size(self) -> int:
        return self.training.global_batch_size

    @functools.cached_property
    def _schedule(self) -> BatchSchedule:
        return BatchSchedule(num_examples=len(self.examples), global_batch_size=self._size, seed=self.training.seed)


def predictions(objective: TaskObjective, params: Params, examples: Sequence[Any], mesh: Mesh) -> Any:
    """The user's predictions for examples, in batches over the mesh.

    Args:
      objective: of the task.
      params: of its model, numpy or jax arrays.
      examples: any number of them.
      mesh: its devices share each batch.

    Returns:
      What `Task.predict` returns, as numpy arrays with a row per example.
    """
    task, size = objective.task, objective.training.global_batch_size
    predict = jax.jit(lambda params, batch: task.predict(objective.adapter.bound(params), batch))
    made = []
    for start in range(0, len(examples), size):
        part = list(examples[start : start + size])
        # A last batch that is not full is filled up with its last example.
        batch = task.collate(part + part[-1:] * (size - len(part)))
        out = predict(params, place(batch, dict.fromkeys(batch, batch_sharded(mesh))))
        made.append(jax.tree.map(host_value, out))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(examples)], *made)


def _sha256(batch: Batch) -> str:
    digest = hashlib.sha256()
    for name in sorted(batch):
        leaf = np.ascontiguousarray(batch[name])
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
