"""A small server on this machine that answers as the hub of models does, and errs as told."""

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_name(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class HubServer:
    "Folders by the id under which they are found."

    models: dict  # "owner/name" -> folder
    gated: set = field(default_factory=set)  # ids
    private: set = field(default_factory=set)
    branches: tuple = ("main",)
    slow: dict = field(default_factory=dict)  # file -> seconds for each of its pieces
    forged: dict = field(default_factory=dict)  # file -> what is given in its place
    endless: set = field(default_factory=set)  # files that go on and on
    cut: set = field(default_factory=set)  # files of which half comes
    fail: int = 0  # a status for everything but the first page
    large: set = field(default_factory=set)  # files that are said to have 60 GB
    requests: list = field(default_factory=list, init=False)

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

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


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_): pass

        def do_HEAD(self): self.answer("HEAD")

        def do_GET(self): self.answer("GET")

        def say(self, status, content=b"", **headers):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.send_header("Content-Length", len(content))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def answer(self, method):
            parts = urlsplit(self.path)
            path = unquote(parts.path).strip("/")
            hub.requests.append((method, path))
            if not path:
                return self.say(200)
            if hub.fail:
                return self.say(hub.fail)
            if path.startswith("api/models/"):
                name, _, branch = path.removeprefix("api/models/").partition("/revision/")
                if name not in hub.models or name in hub.private:
                    return self.say(401, X_Error_Code="RepoNotFound")
                if branch and branch not in (*hub.branches, COMMIT):
                    return self.say(404, X_Error_Code="RevisionNotFound")
                blobs = "blobs" in parse_qs(parts.query)
                return self.say(200, json.dumps(hub.info(name, blobs)).encode(),
                                Content_Type="application/json")
            self.give(*path.split("/resolve/"))

        def give(self, name, rest):
            if name in hub.gated:
                return self.say(403, X_Error_Code="GatedRepo")
            branch, file = rest.split("/", 1)
            content = hub.files(name)[file].read_bytes()
            content = hub.forged.get(file, content)
            about = {"X_Repo_Commit": COMMIT, "ETag": f'"{git_name(content)}"'}
            if file in hub.endless:
                return self.go_on(about)
            if self.command == "HEAD" or file not in (*hub.slow, *hub.cut):
                return self.say(200, content, **about)
            self.send_response(200)
            self.send_header("Content-Length", len(content))
            self.end_headers()
            if file in hub.cut:
                self.wfile.write(content[:len(content) // 2])
                self.close_connection = True
                return
            for at in range(0, len(content), 1000):
                self.wfile.write(content[at:at + 1000])
                self.wfile.flush()
                time.sleep(hub.slow[file])

        def go_on(self, about):
            self.send_response(200)
            for key, value in about.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            piece = b"10000\r\n" + bytes(65536) + b"\r\n"
            while self.command == "GET":
                try:
                    self.wfile.write(piece)
                except OSError:
                    return

    return Handler
