"""A published folder: any change shows, it is there whole or not at all, and a bucket serves as well as a disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

import jaxnano
from jaxnano import checkpoint, published, step
from jaxnano.checkpoint import Checkpoints
from jaxnano.cli import Failure
from tests.jaxnano.test_train import RECIPE

FILES = {"card.json": "{}\n", "recipe.yaml": "model: {}\n", "checkpoint/0/d/a": "\0\1", "checkpoint/0/b": "text"}


def write(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, str]:
    """A folder of a few files, and its id."""
    return (folder := write(tmp_path / "model")), published.seal(folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as `jaxnano.train --out` leaves it, and its parameters."""
    folder = tmp_path_factory.mktemp("run")
    state = step.program(RECIPE).init(np.uint32(0), step.hypers(RECIPE, 10))
    checkpoints = Checkpoints(folder / checkpoint.FOLDER, RECIPE, 5, 10, "data")
    checkpoints.save(state, {"next_index": 1}, 1.0)
    checkpoints.close()
    return folder, jax.device_get(state.optimizer.params)


@pytest.fixture
def published_run(ran: Any, tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "published"
    shutil.copytree(ran[0], folder)
    (folder / published.CARD).write_text('{"name": "it"}')
    return folder, published.seal(folder)


class Bucket(MemoryFileSystem):
    """Google's storage as fsspec sees it, in memory: no folders but by name, and no renaming that could be trusted."""

    protocol = ("gcs", "gs")
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    room = 1 << 30  # files it takes before it fails

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("gs://").strip("/")

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and len(self.store) >= self.room:
            raise OSError("quota exceeded")
        return super().open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Any:
    """gs:// served by `Bucket`."""
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setitem(_registry, "gcs", Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield Bucket
    Bucket.store.clear()
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_an_untouched_folder_is_verified(sealed: Any) -> None:
    folder, name = sealed
    assert published.verify(epath.Path(folder)) == name == published.seal(folder)
    files = json.loads((folder / published.MANIFEST).read_text())["files"]
    assert files == {name: hashlib.sha256(text.encode()).hexdigest() for name, text in FILES.items()}


@pytest.mark.parametrize("name", [*FILES, published.MANIFEST])
def test_every_flipped_bit_is_refused(sealed: Any, name: str) -> None:
    file = sealed[0] / name
    right = file.read_bytes()
    for place in range(len(right)):
        file.write_bytes(right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])
        with pytest.raises(ValueError, match="would do|this version reads 1") as error:
            jaxnano.load(sealed[0])
        assert "\n" not in str(error.value)
        assert name == published.MANIFEST or f"{name}: changed since it was published" in str(error.value)
    file.write_bytes(right)
    published.verify(epath.Path(sealed[0]))


@pytest.mark.parametrize(("change", "reason"), [
    (lambda folder: (folder / "checkpoint/0/b").unlink(), "checkpoint/0/b: missing"),
    (lambda folder: (folder / "checkpoint/more").write_text(""), "checkpoint/more: added"),
    (lambda folder: (folder / "checkpoint/manifest.json").write_text(""), "checkpoint/manifest.json: added"),
    (lambda folder: (folder / "recipe.yaml").rename(folder / "r.yaml"), "r.yaml: added"),
    (lambda folder: (folder / "checkpoint/0/b").write_text(""), "checkpoint/0/b: changed"),
    (lambda folder: (folder / "manifest.json").write_text("[" * 100_000), "manifest.json: changed, or never"),
    (lambda folder: (folder / "manifest.json").write_text('{"format": 9}'), "format 9; this version reads 1"),
    (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json: not published, or not to the end"),
])
def test_any_other_change_is_refused(sealed: Any, change: Any, reason: str) -> None:
    change(sealed[0])
    with pytest.raises(ValueError, match=reason) as error:
        jaxnano.load(sealed[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [
    lambda folder: (folder / "l").symlink_to("/etc/hostname"),
    lambda folder: [(folder / name).symlink_to(".") for name in "ab"],  # 2^40 ways to go round
    lambda folder: (folder / "d").symlink_to("/etc"),
    lambda folder: os.mkfifo(folder / "p"),
    lambda folder: ((folder / "manifest.json").unlink(), (folder / "manifest.json").symlink_to("/dev/zero")),
    lambda folder: (folder / "z").symlink_to("/dev/zero"),
    lambda folder: (folder / "/".join("d" * 40)).mkdir(parents=True),
])
def test_links_pipes_and_devices_are_refused_whatever_the_manifest_says(sealed: Any, make: Any) -> None:
    make(sealed[0])
    with pytest.raises(ValueError, match="no plain file or folder|more than 32 deep"):
        jaxnano.load(sealed[0])
    with pytest.raises(ValueError, match="no plain file or folder|more than 32 deep"):
        published.seal(sealed[0])


def test_a_model_is_known_by_its_id_even_if_the_manifest_was_made_anew(published_run: Any) -> None:
    folder, name = published_run
    assert jaxnano.load(folder, digest=name)[2]["id"] == name
    (folder / published.CARD).write_text('{"name": "that"}')
    other = published.seal(folder)
    assert jaxnano.load(folder)[2]["card"] == {"name": "that"} and other != name
    with pytest.raises(ValueError, match=f"its id is {other}, not {name}"):
        jaxnano.load(folder, digest=name)


@pytest.mark.parametrize("mesh", [None, "fsdp=4,tensor=2", "data=8"])
def test_parameters_come_to_any_mesh(published_run: Any, ran: Any, mesh: str | None) -> None:
    recipe, params, about = jaxnano.load(published_run[0], mesh)
    assert recipe == RECIPE and (about["seed"], about["total_steps"], about["card"]) == (5, 10, {"name": "it"})
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), ran[1])
    assert {len(p.sharding.device_set) for p in params.values()} == {8}
    whole = params["embedding/token"].sharding.is_fully_replicated
    assert whole == (mesh != "fsdp=4,tensor=2")


def test_opening_leaves_a_model_as_it_was(published_run: Any) -> None:
    for _ in range(2):
        jaxnano.load(published_run[0])
    assert published.verify(epath.Path(published_run[0])) == published_run[1]


def test_a_run_s_folder_opens_too_without_a_card(ran: Any) -> None:
    _, params, about = jaxnano.load(str(ran[0]))
    assert "card" not in about and about["seed"] == 5
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), ran[1])
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        jaxnano.load(ran[0], digest="0" * 64)


def test_a_mesh_that_does_not_fit_is_refused(ran: Any) -> None:
    with pytest.raises(ValueError, match="multiply to the 8 device"):
        jaxnano.load(ran[0], "data=3")


def test_importing_jaxnano_imports_nothing() -> None:
    code = "import jaxnano, sys; assert 'jax' not in sys.modules and 'load' in jaxnano.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        jaxnano.save  # noqa: B018


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with pytest.raises(KeyboardInterrupt), published.publishing(target) as folder:
        write(folder)
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    with published.publishing(target) as folder:
        published.seal(write(folder))
        assert not target.exists()
    published.verify(epath.Path(target))
    assert [p.name for p in target.parent.iterdir()] == ["model"]


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with published.publishing(tmp_path / "empty") as folder:
        write(folder)
    (tmp_path / "file").write_text("mine")
    for taken in ("empty", "file"):
        with pytest.raises(ValueError, match="is there already; a new or empty folder would do"), \
                published.publishing(tmp_path / taken):
            raise AssertionError("not reached")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_bucket_takes_and_gives_a_model(published_run: Any, ran: Any, bucket: Any) -> None:
    folder, name = published_run
    with published.publishing("gs://bucket/models/one") as place:
        shutil.copytree(folder, place, dirs_exist_ok=True)
    assert next(reversed(bucket.store)) == "/bucket/models/one/manifest.json"
    _, params, about = jaxnano.load("gs://bucket/models/one", digest=name)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), ran[1])
    assert about["card"] == {"name": "it"}
    with pytest.raises(ValueError, match="gs://bucket/models/one: is there already"), \
            published.publishing("gs://bucket/models/one"):
        raise AssertionError("not reached")
    with epath.Path("gs://bucket/models/one/card.json").open("w") as card:
        card.write("{}")
    with pytest.raises(ValueError, match=r"gs://bucket/models/one: card\.json: changed since it was published"):
        jaxnano.load("gs://bucket/models/one")


def test_an_upload_that_fails_leaves_nothing(sealed: Any, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "room", 3)
    with pytest.raises(Failure, match="gs://bucket/one: cannot be reached: quota exceeded"), \
            published.publishing("gs://bucket/one") as place:
        shutil.copytree(sealed[0], place, dirs_exist_ok=True)
    assert not bucket.store
    with pytest.raises(ValueError, match=r"gs://bucket/one: no manifest\.json"):
        jaxnano.load("gs://bucket/one")


def test_without_a_library_for_buckets_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    backend.fsspec_backend._get_filesystem.cache_clear()
    with pytest.raises(ValueError, match="gs://bucket/one: gcsfs is not installed; pip install gcsfs would do"):
        jaxnano.load("gs://bucket/one")
