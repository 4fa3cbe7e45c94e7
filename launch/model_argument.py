"""The model that a verb's flag names: a model folder, or a training run that exported one."""

from pathlib import Path

from jaxscale.errors import DataError


def model_folder_at(path: Path) -> Path:
    """The model folder at `path`, or of the run folder at `path`.

    Raises:
      DataError: there is no folder.
    """
    if not path.is_dir():
        raise DataError(f"--model {path}: there is no such folder")
    return path / "model" if (path / "model" / "MANIFEST.json").is_file() else path
