"""Training tokenizers: the same texts give the same tokenizer in every process, and nothing is lost."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError

# Many pairs occur equally often, so that any chance in the breaking of ties would show.
TEXTS = [f"word{i} {'abcdefghij'[i % 10]}{'klmnopqrst'[i % 7]}zz pre{i % 13}fix" for i in range(300)]

PROGRAM = """
import sys
from jaxscale.data.tokenizer import Tokenizer
texts = sys.stdin.read().splitlines()
print(Tokenizer.train_wordpiece(texts, vocab_size=200).fingerprint)
print(Tokenizer.train_bpe(texts, vocab_size=320).fingerprint)
"""


def test_processes_and_thread_counts_agree() -> None:
    seen = set()
    for num_threads in ("1", "4"):
        environment = {**os.environ, "RAYON_NUM_THREADS": num_threads}
        command = [sys.executable, "-c", PROGRAM]
        out = subprocess.run(
            command, input="\n".join(TEXTS), env=environment, capture_output=True, text=True, check=True
        )
        seen.add(out.stdout)
    here = [Tokenizer.train_wordpiece(TEXTS, vocab_size=200), Tokenizer.train_bpe(TEXTS, vocab_size=320)]
    assert seen == {f"{here[0].fingerprint}\n{here[1].fingerprint}\n"}


def test_repeated_trainings_agree() -> None:
    assert len({Tokenizer.train_wordpiece(iter(TEXTS), vocab_size=150).fingerprint for _ in range(8)}) == 1


def test_wordpiece_knows_the_text_it_was_trained_on() -> None:
    tokenizer = Tokenizer.train_wordpiece(TEXTS, vocab_size=200)
    assert tokenizer.vocab_size <= 200
    unknown = tokenizer.token_id("[UNK]")
    assert all(unknown not in row for row in tokenizer.encode_batch(TEXTS, 100).ids)
    assert len(tokenizer.encode_batch(["word"], 100).ids[0]) < 2 + len("word")


def test_only_real_special_tokens_are_special() -> None:
    """The pieces `##a` are named beforehand to make training deterministic; in a text they are plain characters."""
    tokenizer = Tokenizer.train_wordpiece([*TEXTS, "# ##"], vocab_size=200)
    piece = tokenizer.token_id("##o")
    assert piece is not None
    assert piece not in tokenizer.encode_batch(["##o"], 100).ids[0]
    assert tokenizer.encode_batch(["[MASK]"], 100).ids[0].tolist() == [2, 4, 3]


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=40))
def test_bpe_gives_back_every_text(text: str) -> None:
    tokenizer = Tokenizer.train_bpe(["some text", "some more"], vocab_size=262)
    assert tokenizer.decode(tokenizer.encode_batch([text], 1000).ids[0]) == text


def test_refuses_too_small_a_vocabulary() -> None:
    with pytest.raises(UsageError, match="vocab_size=10 is too small"):
        Tokenizer.train_wordpiece(TEXTS, vocab_size=10)
    with pytest.raises(UsageError, match="need 259"):
        Tokenizer.train_bpe(TEXTS, vocab_size=258)
