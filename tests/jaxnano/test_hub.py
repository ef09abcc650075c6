"""hf:// through the real huggingface_hub, against a server on the loopback: what goes up, comes down, and fails."""

import shutil
import sys

import pytest
from hub_server import TOKEN, HubServer

from jaxnano import hub, published
from jaxnano.cli import Failure

FILES = {"card.json": b"{}\n", "README.md": b"---\nlibrary_name: jaxnano\n---\n\n# it\n",
         "checkpoint/0/d/a": b"\0\1\xff"}


@pytest.fixture
def server(monkeypatch):
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def publish(target="hf://me/model"):
    with published.publishing(target) as folder:
        for name, data in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return published.seal(folder), folder


def test_a_repository_takes_a_model_as_one_commit_and_gives_it_back(server, tmp_path):
    publish()
    got = server.repos["me/model"]
    assert got.keys() == {*FILES, published.MANIFEST, ".gitattributes"} and server.commits == 1
    assert {name: got[name] for name in FILES} == FILES and server.cards == [FILES["README.md"].decode()]
    hub.download("hf://me/model", copy := tmp_path / "copy")
    found = {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert found == {name: data for name, data in got.items() if name != ".gitattributes"}
    got["card.json"] += b" "
    with pytest.raises(ValueError, match=r"^hf://me/model: card\.json: changed since it was published"):
        published.load("hf://me/model")
    with pytest.raises(ValueError, match="hf://me/model: is there already; a new or empty repository would do"):
        publish()
    assert server.commits == 1


def test_an_empty_repository_will_do(server):
    server.repos["me/model"] = {".gitattributes": b"*", "README.md": b"mine"}
    publish()
    assert server.repos["me/model"]["README.md"] == FILES["README.md"]


@pytest.mark.parametrize("path", ["hf://", "hf://model", "hf://a/b/c", "hf://a b/c"])
def test_what_is_no_repository_is_refused(path):
    with pytest.raises(ValueError, match=f"{path}: no repository; hf://OWNER/NAME would do"):
        publish(path)


def refused(monkeypatch, server, lacking):
    match lacking:
        case "the package":
            monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        case "a token":
            monkeypatch.delenv("HF_TOKEN")
            monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
        case "the right":
            server.role = "read"
        case "the net":
            monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        case "the permission":
            server.refuse = "whoami"


@pytest.mark.parametrize(("lacking", "words"), [
    ("the package", r'huggingface_hub is not installed; pip install "jaxnano\[hf\]" would do'),
    ("a token", "no token: HF_TOKEN in the environment, or `hf auth login`, would do"),
    ("the right", "the token may only read"), ("the net", "cannot be reached: .*refused"),
    ("the permission", "cannot be reached: ")])
def test_what_lacks_is_one_line_before_anything_is_done(server, monkeypatch, lacking, words):
    refused(monkeypatch, server, lacking)
    with pytest.raises(ValueError, match=f"^hf://me/model: {words}") as error, published.publishing("hf://me/model"):
        raise AssertionError("not reached")
    assert "\n" not in str(error.value) and TOKEN not in str(error.value) and not server.repos


@pytest.mark.parametrize("part", ["create", "preupload", "commit"])
def test_what_did_not_get_there_is_kept_and_no_token_is_told(server, part):
    server.refuse = part
    with pytest.raises(Failure, match="^hf://me/model: cannot be reached: ") as error:
        publish()
    line = str(error.value)
    assert "\n" not in line and TOKEN not in line and server.commits == 0
    folder = line.rpartition(" lies in ")[2]
    published.verify(published.epath.Path(folder))
    shutil.rmtree(folder)


def test_what_is_not_written_to_the_end_is_not_sent(server):
    with pytest.raises(ZeroDivisionError), published.publishing("hf://me/model") as folder:
        (folder / "file").write_text("half")
        raise ZeroDivisionError
    assert not folder.exists() and not server.repos
