"""The file ids.json beside vectors and indexes: the id of the document behind each row."""

import json
from pathlib import Path

from jaxscale import typed_json

_FILE = "ids.json"


def write_row_ids(directory: Path, ids: list[str]) -> None:
    """Writes the documents' ids, row by row, into a draft's directory."""
    (directory / _FILE).write_text(json.dumps(ids), encoding="utf-8")


def read_row_ids(directory: Path) -> list[str]:
    """The documents' ids, row by row.

    Raises:
      DataError: the file holds something else.
    """
    return typed_json.decode(list[str], json.loads((directory / _FILE).read_text(encoding="utf-8")), _FILE)
