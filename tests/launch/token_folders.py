"""Token datasets out of the shared texts, for tests of the command line."""

from launch.cli import main
from tests.shared_data import shared_path


def tokens_of(text, folder):
    """The dataset of `lm/<text>` of the shared data, made below `folder`: 4,096 tokens, packed in rows of 128."""
    source, tokenizer, out = str(shared_path(f"lm/{text}")), str(folder / "tokenizer.json"), folder / "tokens"
    train = ["data", "train-tokenizer", "--input", source, "--vocab-size", "4096", "--out", tokenizer]
    assert main(train) == 0
    tokenize = ["data", "tokenize", "--input", source, "--tokenizer", tokenizer, "--pack-lengths", "128"]
    assert main([*tokenize, "--out", str(out)]) == 0
    return out
