"""Models on the Hugging Face Hub: hf://OWNER/NAME. huggingface_hub is an extra, imported where it is used.

Who asks is its own affair: HF_TOKEN in the environment, or `hf auth login`. HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxnano.cli import Failure, UserError

SCHEME = "hf://"
OWN = {".gitattributes", "README.md"}  # files that a new repository may come with
MOST = 200  # characters of a reason
_HIDDEN = "[hidden]"


def is_hub(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a repository of the Hub."""
    return os.fspath(path).startswith(SCHEME)


def check(path: str) -> None:
    """See that something can be published at `path`: nothing is sent yet.

    Raises: ValueError in one line without the package, a token that may write, the net, or a free repository.
    """
    api, repo, token = _connect(path)
    if not token:
        raise UserError(f"{path}: no token: HF_TOKEN in the environment, or `hf auth login`, would do")
    with _reaching(path, token, UserError):
        if api.whoami()["auth"]["accessToken"]["role"] == "read":
            raise UserError(f"{path}: the token may only read; one that may write would do")
        taken = api.repo_exists(repo) and set(api.list_repo_files(repo)) - OWN
    if taken:
        raise UserError(f"{path}: is there already; a new or empty repository would do")


def upload(folder: Path, path: str) -> None:
    """Send all files of a folder as one commit, into a repository that is made where there is none.

    Raises: Failure in one line.
    """
    api, repo, token = _connect(path)
    with _reaching(path, token, Failure):
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Publish a model")


def download(path: str, into: Path) -> None:
    """Copy the files of a repository into a folder, without what the Hub itself adds.

    Raises: ValueError without the package; Failure if it cannot be read.
    """
    api, repo, token = _connect(path)
    with _reaching(path, token, Failure):
        api.snapshot_download(repo, local_dir=into, ignore_patterns=[".gitattributes"])
    shutil.rmtree(into / ".cache", ignore_errors=True)  # its own notes about the files


def _connect(path: str) -> tuple[Any, str, str | None]:
    """The Hub, the repository's name there, and the token that the Hub's own login has, if any."""
    repo = path.removeprefix(SCHEME).rstrip("/")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"{path}: no repository; hf://OWNER/NAME would do")
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise UserError(f'{path}: huggingface_hub is not installed; pip install "jaxnano[hf]" would do') from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(os.environ.get("HF_ENDPOINT"), library_name="jaxnano"), repo, get_token()


@contextlib.contextmanager
def _reaching(path: str, token: str | None, kind: type[Exception]) -> Iterator[None]:
    """What the Hub's library raises, as one line of a kind, without the token that a server may echo."""
    try:
        yield
    except (UserError, Failure):
        raise
    except Exception as error:
        said = str(error).replace(token, _HIDDEN) if token else str(error)
        reason = " ".join(said.split()) or type(error).__name__
        raise kind(f"{path}: cannot be reached: {reason[:MOST]}") from None
