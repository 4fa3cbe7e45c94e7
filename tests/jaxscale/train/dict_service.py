"""jax's coordination service as a dict: its client, for all processes of a test."""

import jax


class Service:
    """What `jaxscale.train.coordination` asks of the client."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        if key in self.values and not allow_overwrite:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
        self.values[key] = value

    def key_value_try_get(self, key):
        if key not in self.values:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
        return self.values[key]

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in list(self.values.items()) if key.startswith(folder)]

    def key_value_delete(self, folder):
        for key, _ in self.key_value_dir_get(folder):
            del self.values[key]
