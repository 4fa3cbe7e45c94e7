"""The key-value store of jax's coordination service: small texts that all processes of a job see, without a device."""

from typing import Any, Self

import jax
from jax._src import distributed  # the coordination service has no public door; Orbax goes in by this one too


class Coordination:
    """The store, by keys like paths; its client is jax's.

    Args:
      client: of the job's coordination service.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    def of_this_job(cls) -> Self | None:
        """The store of the job that this process is one of; None where it is the only one."""
        state = distributed.global_state  # `jax.process_count` would start the backend, and wait for all processes
        return cls(state.client) if state.client is not None and state.num_processes > 1 else None

    def put(self, key: str, value: str) -> None:
        """Writes a value, over one that is there."""
        self._client.key_value_set(key, value, allow_overwrite=True)

    def put_first(self, key: str, value: str) -> None:
        """Writes a value, unless another process has written one: then that one holds."""
        try:
            self._client.key_value_set(key, value)
        except jax.errors.JaxRuntimeError:
            if self.get(key) is None:
                raise

    def get(self, key: str) -> str | None:
        """The value of a key; None where nobody has written one."""
        try:
            return str(self._client.key_value_try_get(key))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def below(self, folder: str) -> dict[str, str]:
        """All values whose keys begin with `folder` and a slash, by what follows it."""
        return {key.removeprefix(f"{folder}/"): value for key, value in self._client.key_value_dir_get(f"{folder}/")}

    def delete(self, folder: str) -> None:
        """Deletes all values below a folder."""
        self._client.key_value_delete(f"{folder}/")
