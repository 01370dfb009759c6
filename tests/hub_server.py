"""A small server on this machine that answers as the hub of models does, and errs as told."""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Loopback

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_name(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class HubServer(Loopback):
    "Folders by the id under which they are found."

    models: dict  # "owner/name" -> folder
    gated: set = field(default_factory=set)  # ids
    private: set = field(default_factory=set)
    branches: tuple = ("main",)
    slow: dict = field(default_factory=dict)  # file -> seconds for each of its pieces
    forged: dict = field(default_factory=dict)  # file -> what is given in its place
    endless: set = field(default_factory=set)  # files that go on and on
    fail: int = 0  # a status for everything but the first page
    large: set = field(default_factory=set)  # files that are said to have 60 GB
    requests: list = field(default_factory=list, init=False)

    def handler(self):
        return type("Bound", (Handler,), {"hub": self})

    def files(self, name):
        folder = Path(self.models[name])
        return {
            p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()
        }

    def given(self):
        "The files that were asked for, in order."
        return [p.split("/resolve/")[1].split("/", 1)[1] for m, p in self.requests
                if m == "GET" and "/resolve/" in p]

    def info(self, name, blobs):
        siblings = []
        for file, path in self.files(name).items():
            content = path.read_bytes()
            size = 60_000_000_000 if file in self.large else len(content)
            about = {"rfilename": file}
            if blobs:
                about |= {"size": size, "blobId": git_name(content)}
            if blobs and file.endswith(".safetensors"):
                hashed = hashlib.sha256(content).hexdigest()
                about["lfs"] = {"size": size, "sha256": hashed, "pointerSize": 134}
            siblings.append(about)
        return {"id": name, "modelId": name, "sha": COMMIT, "private": name in self.private,
                "gated": "manual" if name in self.gated else False, "siblings": siblings,
                "tags": [], "downloads": 0, "likes": 0, "cardData": {"license": "mit"}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_): pass

    def do_HEAD(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append((self.command, path))
        if not path:
            self.say(200)
        elif self.hub.fail:
            self.say(self.hub.fail)
        elif path.startswith("api/models/"):
            self.tell(*path.removeprefix("api/models/").partition("/revision/")[::2])
        elif "/resolve/" in path:
            self.give(*path.split("/resolve/"))
        else:
            self.say(404)

    do_GET = do_HEAD

    def start(self, status, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def say(self, status, content=b"", **headers):
        self.start(status, headers | {"Content-Length": len(content)})
        if self.command == "GET":
            self.wfile.write(content)

    def tell(self, name, branch): # about a model
        if name not in self.hub.models or name in self.hub.private:
            return self.say(401, X_Error_Code="RepoNotFound")
        if branch and branch not in (*self.hub.branches, COMMIT):
            return self.say(404, X_Error_Code="RevisionNotFound")
        about = self.hub.info(name, "blobs" in parse_qs(urlsplit(self.path).query))
        self.say(200, json.dumps(about).encode(), Content_Type="application/json")

    def give(self, name, rest): # a file
        hub, file = self.hub, rest.split("/", 1)[1]
        if name in hub.gated:
            return self.say(403, X_Error_Code="GatedRepo")
        content = hub.forged.get(file, hub.files(name)[file].read_bytes())
        about = {"X_Repo_Commit": COMMIT, "ETag": f'"{git_name(content)}"'}
        if file in hub.endless:
            self.start(200, about | {"Transfer_Encoding": "chunked"})
            self.go_on()
        elif file in hub.slow and self.command == "GET":
            self.start(200, about | {"Content-Length": len(content)})
            with suppress(OSError):  # who asked has gone
                for at in range(0, len(content), 1000):
                    self.wfile.write(content[at:at + 1000])
                    time.sleep(hub.slow.get(file, 0))
        else:
            self.say(200, content, **about)

    def go_on(self):
        piece = b"10000\r\n" + bytes(65536) + b"\r\n"
        with suppress(OSError):
            while self.command == "GET":
                self.wfile.write(piece)
