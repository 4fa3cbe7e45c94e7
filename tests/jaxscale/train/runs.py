"""A few steps of an objective on a mesh, as the loop runs them, without its folder."""

import jax

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.train.placement import place
from jaxscale.train.programs import StepPrograms
from jaxscale.train.randomness import named_key
from jaxscale.train.state import place_new_state
from jaxscale.train.step import make_step


def placed(objective, identity, mesh_text, gather_weights="microbatch"):
    """The placement of a run on as many emulated devices as the mesh has."""
    spec = MeshSpec.parse(mesh_text)
    return place(objective, identity, make_mesh(spec, jax.devices()[: spec.num_devices]), gather_weights)


def losses(objective, identity, mesh_text, num_steps, gather_weights="microbatch"):
    """The loss of each step."""
    placement = placed(objective, identity, mesh_text, gather_weights)
    key = named_key(identity.seed, "params")
    state = place_new_state(
        lambda: objective.init_params(key),
        identity.optimizer.transformation(),
        placement.state_shardings,
        placement.layouts,
    )
    programs = StepPrograms(
        make_step(placement.loss, identity, placement.slices, placement.gathered),
        state_shardings=placement.state_shardings,
        batch_shardings=placement.batch_shardings,
        metrics_sharding=placement.metrics_sharding,
    )
    made = []
    for number in range(num_steps):
        batch = placement.put_batch(objective.batch(number))
        if not programs.has(batch):
            programs.compile(state, batch)
        state, metrics = programs.run(state, batch)
        made.append(float(metrics["loss"]))
    return made
