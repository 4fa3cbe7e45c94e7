"""`jaxscale generate`: a trained decoder continues prompts, an encoder-decoder answers them."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxscale.errors import DataError, UsageError
from launch.model_argument import model_folder_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Continues prompts with a model folder, or with the model that a training run exported.

    An encoder-decoder (T5) reads each prompt as its source and writes a text of its own; a source may hold
    <extra_id_0>, <extra_id_1>... for spans to be filled in.

    Without --temperature the token with the highest score is taken; with it tokens are drawn, the same ones for one
    --seed. Prompts of any lengths are continued together.

    Example: jaxscale generate --model runs/small --prompt "The sea was"
    Example: jaxscale generate --model runs/small --prompt "The sea was" "In Python," --temperature 0.8 --top-p 0.95
    Example: jaxscale generate --model runs/t5 --prompt "The <extra_id_0> was calm that <extra_id_1>."
    """

    model: Path
    """A model folder or a run folder."""
    prompt: tuple[str, ...] = ()
    """What to continue, or to read."""
    prompts: Path | None = None
    """More of them: a text file with one prompt a line."""
    max_new_tokens: int = 64
    """Of each continuation."""
    temperature: float = 0.0
    """0 takes the best token; 1 draws as the model says, less than 1 more cautiously."""
    top_k: int | None = None
    """Only the k tokens with the highest scores may be drawn."""
    top_p: float = 1.0
    """Of those, only the fewest whose probabilities come to at least p."""
    seed: int = 0
    """Of the draws."""
    stop: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TOKEN")] = ()
    """Tokens of the vocabulary that end a continuation; the one that ends texts where none is named."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products."""
    check: Literal["full", "sizes"] = "full"
    """How much of the model is compared with its manifest: every byte, or names and sizes."""

    def run(self) -> dict[str, Any]:
        """Prints every prompt with what follows it (an encoder-decoder's text alone), and returns both."""
        from jaxscale import typed_json
        from jaxscale.nn.config import EncoderDecoderConfig
        from jaxscale.nn.model_folder import load_model
        from jaxscale.nn.sampling import Sampling
        from jaxscale.nn.text import generate_text

        sampling = Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed)
        prompts = [*self.prompt, *self._lines()]
        if not prompts:
            raise UsageError("there is no prompt; give --prompt TEXT, or --prompts FILE with one a line")
        model = load_model(model_folder_at(self.model), self.check)
        made = generate_text(
            model,
            prompts,
            max_new_tokens=self.max_new_tokens,
            sampling=sampling,
            stop=self.stop,
            compute_dtype=self.compute_dtype,
        )
        continues = not isinstance(model.config, EncoderDecoderConfig)
        print("\n\n".join(f"{one.prompt if continues else ''}{one.text}" for one in made))
        return {"model": str(self.model), "continuations": [typed_json.encode(one) for one in made]}

    def _lines(self) -> list[str]:
        if self.prompts is None:
            return []
        try:
            return self.prompts.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--prompts {self.prompts} can't be read as text: {error}") from error
