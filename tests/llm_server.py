"""A small server on this machine that answers as a language model does, and errs as told."""

import hashlib
import json
import math
import re
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from loopback import Loopback


def draw(text, name, seed=0):
    "A number from 0 to 1 that depends on the text alone, and on what it decides."
    found = hashlib.sha256(f"{seed} {name} {text}".encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(found[:8], "big") / 2**64


@dataclass
class LLMServer(Loopback):
    "What it answers: shares of the texts, decided by the text alone."

    path = "/v1"

    truth: dict  # text as it arrives -> label
    accuracy: float = 1.0
    at_random: bool = False  # any label, whatever the text
    first: float = 0.0  # share of the texts that get the first label of the list
    refuse: float = 0.0
    invent: float = 0.0  # for good: the repair invents again
    stumble: float = 0.0  # the first answer is no label, the repair is
    empty: float = 0.0
    logprobs: bool = True  # otherwise it turns them down with 400
    schema: bool = True
    faults: list = field(default_factory=list)  # of the first requests: "429", "html", ...
    delay: float = 0.0  # seconds
    key: str = ""  # that is wanted
    writes: object = None  # label, examples, new texts wanted, seed -> the answer
    requests: list = field(default_factory=list, init=False)
    given: list = field(default_factory=list, init=False)  # tokens read and written

    def handler(self):
        return handler(self)

    def label(self, text, labels):
        "The label, and where it comes from."
        if draw(text, "first") < self.first:
            return labels[0]
        names = sorted(labels)
        right = self.truth.get(text)
        if self.at_random or right is None:
            return names[int(draw(text, "any") * len(names))]
        if draw(text, "right") < self.accuracy:
            return right
        others = [n for n in names if n != right]
        return others[int(draw(text, "other") * len(others))]

    def kind(self, text):
        "refused, invented, empty, stumbled or answered."
        at = draw(text, "kind")
        shares = ("refuse", "invent", "empty", "stumble")
        for name in shares:
            at -= getattr(self, name)
            if at < 0:
                return name
        return "answer"

    def reword(self, text):
        "Another wording, with all facts and in the same script."
        return f"{text}，没错" if re.search("[\u4e00-\u9fff]", text) else f"Well, {text}"

    def new_texts(self, label, examples, n, seed):
        "New texts: words of the examples, and words that nobody has seen."
        words = [w for text in examples for w in text.split() if "[" not in w]
        out = []
        for i in range(n):
            key = f"{label} {examples} {seed} {i}"
            old = [words[int(draw(key, k) * len(words))] for k in range(4)]
            new = [f"{int(draw(key, k) * 2**40):x}" for k in range(4, 7)]
            out.append(" ".join([*old, *new]))
        return out

    def reply(self, asked):
        prompt = asked["messages"][1]["content"]
        examples = [json.loads(t) for t in re.findall(r"(?m)^Text: (.*)$", prompt)]
        text = examples[-1]
        labels = re.findall(r"(?m)^- ([^:\n]*)", prompt.split("\n\n")[0])
        kind, again = self.kind(text), len(asked["messages"]) > 2
        reworded = "In other words:" in prompt
        wanted = re.search(r"(?m)^New texts of this label, (\d+) of them", prompt)
        if wanted:
            write = self.writes or (lambda *given: json.dumps(self.new_texts(*given)))
            said = write(labels[0], examples, int(wanted[1]), asked.get("seed"))
        else:
            said = self.reword(text) if reworded else self.label(text, labels)
        if kind == "refuse":
            said = "I'm sorry, I can't help with that."
        elif kind == "empty":
            said = ""
        elif kind == "invent" or kind == "stumble" and not again:
            said = "something else entirely"
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        if asked.get("logprobs"):
            others = [{"token": n, "logprob": math.log(0.1)} for n in labels if n != said][:1]
            token = {"token": said, "logprob": math.log(0.8), "top_logprobs": others}
            choice["logprobs"] = {"content": [token]}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 3}
        self.given.append(tuple(usage.values()))
        return 200, {"choices": [choice], "usage": usage}

    def answer(self, asked, headers):
        "Status, body and headers."
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": {"message": f"wrong key {headers.get('Authorization')}"}}, {}
        self.requests.append(asked)
        fault = self.faults.pop(0) if self.faults else ""
        time.sleep(self.delay)
        if fault == "429":
            return 429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}
        if fault == "503":
            return 503, "", {}
        if fault == "broken":
            return 200, '{"choices": [{"mess', {}
        if fault == "html":
            return 200, "<!doctype html><title>Welcome</title>", {}
        for name, knows in (("logprobs", self.logprobs), ("response_format", self.schema)):
            if name in asked and not knows:
                return 400, {"error": {"message": f"unknown field: {name}"}}, {}
        return *self.reply(asked), {}


def handler(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status = 200
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                status = 401
            page = server.faults[:1] == ["html"]
            self.send(status, "<html>" if page else {"data": []}, {})

        def do_POST(self):
            size = int(self.headers["Content-Length"])
            asked = json.loads(self.rfile.read(size))
            self.send(*server.answer(asked, self.headers))

        def send(self, status, said, more):
            body = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler
