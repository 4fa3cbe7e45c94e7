"""Loss and gradients as training computes them on a mesh, under a plan that is applied, beside one device's."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.mesh import make_mesh
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.initialise import place
from jaxscale.sharding.layouts import restore_leaves
from jaxscale.sharding.rematerialization import compile_watched

MESHES = ("tensor=2", "tensor=4", "tensor=8", "fsdp=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2")
# Less work for the compiler: XLA partitions the same program, only the code made of it is slower.
COMPILED_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Gradients that are zero but for rounding, as that of the keys' bias under a softmax, have no norm to compare with:
# they may be wrong by this part of the whole gradient's norm, times the tolerance.
NO_NORM = 1e-3


def on_one_device(function, params, batch):
    """What a function of both makes, as host arrays."""
    return jax.device_get(jax.jit(function, compiler_options=COMPILED_FAST)(params, batch))


def on_mesh(function, params, batch, spec, *, plan):
    """What the function makes of arguments that live where the plan says, fused leaves in their stored order."""
    return _computed(_applied(function, params, batch, spec, plan), params, batch, spec, plan, None)


def gradient_on_mesh(loss, params, batch, spec, *, plan):
    """The loss and its gradient, this too where the plan says; as host arrays in the logical order."""
    gradient = jax.value_and_grad(_applied(loss, params, batch, spec, plan))
    shardings = (None, plan.shardings(_mesh(spec), params))
    value, stored = _computed(gradient, params, batch, spec, plan, shardings)
    return value, restore_leaves(stored, plan.layouts(params))


def far_leaves(got, expected, *, tolerance):
    """The relative errors of the leaves that differ by more than the tolerance, in the norm of each."""
    whole = np.sqrt(sum(np.linalg.norm(leaf) ** 2 for leaf in jax.tree.leaves(expected)))
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True)
    errors = {
        jax.tree_util.keystr(path): np.linalg.norm(mine - leaf) / (np.linalg.norm(leaf) + NO_NORM * whole)
        for (path, leaf), mine in leaves
    }
    return {path: error for path, error in errors.items() if not error <= tolerance}


@contextlib.contextmanager
def everything_in(dtype):
    """With float64, what is float32 where it is written so is float64."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(dtype == "float64"):
        if dtype == "float64":
            patch.setattr(jnp, "float32", jnp.float64)
        yield


def _mesh(spec):
    return make_mesh(spec, devices=jax.devices()[: spec.num_devices])


def _applied(function, params, batch, spec, plan):
    return apply_plan(plan, function, _mesh(spec), params, batch)


def _computed(function, params, batch, spec, plan, out_shardings):
    """Compiled and run; the compiler may find no array that it can only move by copying it to every device."""
    mesh = _mesh(spec)
    placed = [
        place(jax.tree.map(np.asarray, tree), plan.shardings(mesh, tree), plan.layouts(tree))
        for tree in (params, batch)
    ]
    lowered = jax.jit(function, out_shardings=out_shardings).lower(*placed)
    compiled, copied_whole = compile_watched(lowered, COMPILED_FAST)
    assert not copied_whole, "\n".join(map(str, copied_whole))
    return jax.device_get(compiled(*placed))
