"""A hub on loopback: the few endpoints of the Hugging Face hub that pushing and pulling a model repository uses."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

GOOD_TOKEN = "hf_good"  # of the only account, whose name is user
READ_TOKEN = "hf_read"  # may read what is private, and write nothing


@dataclass
class Repository:
    """Branches to commits, commits to files."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, tuple[bytes, bool]]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, tuple[bytes, bool]], message: str) -> str:
        told = json.dumps([branch, len(self.commits), sorted(files), message])
        sha = hashlib.sha1(told.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha


class StandIn(ThreadingHTTPServer):
    """The server; ``requests`` lists what was asked of it as ``METHOD path``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return {path: content for path, (content, _) in repository.commits[repository.branches[branch]].items()}

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Answer(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", url: str = "") -> None:
        self.status, self.code, self.message, self.url = status, code, message, url


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._route([unquote(part) for part in path.strip("/").split("/")], body)
        except _Answer as answer:
            headers = {"X-Error-Code": answer.code, "X-Error-Message": answer.message}
            content = json.dumps({"error": answer.message, "url": answer.url}).encode()
            self._send(content, answer.status, {key: value for key, value in headers.items() if value})

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self) -> None:
        if self._token != GOOD_TOKEN:
            known = self._token == READ_TOKEN
            raise _Answer(403 if known else 401, "", "no right" if known else "Invalid username or password.")

    def _repository(self, name: str) -> Repository:
        repository = self.server.repositories.get(name)
        stranger = self._token not in (GOOD_TOKEN, READ_TOKEN)
        if repository is None or (repository.private and stranger):
            raise _Answer(404 if not stranger else 401, "RepoNotFound", "Repository not found")
        if repository.gated and stranger:
            raise _Answer(403, "GatedRepo", "Access to this model is restricted")
        return repository

    @staticmethod
    def _sha(repository: Repository, revision: str) -> str:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise _Answer(404, "RevisionNotFound", "Revision not found")
        return sha

    def _route(self, parts: list[str], body: bytes) -> None:
        match self.command, parts:
            case "POST", ["api", "repos", "create"]:
                self._create(json.loads(body))
            case "POST", ["api", "validate-yaml"]:
                text = json.loads(body)["content"]
                found = yaml.safe_load(text.split("---\n")[1])
                assert {"license", "library_name", "tags"} <= found.keys()
                self._json({"errors": [], "warnings": []})
            case "POST", ["api", "models", user, name, "preupload", _]:
                self._may_write()
                told = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self._json({"files": told})
            case "POST", ["api", "models", user, name, "branch", branch]:
                self._may_write()
                repository = self._repository(f"{user}/{name}")
                if branch in repository.branches:
                    raise _Answer(409, "", "exists")
                repository.branches[branch] = repository.branches["main"]
                self._json({})
            case "POST", ["api", "models", user, name, "commit", branch]:
                self._commit(self._repository(f"{user}/{name}"), f"{user}/{name}", branch, body)
            case "POST", [user, name, "info", "lfs", "objects", "batch"]:
                self._may_write()
                self._json(
                    {"transfer": "basic", "objects": [self._action(each) for each in json.loads(body)["objects"]]}
                )
            case "PUT", ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.server.blobs[oid] = body
                self._send(b"")
            case "GET" | "HEAD", ["cdn", oid]:
                self._send(self.server.blobs[oid], headers={"ETag": f'"{oid}"'})
            case "GET" | "HEAD", ["api", "models", user, name, *rest]:
                self._tell(f"{user}/{name}", rest)
            case "GET" | "HEAD", [user, name, "resolve", revision, *path]:
                self._resolve(f"{user}/{name}", revision, "/".join(path))
            case _:
                raise _Answer(501, "", f"{self.command} {self.path} is not played here")

    def _create(self, asked: dict[str, Any]) -> None:
        self._may_write()
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "user":
            raise _Answer(403, "", "not your namespace")
        if name in self.server.repositories:
            raise _Answer(409, "", "You already created this model repo", f"{self.server.endpoint}/{name}")
        repository = Repository(private=asked.get("visibility") == "private")
        repository.commit("main", {".gitattributes": (b"*.safetensors filter=lfs\n", False)}, "initial commit")
        self.server.repositories[name] = repository
        self._json({"url": f"{self.server.endpoint}/{name}", "name": name, "id": "1"})

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.server.blobs:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"}}}

    def _commit(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        self._may_write()
        files = dict(repository.commits[self._sha(repository, branch)])
        message = ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = (base64.b64decode(value["content"]), False)
                case "lfsFile":
                    files[value["path"]] = (self.server.blobs[value["oid"]], True)
                case "deletedFile":
                    del files[value["path"]]
        sha = repository.commit(branch, files, message)
        url = f"{self.server.endpoint}/{name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url})

    def _tell(self, name: str, rest: list[str]) -> None:
        repository = self._repository(name)
        if rest[:1] == ["tree"]:
            files = repository.commits[self._sha(repository, rest[1])]
            self._json([_entry(path, content, lfs) for path, (content, lfs) in sorted(files.items())])
            return
        sha = self._sha(repository, rest[1] if rest[:1] == ["revision"] else "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        self._json({"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        sha = self._sha(repository, revision)
        if path not in repository.commits[sha]:
            raise _Answer(404, "EntryNotFound", "Entry not found")
        content, lfs = repository.commits[sha][path]
        if not lfs:
            self._send(content, headers={"X-Repo-Commit": sha, "ETag": f'"{_blob_id(content)}"'})
            return
        oid = hashlib.sha256(content).hexdigest()
        elsewhere = self.server.endpoint.replace("127.0.0.1", "localhost")  # large files are on another host
        headers = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self._send(b"", 302, {**headers, "Location": f"{elsewhere}/cdn/{oid}"})


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()


def _entry(path: str, content: bytes, lfs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob_id(content)}
    if lfs:
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry
