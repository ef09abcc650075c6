"""Training and evaluation data: an embedded corpus, prepared once per machine, read through Grain."""

from jaxnano.data.pipeline import eval_batches, load, train_batches
from jaxnano.data.store import Corpus

__all__ = ["Corpus", "eval_batches", "load", "train_batches"]
