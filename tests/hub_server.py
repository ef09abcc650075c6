"""A local HTTP server that speaks as much of the Hugging Face Hub as publishing a model takes, and keeps files."""

import base64
import hashlib
import json
import re

from loopback_server import LoopbackServer

COMMIT = "c" * 40
TOKEN = "hf_planted" + "k" * 30


class HubServer(LoopbackServer):
    """A context manager. repos: files by repository. commits: how many came. role: of the token.

    refuse: the part of a path that is answered with an error, which quotes the token.
    """

    def __init__(self):
        self.repos, self.commits, self.cards, self.refuse, self.role = {}, 0, [], None, "write"
        super().__init__()

    def handle(self, http):
        body = http.rfile.read(int(http.headers.get("content-length", 0)))
        headers = {"content-type": "application/json", "x-repo-commit": COMMIT}
        if self.refuse and self.refuse in http.path:
            status, found = 403, {"error": f"forbidden to {http.headers.get('authorization')}"}
            headers["x-error-message"] = found["error"]
        elif (file := re.fullmatch(rf"/(\w+/[\w.-]+)/resolve/{COMMIT}/(.+)", http.path)) is not None:
            status, found = 200, self.repos[file[1]][file[2]]
            headers["etag"] = f'"{hashlib.sha256(found).hexdigest()}"'
        else:
            assert http.headers.get("authorization") in (f"Bearer {TOKEN}", None), http.path
            status, found = self.answer(http.command, http.path, body)
        if status == 404:
            headers["x-error-code"] = "RepoNotFound"
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        http.send_response(status)
        for name, value in headers.items():
            http.send_header(name, value)
        http.send_header("content-length", str(len(data)))
        http.end_headers()
        if http.command != "HEAD":
            http.wfile.write(data)

    def answer(self, method, path, body):
        """Status and what is sent back, as bytes or as what JSON is made of."""
        match path.partition("?")[0].strip("/").split("/")[1:]:
            case ["whoami-v2"]:
                return 200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": self.role}}}
            case ["validate-yaml"]:
                self.cards.append(json.loads(body)["content"])
                return 200, {"errors": [], "warnings": []}
            case ["repos", "create"]:
                asked = json.loads(body)
                self.repos.setdefault(name := f"{asked['organization']}/{asked['name']}", {".gitattributes": b"*"})
                return 200, {"url": f"{self.url}/{name}"}
            case ["models", *name, "preupload", _]:
                return 200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                       for file in json.loads(body)["files"]]}
            case ["models", *name, "commit", _]:
                lines = [json.loads(line) for line in body.splitlines()]
                self.commits += 1
                self.repos["/".join(name)] |= {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                                               for line in lines if line["key"] == "file"}
                url = f"{self.url}/{'/'.join(name)}"
                return 200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{url}/commit/{COMMIT}"}
            case ["models", *name] if (files := self.repos.get("/".join(name[:2]))) is not None:
                if "tree" in name:
                    return 200, [{"type": "file", "path": file, "size": len(data), "oid": COMMIT}
                                 for file, data in files.items()]
                return 200, {"id": "/".join(name[:2]), "sha": COMMIT,
                             "siblings": [{"rfilename": file} for file in files]}
        return 404, {"error": "Repository not found"}
