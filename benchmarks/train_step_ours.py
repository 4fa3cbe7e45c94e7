"""Our side of benchmarks/train_step.py: the steps of `jaxscale train` without the loop, one request a line.

A request and its answer are those of train_step_peer.py.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from steps_ours import Steps

from configs import gpt
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.train.placement import place
from jaxscale.train.randomness import named_key
from jaxscale.train.state import place_new_state
from jaxscale.train.token_objective import batch_shape
from jaxscale.train.token_prediction import TokenPrediction


@dataclasses.dataclass(frozen=True)
class RandomTokens:
    """What `place` asks of an objective."""

    computation: TokenPrediction
    shape: Mapping[str, int]

    def init_params(self, key: jax.Array) -> Any:
        """Fresh weights."""
        return self.computation.init_params(key)

    def loss(self, params: Any, batch: Any, key: jax.Array) -> Any:
        """The job's own."""
        return self.computation.loss(params, batch, key)

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """Of the one batch."""
        return [batch_shape(self.shape["num_rows"], dict.fromkeys(("tokens", "targets"), self.shape["length"]))]

    def batch(self) -> dict[str, np.ndarray]:
        """Random tokens, each the target of the one before it."""
        size = (self.shape["num_rows"], self.shape["length"] + 1)
        text = np.random.default_rng(0).integers(0, self.shape["vocab_size"], size, dtype=np.int32)
        return {"tokens": text[:, :-1], "targets": text[:, 1:]}


def start(shape: Mapping[str, int], mesh: str, dtype: str, chunk_tokens: int | None) -> Steps:
    """A model with fresh weights, in one number format."""
    job = dataclasses.replace(gpt.gpt2_12m(), loss_chunk_tokens=chunk_tokens)
    identity = dataclasses.replace(job.training, compute_dtype=dtype)
    job = dataclasses.replace(job, training=identity)
    spec = MeshSpec.parse(mesh)
    objective = RandomTokens(job.computation, shape)
    placement = place(objective, identity, make_mesh(spec, jax.devices()[: spec.num_devices]))
    state = place_new_state(
        lambda: objective.init_params(named_key(identity.seed, "params")),
        identity.optimizer.transformation(),
        placement.state_shardings,
        placement.layouts,
    )
    return Steps(placement, identity, state, objective.batch())


def main() -> None:
    shape, mesh, chunk_tokens = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    trained: dict[str, Steps] = {}
    print(json.dumps({"jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["dtype"] not in trained:
            trained[request["dtype"]] = start(shape, mesh, request["dtype"], chunk_tokens)
        began = time.perf_counter()
        loss = trained[request["dtype"]].run(request["steps"])
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
