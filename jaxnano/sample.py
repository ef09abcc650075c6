"""Text from a checkpoint.

    python -m jaxnano.sample runs/first --prompt "def " --tokens 200
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from jaxnano.cli import Command, UserError, positive, report_errors, seed_number

PARSER = Command("jaxnano.sample", __doc__)
PARSER.add_argument("checkpoint", help="folder of `jaxnano.train --out`, or its checkpoint/")
PARSER.add_argument("--prompt", default="", help="text to continue; none: the start of a document")
PARSER.add_argument("--tokens", type=positive, default=256, metavar="N")
PARSER.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token (0.8)")
PARSER.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest; 0: from all (0)")
PARSER.add_argument("--seed", type=seed_number, default=0)
PARSER.early(__name__)

import jax
import jax.numpy as jnp
import numpy as np

from jaxnano import data
from jaxnano.checkpoint import load
from jaxnano.config.recipe import Recipe, at, hypers, shipped, structure_id, trained
from jaxnano.device import use_compile_cache
from jaxnano.model import gpt
from jaxnano.step import Structure


def sample(recipe: Recipe, params: gpt.Params, prompt: np.ndarray, tokens: int, seed: int = 0,
           temperature: float = 1.0, top_k: int = 0) -> np.ndarray:
    """Continue a prompt, one token a step, with keys and values kept.

    The model has seen `data.length` positions. Once they are full it reads the last half of the text again, as if it
    began there, and goes on: that is right for every position signal, learned ones included.

    Args: params: what the optimizer evaluates. prompt: tokens [P], at least one; the separator starts a document.
    temperature: 0 takes the likeliest token. top_k: draw from the k likeliest alone, 0 from all.
    Returns: the continuation [tokens].
    Raises: ValueError for a temperature or top_k below 0.
    """
    if temperature < 0 or top_k < 0:
        raise UserError(f"temperature {temperature:g}, top_k {top_k}: neither may be below 0")
    text, recipe = np.asarray(prompt, np.int32), trained(recipe)
    length, key, made = recipe.data.length, jax.random.key(seed), 0
    settings = {"temperature": np.float32(temperature), "top_k": np.int32(top_k or recipe.model.vocab)}
    compiled = _compiled(Structure(structure_id(recipe), None, 1, recipe))
    while made < tokens:
        seen = text if len(text) < length else text[-max(1, length // 2):]
        key, now = jax.random.split(key)
        count = min(tokens - made, length + 1 - len(seen))
        new = np.asarray(compiled(params, seen[None], np.int32(count), now, hypers(recipe, 1), settings))[:count]
        text, made = np.concatenate([text, new]), made + count
    return text[len(text) - made:]


@lru_cache(maxsize=4)
def _compiled(structure: Structure) -> Any:
    recipe = structure.recipe
    length = recipe.data.length

    @jax.jit
    def fill(params: gpt.Params, text_1xP: jax.Array, count: jax.Array, key: jax.Array, values: Any, settings: Any):
        """Read P tokens at once, then write `count` one by one. Returns: [length + 1 - P], zeros past count."""
        cfg = shipped(at(recipe, values, 1.0))
        logits_1xPxV, cache = gpt.logits(params, text_1xP, cfg, gpt.empty_cache(recipe, 1, length))
        keys = jax.random.split(key, length + 1 - text_1xP.shape[1])
        written = jnp.zeros(len(keys), jnp.int32).at[0].set(draw(keys[0], logits_1xPxV[0, -1], settings))

        def write(i: jax.Array, carry: Any) -> Any:
            written, cache = carry
            logits_1x1xV, cache = gpt.logits(params, written[i - 1][None, None], cfg, cache)
            return written.at[i].set(draw(keys[i], logits_1x1xV[0, 0], settings)), cache

        return jax.lax.fori_loop(1, count, write, (written, cache))[0]

    return fill


def draw(key: jax.Array, logits_V: jax.Array, settings: Any) -> jax.Array:
    """One token, int32. settings: temperature (0: the likeliest) and top_k (1 to V), both traced."""
    least_kept = jnp.sort(logits_V)[logits_V.size - jnp.clip(settings["top_k"], 1, logits_V.size)]
    kept_V = jnp.where(logits_V >= least_kept, logits_V, -jnp.inf)
    cold = settings["temperature"] == 0
    drawn = jax.random.categorical(key, kept_V / jnp.where(cold, 1.0, settings["temperature"]))
    return jnp.where(cold, jnp.argmax(logits_V), drawn).astype(jnp.int32)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    options = PARSER.options(argv)
    use_compile_cache()
    recipe, params, _ = load(options.checkpoint)
    tokens = data.tokenizer_of(recipe.data)
    prompt = tokens.encode(options.prompt) if options.prompt else np.array([tokens.separator])
    new = sample(recipe, params, prompt, options.tokens, options.seed, options.temperature, options.top_k)
    print(options.prompt + tokens.decode(new).decode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
