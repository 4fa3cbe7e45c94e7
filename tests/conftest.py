"""Settings every test runs under: 8 emulated CPU devices, strict dtype promotion, no silent rank promotion."""

import os

from jaxscale.emulation import emulate_cpu_devices

os.environ["OMP_WAIT_POLICY"] = "passive"
emulate_cpu_devices(8)

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
