"""Sharded training on JAX: one mesh, one plan, one durable layer."""
