"""The ids of rows: what is written is read, and anything else is refused."""

import pytest

from jaxscale.errors import DataError
from retrieval.row_ids import read_row_ids, write_row_ids


def test_ids_come_back_in_their_order(tmp_path):
    ids = ["b", "a", "é", '"quoted"']
    write_row_ids(tmp_path, ids)
    assert read_row_ids(tmp_path) == ids


def test_what_is_no_list_of_ids_is_refused(tmp_path):
    (tmp_path / "ids.json").write_text('["a", 2]')
    with pytest.raises(DataError, match=r"ids\.json"):
        read_row_ids(tmp_path)
