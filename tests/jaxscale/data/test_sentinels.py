"""Names and ids of what stands for spans, with tokenizers that know the names and with others."""

import json

from jaxscale.data.sentinels import encode_around, sentinel_names
from jaxscale.data.tokenizer import Tokenizer

TEXTS = ["the sea was calm"] * 3


def knowing(tokenizer, names):
    """The same tokenizer with more special tokens behind its own."""
    spec = json.loads(tokenizer.to_json())
    first = tokenizer.vocab_size
    spec["added_tokens"] += [
        {**spec["added_tokens"][0], "id": first + number, "content": name} for number, name in enumerate(names)
    ]
    return Tokenizer(spec)


def test_a_tokenizer_without_names_leaves_the_last_ids_of_the_model():
    tokenizer = Tokenizer.train_bpe(TEXTS, 280)
    size = tokenizer.vocab_size
    assert sentinel_names(tokenizer, size) == {}
    names = sentinel_names(tokenizer, size + 3)
    assert list(names.items()) == [
        (size + 2, "<extra_id_0>"),
        (size + 1, "<extra_id_1>"),
        (size, "<extra_id_2>"),
    ]


def test_a_tokenizer_that_knows_names_uses_its_own_in_the_order_of_their_numbers():
    tokenizer = knowing(Tokenizer.train_bpe(TEXTS, 280), ["<extra_id_1>", "<extra_id_0>"])
    first = tokenizer.vocab_size - 2
    names = sentinel_names(tokenizer, tokenizer.vocab_size + 8)
    assert list(names.items()) == [(first + 1, "<extra_id_0>"), (first, "<extra_id_1>")]
    assert (
        encode_around(tokenizer, "<extra_id_0> calm", names, 40)
        == tokenizer.encode_batch(["<extra_id_0> calm"], 40).ids[0].tolist()
    )


def test_names_in_a_text_are_one_token_each_and_unknown_ones_are_text():
    tokenizer = Tokenizer.train_bpe(TEXTS, 280)
    size = tokenizer.vocab_size
    names = sentinel_names(tokenizer, size + 2)

    def ids(text):
        return tokenizer.encode_batch([text], 80).ids[0].tolist()

    text = "the <extra_id_0> was<extra_id_1>"
    assert encode_around(tokenizer, text, names, 40) == [*ids("the "), size + 1, *ids(" was"), size]
    assert encode_around(tokenizer, "a <extra_id_2>", names, 40) == [*ids("a "), *ids("<extra_id_2>")]
    assert encode_around(tokenizer, "the sea", {}, 2) == ids("the sea")[:2]
