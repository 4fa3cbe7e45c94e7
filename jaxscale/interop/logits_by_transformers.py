"""A program for an interpreter that has torch and transformers, which jaxscale does not: a folder's scores of tokens.

Called as `PYTHON logits_by_transformers.py FOLDER TOKENS.json OUT.npy`, TOKENS.json holding `{"tokens": [[...]]}` and,
for an encoder-decoder, `"target": [[...]]`. Writes logits [B S V] or, where the folder is of a model without an output,
its hidden states [B S D], in float32.
"""

import json
import sys
from collections.abc import Sequence

import numpy as np


def has_no_output(model_type: str, architectures: Sequence[str]) -> bool:
    """Whether a folder's scores are hidden states.

    Args:
      model_type: as in config.json; a BERT is compared without the heads of its tasks.
      architectures: the names of its classes there.

    >>> has_no_output("llama", ["LlamaModel"]), has_no_output("gpt2", ["GPT2LMHeadModel"])
    (True, False)
    """
    bare = any(name.endswith("Model") and not name.endswith("LMHeadModel") for name in architectures)
    return model_type == "bert" or bare


def main(folder: str, tokens_file: str, out: str) -> None:
    """Writes the scores; refuses a folder that lacks tensors or has others than its class asks for."""
    import torch  # noqa: PLC0415 - where jaxscale is at home there is none
    import transformers  # noqa: PLC0415

    with open(tokens_file, encoding="utf-8") as file:
        batch = {name: torch.tensor(rows) for name, rows in json.load(file).items()}
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = config.model_type
    is_bare = has_no_output(kind, config.architectures or ())
    loader = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    loader = transformers.AutoModel if is_bare else loader
    # An encoder's pooler is no part of its hidden states, and need not be there.
    options = {"add_pooling_layer": False} if kind == "bert" else {}
    model, loaded = loader.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **options
    )
    wrong = {name: sorted(loaded[name]) for name in ("missing_keys", "mismatched_keys", "unexpected_keys")}
    if kind == "bert":  # heads of its tasks
        heads = ("pooler.", "bert.pooler.", "cls.", "classifier.")
        wrong["unexpected_keys"] = [name for name in wrong["unexpected_keys"] if not name.startswith(heads)]
    if any(wrong.values()):
        raise SystemExit(f"{folder}: {wrong}")
    with torch.no_grad():
        if kind == "t5":
            made = model.eval()(input_ids=batch["tokens"], decoder_input_ids=batch["target"])
        else:
            made = model.eval()(input_ids=batch["tokens"])
    np.save(out, (made.last_hidden_state if is_bare else made.logits).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
