"""Two texts as one row: what the tokenizers library makes of a pair, cut by our rule."""

import json

import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError

TEXTS = ["some words to make pieces of", "and some more words of words"] * 3
WORDPIECE = Tokenizer.train_wordpiece(TEXTS, 80)


def template(pair):
    """The same vocabulary with other special tokens around two texts."""
    names = ("[CLS]", "[SEP]")
    ids = {name: WORDPIECE.token_id(name) for name in names}
    post = {
        "type": "TemplateProcessing",
        "single": [piece("[CLS]"), text("A", 0), piece("[SEP]")],
        "pair": pair,
        "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in ids.items()},
    }
    return Tokenizer({**json.loads(WORDPIECE.to_json()), "post_processor": post})


def piece(name, type_id=0):
    return {"SpecialToken": {"id": name, "type_id": type_id}}


def text(name, type_id):
    return {"Sequence": {"id": name, "type_id": type_id}}


ROBERTA = template([piece("[CLS]"), text("A", 0), piece("[SEP]"), piece("[SEP]"), text("B", 0), piece("[SEP]")])


@pytest.mark.parametrize("tokenizer", [WORDPIECE, ROBERTA])
@pytest.mark.parametrize("pair", [("some words", "to make pieces"), ("words", ""), ("", "more")])
def test_a_row_is_what_the_library_makes_of_a_pair(tokenizer, pair):
    expected = tokenizer._library.encode(*pair)
    ids, types = tokenizer.pair_frame().join(*tokenizer.encode_bare(pair), 64)
    assert ids.dtype == types.dtype == np.int32
    assert ids.tolist() == expected.ids
    assert types.tolist() == expected.type_ids


def test_the_second_text_is_cut_and_never_the_first():
    first, second = WORDPIECE.encode_bare(["some words", "to make pieces of some more words"])
    frame = WORDPIECE.pair_frame()
    whole, _ = frame.join(first, second, 64)
    cut, types = frame.join(first, second, len(first) + 5)
    assert cut.tolist() == [*whole[: len(first) + 4], whole[-1]]
    assert types.tolist() == [0] * (len(first) + 2) + [1] * 3
    with pytest.raises(UsageError, match="leaves no room for a second text"):
        frame.join(first, second, len(first) + 3)


def test_texts_that_would_run_into_each_other_are_refused():
    for tokenizer in (Tokenizer.train_bpe(TEXTS, 280), template([piece("[CLS]"), text("A", 0), text("B", 1)])):
        with pytest.raises(DataError, match="a special token between them"):
            tokenizer.pair_frame()
