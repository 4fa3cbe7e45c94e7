"""Tokenizers: loading, our truncation, special tokens, fingerprints."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from tests.shared_data import shared_path

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog met on the mat", "Ünïcode càfé 東京"] * 3
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "the", "cat", ",", "é", "e", "Cat"]


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return Tokenizer.train_wordpiece(TEXTS, vocab_size=120)


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return path


def bert_reference(text: str) -> list[int]:
    """BERT's lowercase WordPiece, word by word, greedily the longest piece first (Devlin et al. 2019)."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    words = "".join(f" {c} " if unicodedata.category(c).startswith("P") else c for c in plain).split()
    ids = []
    for word in words:
        pieces, start = [], 0
        while start < len(word):
            ends = (e for e in range(len(word), start, -1) if ("##" if start else "") + word[start:e] in VOCAB)
            end = next(ends, None)
            if end is None:
                pieces = ["[UNK]"]
                break
            pieces.append(("##" if start else "") + word[start:end])
            start = end
        ids.extend(VOCAB.index(piece) for piece in pieces)
    return [2, *ids, 3]


@settings(deadline=None, max_examples=100)
@given(words=st.lists(st.sampled_from(["The", "cat", "CAT,", "unaffable", "Unable", "é", "É", "xyz", ","]), max_size=8))
def test_vocab_txt_is_berts_lowercase_wordpiece(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCAB), encoding="utf-8")
    encoded = Tokenizer.load(path).encode_batch([" ".join(words)], max_length=100)
    assert encoded.ids[0].tolist() == bert_reference(" ".join(words))


@pytest.mark.parametrize("token", ["\u2028", "\x85", "\x0c"])
def test_a_token_that_python_takes_for_a_line_s_end_moves_no_other(vocab_file: Path, token: str) -> None:
    vocab_file.write_text("\n".join([*VOCAB[:5], token, *VOCAB[5:]]) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.load(vocab_file)
    assert tokenizer.vocab_size == len(VOCAB) + 1
    assert tokenizer.token_id("cat") == VOCAB.index("cat") + 1


def test_a_cased_model_is_not_lowercased(vocab_file: Path) -> None:
    (vocab_file.parent / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.load(vocab_file).encode_batch(["Cat é"], 10).ids[0].tolist() == [2, 13, 11, 3]


def test_truncates_and_counts(wordpiece: Tokenizer) -> None:
    texts = ["cat", "the cat sat on the mat", "cat sat on"]
    whole = wordpiece.encode_batch(texts, 100)
    assert whole.num_truncated == 0
    cut = wordpiece.encode_batch(texts, 5)
    assert cut.num_truncated == 1
    for row, full in zip(cut.ids, whole.ids, strict=True):
        assert len(row) == min(len(full), 5)
        assert row[:-1].tolist() == full[: len(row) - 1].tolist()
        assert row[-1] == wordpiece.token_id("[SEP]")
        assert row.dtype == np.int32
    # A text of exactly the limit is not truncated.
    assert wordpiece.encode_batch(texts[2:], 5).num_truncated == 0


def test_what_a_file_says_of_padding_and_truncation_is_dropped(wordpiece: Tokenizer, tmp_path: Path) -> None:
    wordpiece.save(tmp_path / "plain.json")
    padding = tokenizers.Tokenizer.from_file(str(tmp_path / "plain.json"))
    padding.enable_padding(length=128)
    padding.enable_truncation(max_length=3)
    padding.save(str(tmp_path / "padding.json"))
    loaded = Tokenizer.load(tmp_path / "padding.json")
    assert len(loaded.encode_batch(["the cat sat on the mat"], 100).ids[0]) == 8
    assert loaded.fingerprint == wordpiece.fingerprint


def test_an_empty_text_still_has_a_token(wordpiece: Tokenizer) -> None:
    assert wordpiece.encode_batch(["", "  "], 8).ids[0].tolist() == [2, 3]
    bpe = Tokenizer.train_bpe(TEXTS, vocab_size=270)
    assert [len(row) for row in bpe.encode_batch([""], 8).ids] == [1]


def test_encodes_more_texts_than_go_to_the_library_at_once(wordpiece: Tokenizer) -> None:
    texts = [TEXTS[i % len(TEXTS)] for i in range(5000)]
    encoded = wordpiece.encode_batch(texts, 50)
    expected = [row.tolist() for row in wordpiece.encode_batch(TEXTS, 50).ids]
    assert [row.tolist() for row in encoded.ids] == [expected[i % len(TEXTS)] for i in range(5000)]
    assert wordpiece.encode_batch([], 50).ids == []


def test_saves_the_same_bytes_and_loads_the_same_tokenizer(wordpiece: Tokenizer, tmp_path: Path) -> None:
    wordpiece.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert loaded.fingerprint == wordpiece.fingerprint
    assert loaded.vocab_size == wordpiece.vocab_size
    assert loaded.encode_batch(TEXTS, 9).ids[2].tolist() == wordpiece.encode_batch(TEXTS, 9).ids[2].tolist()


def test_another_vocabulary_has_another_fingerprint(wordpiece: Tokenizer) -> None:
    assert Tokenizer.train_wordpiece(TEXTS[:1], vocab_size=120).fingerprint != wordpiece.fingerprint


def test_pad_ids(wordpiece: Tokenizer, vocab_file: Path) -> None:
    assert wordpiece.pad_id == wordpiece.token_id("[PAD]") == 0
    assert Tokenizer.train_bpe(TEXTS, vocab_size=270).pad_id == 0
    vocab_file.write_text("\n".join(["x", *VOCAB]))
    assert Tokenizer.load(vocab_file).pad_id == 1


@pytest.mark.parametrize("train", [Tokenizer.train_wordpiece, Tokenizer.train_bpe])
def test_one_more_token_closes_every_text_also_one_that_is_cut(train, tmp_path: Path) -> None:
    plain = train(TEXTS, 300)
    end = plain.token_id("the") or plain.token_id("t")
    closed = plain.closed_by(end)
    texts = [*TEXTS[:4], ""]
    for got, ids in zip(closed.encode_batch(texts, 50).ids, plain.encode_batch(texts, 50).ids, strict=True):
        # An empty text has a token now, and needs no unknown one.
        expected = ids.tolist() if plain.closing_ids or len(ids) > 1 else []
        assert got.tolist() == [*expected, end]
    cut = closed.encode_batch([TEXTS[0] * 5], 8)
    assert len(cut.ids[0]) == 8
    assert cut.ids[0][-1] == end
    assert cut.num_truncated == 1
    assert closed.closed_by(end) is closed
    assert closed.fingerprint != plain.fingerprint
    closed.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).fingerprint == closed.fingerprint
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode(texts[0]).ids == closed.encode_batch(texts, 50).ids[0].tolist()
    with pytest.raises(DataError, match="the tokenizer has no token 12345"):
        plain.closed_by(12345)


def test_decodes(wordpiece: Tokenizer) -> None:
    assert wordpiece.decode(wordpiece.encode_batch(["The Cat sat"], 10).ids[0]) == "the cat sat"


def test_a_lone_surrogate_is_named(wordpiece: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"text 2001 holds the lone surrogate U\+D800 at 1"):
        wordpiece.encode_batch(["fine"] * 2001 + ["a\ud800"], 10)


def test_refuses_a_limit_without_room(wordpiece: Tokenizer) -> None:
    with pytest.raises(UsageError, match="max_length=2 leaves no room beside 2 special tokens"):
        wordpiece.encode_batch(["a"], 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "not JSON"),
        ("tokenizer.json", "[]", "expected the object"),
        ("tokenizer.json", '{"model": 3}', "no tokenizer the tokenizers library can read"),
        ("vocab.txt", "a\nb\n", r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]"),
        ("other.txt", "", "neither tokenizer.json nor vocab.txt"),
    ],
)
def test_refuses_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer file"):
        Tokenizer.load(tmp_path / "none.json")


def test_bert_uncased_from_both_its_files_is_one_tokenizer() -> None:
    folder = shared_path("models/tokenizers/bert-uncased")
    from_json, from_vocab = Tokenizer.load(folder / "tokenizer.json"), Tokenizer.load(folder / "vocab.txt")
    assert json.loads((folder / "tokenizer.json").read_text())["padding"] is not None
    texts = ["Unaffable, naïve 東京 don't!", "", "x" * 300, "[MASK] is a token"]
    assert [r.tolist() for r in from_json.encode_batch(texts, 64).ids] == [
        r.tolist() for r in from_vocab.encode_batch(texts, 64).ids
    ]
    assert from_json.encode_batch(["hello world"], 64).ids[0].tolist() == [101, 7592, 2088, 102]
    assert from_json.pad_id == 0


@pytest.mark.parametrize("odd", [float("nan"), "\ud800"])
def test_refuses_a_file_that_has_no_canonical_bytes(tmp_path: Path, odd: object) -> None:
    path = tmp_path / "tokenizer.json"
    Tokenizer.train_bpe(["text"], vocab_size=262).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "odd": odd}))
    with pytest.raises(DataError, match="this is no tokenizer"):
        Tokenizer.load(path)
