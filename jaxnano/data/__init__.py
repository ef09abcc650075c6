"""Training and evaluation data: an embedded corpus, shards, TFDS or text of one's own, read through Grain."""

from jaxnano.data.pipeline import eval_batches, load, tokenizer_of, train_batches
from jaxnano.data.store import Corpus

__all__ = ["Corpus", "eval_batches", "load", "tokenizer_of", "train_batches"]
