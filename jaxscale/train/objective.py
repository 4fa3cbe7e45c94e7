"""What the loop asks of anything that can be trained: parameters, a loss, batches, a dev metric, an export."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int64, PRNGKeyArray

from jaxscale.mesh import MeshSpec

# A nested dict of arrays; float32 leaves are the master weights.
Params = dict[str, Any]
# One global batch: every leaf's leading dim is the batch's size.
Batch = Mapping[str, np.ndarray]


class Objective(Protocol):
    """A thing to train. The loop knows nothing else of it, and calls nothing else.

    `init_params` and `loss` are traced by jax; `batch`, `evaluate` and `export` run on the host. What an objective may
    have besides is in `SaysSamples`, `SaysTokens`, `NeedsOneProcess`, `AveragesParts` and `KnowsMesh`.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """All that makes the run what it is, as JSON values: the job without `operation`, its paths replaced by hashes.

        The loop's own part (`TrainingIdentity`) is under the key `training`.
        """
        ...

    @property
    def starting_params(self) -> Params | None:
        """Host (numpy) parameters to start from, or None for what `init_params` makes."""
        ...

    def init_params(self, key: PRNGKeyArray) -> Params:
        """Fresh float32 parameters. Pure and traceable: it runs under jit, so that values go straight into shards.

        What the tree has below `frozen` is not trained; see `jaxscale.frozen`.

        Args:
          key: the key of this run's parameters.
        """
        ...

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The float32 mean loss over the batch, and float32 scalars to log. Pure and traceable.

        Under gradient accumulation it sees one microbatch, the examples `i, i + grad_accum, ...` of the global batch,
        and the mean over microbatches is what is minimised. A loss whose examples meet each other (in-batch negatives)
        therefore meets fewer of them then.

        Args:
          params: parameters, as `init_params` made them.
          batch: a global batch or a microbatch of it; leading dim of every leaf: the examples.
          key: the key of this step (and microbatch), for dropout.
        """
        ...

    def batch(self, number: int, rows: slice = slice(None)) -> Batch:
        """Rows of batch `number`, a pure function of (job, seed, number), called in a background thread.

        The number is not the step: the loop passes over the numbers that a rollback left out. The whole batch's shapes
        are among those of `batch_shapes`; each process asks for its own rows only.

        Args:
          number: 0 for the first batch of the data's order.
          rows: of the leading dim, that of the examples.
        """
        ...

    def batch_shapes(self) -> Sequence[Mapping[str, jax.ShapeDtypeStruct]]:
        """The shapes of all batches: a few static buckets of the same leaves, for each of which the step compiles once.

        The arrays are placed as suits the largest, and every one is checked before the first step.
        """
        ...

    def evaluate(self, params: Params, mesh: jax.sharding.Mesh) -> dict[str, float]:
        """Dev metrics by name, higher or lower as `Operation.best_mode` says. Deterministic; `{}` where there are none.

        Args:
          params: parameters on the mesh, sharded as the plan says, in their logical order; not to be donated.
          mesh: the mesh they live on.
        """
        ...

    def export(self, params: Params, path: Path) -> None:
        """Writes the model as a committed folder at `path`, replacing one that is there.

        Args:
          params: parameters as host (numpy) arrays, in their logical order.
          path: the folder to write.
        """
        ...


@runtime_checkable
class SaysSamples(Protocol):
    """An objective whose batches can be named by their samples, in logs and tests."""

    def sample_ids(self, number: int) -> Int64[np.ndarray, " B"]:
        """The samples of batch `number`, by their places in the data's order."""
        ...


@runtime_checkable
class SaysTokens(Protocol):
    """An objective whose throughput is counted in tokens; of any other it is counted in examples."""

    def tokens_per_batch(self, number: int) -> int:
        """The tokens of batch `number`, those that fill a row included; quick, for it is asked at every step."""
        ...


@runtime_checkable
class NeedsOneProcess(Protocol):
    """An objective that several processes can't train together."""

    @property
    def needs_one_process(self) -> str:
        """Why, in words that end a message."""
        ...


@runtime_checkable
class AveragesParts(Protocol):
    """An objective whose loss of a batch is a mean of the losses of its parts, so that slices can work apart."""

    @property
    def part_weight(self) -> Callable[[Mapping[str, jax.Array]], Float[Array, ""]] | None:
        """The weight of a part in the mean of the losses, and of their metrics; traceable.

        None where the loss is no such mean: examples meet each other, or dropout would draw the same for every part.
        """
        ...


@runtime_checkable
class KnowsMesh(Protocol):
    """An objective whose loss communicates by hand, in a `shard_map`, and so is another program on every mesh."""

    def on(self, mesh: MeshSpec) -> Objective:
        """The objective whose `loss` is to be computed on that mesh; what it computes is the same on all.

        Args:
          mesh: with every size resolved.
        """
        ...
