"""Text documents as a TFDS data set in ArrayRecord files, written and read without TensorFlow."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import tensorflow_datasets as tfds
from absl import logging

from jaxnano.cli import Failure, UserError
from jaxnano.data.corpus import Document

VERSION = "1.0.0"


class TextDocuments(tfds.core.GeneratorBasedBuilder):
    """Documents in their order, by split. The configuration's name says which data: other data, another name."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, documents: Mapping[str, Iterable[Document]] | None = None, **settings):
        """Args: documents: {split: documents}, needed to prepare only. settings: those of every TFDS builder."""
        self._documents = documents or {}
        super().__init__(**settings)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"source": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(documents) for split, documents in self._documents.items()}

    def _generate_examples(self, documents: Iterable[Document]) -> Iterator[tuple[int, dict[str, str]]]:
        for index, document in enumerate(documents):
            yield index, document._asdict()


def write(documents: Mapping[str, Iterable[Document]], name: str, directory: Path) -> None:
    """Prepare {split: documents} as the configuration `name` below `directory`."""
    config = tfds.core.BuilderConfig(name=name)
    skip = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
    with _quiet():
        builder = TextDocuments(documents=documents, data_dir=directory, config=config, file_format="array_record")
        builder.download_and_prepare(download_dir=directory, download_config=skip)


def read(name: str, directory: Path, split: str) -> list[bytes]:
    """Texts of one split of the configuration `name` below `directory`, in the order they were written."""
    with _quiet():
        source = tfds.data_source(f"text_documents/{name}:{VERSION}", data_dir=directory, split=split)
    return [example["text"] for example in cast(Sequence[dict[str, bytes]], source)]


def documents(name: str, data_dir: str | None, feature: str) -> Iterator[Document]:
    """Every example of a prepared data set as a document, its splits in the order of their names.

    Raises: ValueError if the feature is not text, or the files can only be read with TensorFlow.
    """
    with _refusals(name), _quiet():
        sources = tfds.data_source(name, data_dir=data_dir, download=False)
    for split in sorted(sources):
        for index, example in enumerate(cast(Sequence[dict[str, bytes]], sources[split])):
            if not isinstance(example.get(feature), bytes):
                texts = [key for key, value in example.items() if isinstance(value, bytes)]
                raise UserError(f"data.feature: {feature}: no text in {name}; one of {', '.join(texts)} would do")
            yield Document(f"{split}/{index}", example[feature].decode("utf-8", "replace"))


def prepare(name: str, data_dir: str | None) -> None:
    """Download a data set and prepare it as ArrayRecord files; raises Failure if that does not work."""
    with _refusals(name), _quiet():
        tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Tell in one line what TFDS says in many, or by an error of any type."""
    try:
        yield
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"data.name: {name}: TFDS and data_dir have no such data set") from None
    except NotImplementedError:
        raise UserError(f"data.name: {name}: prepared in files that need TensorFlow; prepared with "
                        "file_format='array_record' it would do") from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise Failure(f"TFDS cannot provide {name}: {reason}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence TFDS, which prints to standard output, where a worker may speak a protocol."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.set_verbosity(verbosity)
