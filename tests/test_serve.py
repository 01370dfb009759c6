"""The service: many clients, whatever they send, and its end."""
import asyncio
import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from starlette.responses import HTMLResponse
from starlette.testclient import TestClient
from test_browser import CHROMIUM, FLAGS
from test_export import LABELS, saved

from insight_nb.base.tensors import set_seed
from insight_nb.cli import main
from insight_nb.models.tagging import TaggingTask
from insight_nb.models.tasks import ClassificationTask, MultiLabelTask, RegressionTask
from insight_nb.ship.bundle import load_bundle
from insight_nb.ship.predict import predict, predict_frame
from insight_nb.ship.serve import (
    Batcher,
    ServeOptions,
    Service,
    Unavailable,
    answer_rows,
    make_app,
    make_page,
    open_socket,
)

COMMAND = [sys.executable, "-c", "from insight_nb.cli import main; raise SystemExit(main())"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("served") / "b", ClassificationTask(LABELS))


POSTS = ("/predict", "/feedback")


def test_no_request_of_the_description_is_an_error_of_the_service(folder, tmp_path):
    limits = ServeOptions(max_texts=50, max_body_mb=.1, feedback=str(tmp_path / "answers.db"))
    app = make_app(Service([folder], limits, "cpu"))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    counts = {}
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=200 if operation.path in POSTS else 20, deadline=None,
                  suppress_health_check=list(HealthCheck), database=None, derandomize=True)
        def ask(case):
            status = case.call().status_code
            assert status < 500
            counts[status] = counts.get(status, 0) + 1

        ask()
    assert counts[200] > 20 and counts[400] > 20 and sum(counts.values()) >= 400


def test_no_bytes_are_an_error_of_the_service(folder):
    draw = np.random.default_rng(0)
    with TestClient(make_app(Service([folder], ServeOptions(max_texts=9), "cpu"))) as client:
        good = json.dumps({"texts": ["好", None, "<b>", "😀"], "probabilities": True}).encode()
        for i in range(700):
            body = bytearray(good if i % 2 else draw.bytes(int(draw.integers(0, 200))))
            for _ in range(i % 5):
                if body:
                    body[int(draw.integers(len(body)))] = int(draw.integers(256))
            assert client.post("/predict", content=bytes(body)).status_code in (200, 400)
        odd = [b'{"text": "\\ud800"}', b'{"text": "\\u0000"}', b'{"texts": [1e999, -0.0, true]}',
               b'{"texts": [[["a"]], {"a": 1}, []]}', b'{"texts": []}', b"\xef\xbb\xbf{}",
               json.dumps({"text": "a" * 10**6}).encode(), b'{"text": 1' + b"0" * 9999 + b"}"]
        for body in odd:
            reply = client.post("/predict", content=body)
            assert reply.status_code in (200, 400) and json.loads(reply.text), body[:40]
        assert client.post("/predict", json={"texts": ["a"] * 10}).status_code == 413
        assert client.get("/predict").status_code == 405
        assert "5" not in {line.split('"')[1][0] for line in client.get("/metrics").text.split("\n")
                           if line.startswith("insight_nb_requests_total{")}


@pytest.mark.parametrize("task, facts, rows", [
    (ClassificationTask(LABELS), {}, ["a", "b c"]), (RegressionTask(mean=3., scale=2.), {}, ["a"]),
    (MultiLabelTask(LABELS), {}, ["a", "很好"]), (ClassificationTask("ab"), {"second": "second"},
                                                [["a", "b"], ["c", "d e"]]),
    (TaggingTask(("O", "B-X", "I-X")), {"fine": True}, ["Anna sings 很好"])])
def test_the_service_answers_as_predict_does(task, facts, rows, tmp_path):
    place = saved(tmp_path / "b", task, **facts)
    bundle = load_bundle(place, device="cpu")
    texts = [tuple(r) for r in rows] if "second" in facts else rows
    want = predict(bundle, texts)[0]
    with TestClient(make_app(Service([place], device="cpu"))) as client:
        found = client.post("/predict", json={"texts": rows}).json()["predictions"]
    got = [a["prediction"] for a in found]
    assert got == [list(w) if isinstance(w, tuple) else w for w in want]


def post(port, content, timeout=30, token=None):
    address, body = f"http://127.0.0.1:{port}/predict", json.dumps(content).encode()
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(address, body, headers)
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.loads(reply.read())


def start(*words, **environment):
    process = subprocess.Popen([*COMMAND, "serve", *map(str, words)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "CI": "1", **environment})
    line = process.stdout.readline()
    assert " on http://" in line, process.stderr.read()
    return process, int(line.rsplit(":", 1)[1])


@pytest.mark.slow
def test_on_sigterm_it_answers_what_it_holds(folder, capsys):
    process, port = start(folder, "--port", "0")
    deadline = time.time() + 20
    while True:
        try:
            assert len(post(port, {"text": "a"})["predictions"]) == 1
            break
        except urllib.error.URLError:
            assert time.time() < deadline
            time.sleep(.1)
    assert main(["serve", str(folder), "--port", str(port)]) == 2
    assert "choose another --port" in capsys.readouterr().err
    found = []
    many = [threading.Thread(target=lambda: found.append(
        post(port, {"texts": ["some text " * 30] * 1000}))) for _ in range(3)]
    for thread in many:
        thread.start()
    time.sleep(.5)
    process.send_signal(signal.SIGTERM)
    for thread in many:
        thread.join(60)
    process.wait(60)
    assert [len(f["predictions"]) for f in found] == [1000] * 3
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 1):
        pass


def test_too_much_is_refused_at_once(folder):
    limits = ServeOptions(max_texts=100, max_waiting=120)
    service = Service([folder], limits, "cpu")
    slow = service.batchers["b"].call
    service.batchers["b"].call = lambda rows: (time.sleep(.2), slow(rows))[1]
    with TestClient(make_app(service)) as client:
        codes = []
        threads = [threading.Thread(target=lambda: codes.append(
            client.post("/predict", json={"texts": ["a"] * 60}).status_code)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) == {200, 429} and codes.count(200) >= 2
        assert client.post("/predict", json={"text": "a"}).status_code == 200


def test_a_metric_that_is_no_number_breaks_nothing(tmp_path):
    nan = {"mae": {"value": float("nan"), "low": 0., "high": 1., "n": 1}}
    place = saved(tmp_path / "b", RegressionTask(mean=3., scale=2.), metrics=nan)
    with TestClient(make_app(Service([place], device="cpu"))) as client:
        found = client.get("/info").json()["models"][0]["metrics"]["mae"]
    assert found["value"] is None and found["high"] == 1


def test_adapters_on_one_encoder_share_it(tmp_path):
    from insight_nb.models.adapters import add_adapter
    from insight_nb.models.backbone import load_backbone
    from insight_nb.models.tasks import Model
    from insight_nb.ship.bundle import save_bundle
    for name, method in (("one", "lora"), ("two", "bitfit")):
        backbone = load_backbone()
        add_adapter(backbone, method)
        save_bundle(tmp_path / name, Model(backbone, ClassificationTask("ab")).eval(), 32)
    service = Service([tmp_path / "one", tmp_path / "two"], device="cpu")
    one, two = service.bundles.values()
    assert one.model.backbone is two.model.backbone
    with TestClient(make_app(service)) as client:
        for name, bundle in service.bundles.items():
            found = client.post("/predict", json={"text": "a day", "model": name}).json()
            want = predict(load_bundle(tmp_path / name, device="cpu"), ["a day"])[1].max()
            assert abs(found["predictions"][0]["probability"] - want) < 1e-6


def test_a_large_request_is_answered_in_pieces_and_nobody_waits_for_all_of_it(folder):
    limits = ServeOptions(batch_texts=16)
    service = Service([folder], limits, "cpu")
    batcher, sizes, order = service.batchers["b"], [], []
    answer = batcher.call
    batcher.call = lambda rows: (sizes.append(len(rows)), time.sleep(.02), answer(rows))[2]
    texts = [f"text {i}" for i in range(400)]

    async def asks():
        large = [asyncio.ensure_future(service.predict(texts, None, True)) for _ in range(2)]
        await asyncio.sleep(.05)
        small = [asyncio.ensure_future(service.predict([t], None, True)) for t in texts[:3]]
        for name, task in [*(("small", t) for t in small), *(("large", t) for t in large)]:
            task.add_done_callback(lambda _, name=name: order.append(name))
        return await asyncio.gather(*small, *large)

    *small, one, two = asyncio.run(asks())
    want = predict(load_bundle(folder, device="cpu"), texts)[1]
    for found in (one, two):
        got = np.array([list(a["probabilities"].values()) for a in found])
        assert got.shape == want.shape and np.abs(got - want).max() < 1e-6
    assert [s[0]["prediction"] for s in small] == [a["prediction"] for a in one[:3]]
    assert max(sizes) <= 16 and sum(sizes) == 803
    assert order == ["small"] * 3 + ["large"] * 2


def test_who_asks_for_little_gets_an_equal_part():
    served = []

    async def asks():
        batcher = Batcher(lambda rows: (served.append(list(rows)), rows)[1], batch_texts=8)
        found = await asyncio.gather(*(batcher.ask([name] * n) for name, n in
                                       (("a", 30), ("b", 2), ("c", 30), ("d", 0))))
        many = await asyncio.gather(*(batcher.ask([i] * 2) for i in range(20)))
        batcher.close()
        return found, many

    found, many = asyncio.run(asks())
    assert [len(f) for f in found] == [30, 2, 30, 0] and many == [[i] * 2 for i in range(20)]
    first = served[0]
    assert len(first) == 8 and first.count("b") == 2 and abs(first.count("a") - 3) <= 1
    assert max(map(len, served)) <= 8


@pytest.mark.parametrize("bad", [[3], [0, 7], list(range(8)), []])
def test_only_the_rows_that_fail_have_the_error(bad):
    def call(rows):
        if any(row in bad for row in rows):
            raise RuntimeError("cannot read this one")
        return [{"prediction": row, "error": None} for row in rows]

    async def asks():
        batcher = Batcher(call)
        parts = await asyncio.gather(batcher.ask([0, 1, 2, 3]), batcher.ask([4, 5, 6, 7]))
        batcher.close()
        return parts[0] + parts[1]

    found = asyncio.run(asks())
    assert [i for i, a in enumerate(found) if a["error"]] == bad
    assert all("cannot read this one" in found[i]["error"] for i in bad)
    assert [a["prediction"] for a in found] == [None if i in bad else i for i in range(8)]


def test_a_model_that_loses_rows_is_an_error_of_those_rows():
    async def asks():
        batcher = Batcher(lambda rows: [{"error": None} for row in rows if row != "lost"])
        return await batcher.ask(["a", "lost", "b"])

    found = asyncio.run(asks())
    assert [bool(a["error"]) for a in found] == [False, True, False]


class Ended(BaseException):
    "What ends a thread or a loop, and no model's error."


def test_nobody_waits_for_what_has_ended():
    def call(rows):
        time.sleep(.05)
        if "end" in rows:
            raise Ended
        return rows

    async def asks():
        batcher = Batcher(call, batch_texts=1)
        first = await asyncio.gather(batcher.ask(["end"]), batcher.ask(["a"]),
                                     return_exceptions=True)
        again = await batcher.ask(["b"])
        waits = [asyncio.ensure_future(batcher.ask([row])) for row in "cd"]
        await asyncio.sleep(.01)
        batcher.close()
        last = await asyncio.gather(*waits, batcher.ask(["e"]), return_exceptions=True)
        assert batcher.waiting == 0
        return first, again, last

    first, again, last = asyncio.run(asyncio.wait_for(asks(), 20))
    assert [type(f) for f in first] == [Unavailable] * 2 and again == ["b"]
    assert [type(f) for f in last] == [Unavailable] * 3


def test_a_service_that_has_closed_answers_503(folder):
    service = Service([folder], device="cpu")
    with TestClient(make_app(service)) as client:
        assert client.post("/predict", json={"text": "a"}).status_code == 200
        service.batchers["b"].close()
        reply = client.post("/predict", json={"text": "a"})
        assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
        assert "the service ends" in reply.json()["detail"]
        assert 'requests_total{status="503"} 1.0' in client.get("/metrics").text


OPEN = {"/", "/health"}


@pytest.mark.parametrize("sent, knows", [
    (None, False), ("Bearer ", False), ("Bearer wrong", False), ("secret", False),
    ("Basic secret", False), ("Bearer secret2", False), ("Bearer secret", True)])
def test_a_token_closes_all_but_health_and_the_page(folder, sent, knows):
    app = make_app(Service([folder], ServeOptions(token="secret"), "cpu"))
    headers = {"authorization": sent} if sent else {}
    with TestClient(app, headers=headers) as client:
        paths = [route.path for route in app.routes]
        assert set(paths) == OPEN | {"/info", "/metrics", "/predict", "/openapi.json"}
        for path in set(paths) - {"/predict"}:
            reply = client.get(path)
            assert reply.status_code == (200 if knows or path in OPEN else 401), path
            assert "secret" not in reply.text
        assert client.post("/predict", json={"text": "a"}).status_code == (200 if knows else 401)
        assert ("models" in client.get("/health").json()) == knows
        assert "Models" not in client.get("/").text and "password" in client.get("/").text


@pytest.mark.slow
def test_the_token_comes_from_the_environment_and_an_empty_one_is_refused(
        folder, monkeypatch, capsys):
    monkeypatch.setenv("INSIGHT_NB_TOKEN", "")
    assert main(["serve", str(folder), "--port", "0"]) == 2
    assert "the token is empty" in capsys.readouterr().err
    process, port = start(folder, "--port", "0", "--host", "0.0.0.0", INSIGHT_NB_TOKEN="hidden")
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(port, {"text": "a"})
        assert refused.value.code == 401
        assert len(post(port, {"text": "a"}, token="hidden")["predictions"]) == 1
        words = Path(f"/proc/{process.pid}/cmdline")
        assert not words.exists() or b"hidden" not in words.read_bytes()
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert "warning" not in said


@pytest.mark.parametrize("host, warned", [
    ("0.0.0.0", True), pytest.param("127.0.0.1", False, marks=pytest.mark.slow),
    pytest.param("localhost", False, marks=pytest.mark.slow)])
def test_an_open_address_without_a_token_is_warned_of(folder, host, warned):
    process, port = start(folder, "--port", "0", "--host", host)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert ("warning: whoever reaches 0.0.0.0" in said) == warned


def test_the_log_has_each_row_and_only_when_told(folder, tmp_path, capfd):
    rows, log = ["a secret text", None, "很好\n<b>"], tmp_path / "log.jsonl"
    for options in (ServeOptions(), ServeOptions(log=str(log))):
        with TestClient(make_app(Service([folder], options, "cpu"))) as client:
            found = client.post("/predict", json={"texts": rows}).json()["predictions"]
            assert ("not kept in a log" in client.get("/").text) == (options.log is None)
        assert log.exists() == (options.log is not None)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["text"] for line in lines] == rows and {line["model"] for line in lines} == {"b"}
    assert [line["prediction"] for line in lines] == [a["prediction"] for a in found]
    assert lines[1]["error"] == "missing text" and oct(log.stat().st_mode)[-3:] == "600"
    assert "a secret text" not in "".join(capfd.readouterr())
    assert main(["serve", str(folder), "--log", str(tmp_path / "no" / "log")]) == 2
    assert "can't be written" in capfd.readouterr().err


def test_each_limit_is_told_with_its_own_status(folder):
    limits = ServeOptions(max_texts=3, max_characters=9, max_body_mb=.001)
    with TestClient(make_app(Service([folder], limits, "cpu"))) as client:
        for body, status, said in ((["a"] * 4, 413, "send at most 3 at a time"),
                                   (["a" * 2000], 413, "larger than 0.001 MB")):
            reply = client.post("/predict", json={"texts": body})
            assert reply.status_code == status and said in reply.json()["detail"]
        texts = ["4 texts in one request", "a", "in one request"] # what is sent decides nothing
        reply = client.post("/predict", json={"texts": texts, "model": "in one request"})
        assert reply.status_code == 400 and "there is no model" in reply.json()["detail"]
        found = client.post("/predict", json={"texts": texts}).json()["predictions"]
        assert [a["error"] for a in found] == ["longer than 9 characters", None,
                                               "longer than 9 characters"]

        def endless():
            for _ in range(50):
                yield b" " * 100
        assert client.post("/predict", content=endless()).status_code == 413
        assert client.get("/info").json()["limits"]["max_texts"] == 3


EVIL = "X<img src=x onerror=document.title='evil'>"
DRIVER = """<script>window.onload = async () => {
  const field = document.querySelector("input"); if (field) field.value = "secret";
  document.querySelector("textarea").value = "<b>Anna</b> 很好 😀 <i>x</i>";
  document.forms[0].requestSubmit();
};</script>"""


def drawn_page(app, path, tmp_path): # what a browser makes of a page
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    bound = open_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        address = f"http://127.0.0.1:{bound.getsockname()[1]}{path}"
        return subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}",
                               "--virtual-time-budget=8000", "--dump-dom", address],
                              capture_output=True, text=True, timeout=120).stdout
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_a_browser_draws_spans_and_no_markup_of_others(tmp_path):
    task = TaggingTask(("O", f"B-{EVIL}", f"I-{EVIL}"))
    place = saved(tmp_path / "t", task, fine=True)
    service = Service([place], ServeOptions(token="secret"), "cpu")
    text = "<b>Anna</b> 很好 😀 <i>x</i>"
    spans = [dict(start=3, end=7, label=EVIL, probability=.9),
             dict(start=15, end=16, label="好", probability=.8)]
    service.batchers["t"].call = lambda rows: [
        {"prediction": spans, "probability": .8, "error": None} for _ in rows]
    app = make_app(service)

    async def driven(): # the page, and a hand that writes and clicks
        return HTMLResponse(make_page(["t"], service.options) + DRIVER)
    app.add_api_route("/driven", driven)
    page = drawn_page(app, "/driven", tmp_path)
    drawn = page.split('id="out"')[1].split("</p>")[0]
    marks = re.findall(r'<mark data-label="([^"]*)">(.*?)</mark>', drawn)
    assert [html.unescape(m) for _, m in marks] == ["Anna", text[15]]
    assert [html.unescape(label) for label, _ in marks] == [EVIL, "好"]
    assert re.sub(r"<[^>]*>", "", drawn.split(">", 1)[1]) == html.escape(text, quote=False)
    assert "<b>" not in drawn and "<title>insight_nb</title>" in page


PAIR_DRIVER = """<script>window.onload = async () => {
  await know(); pick.value = "two"; pick.onchange();
  document.querySelector("textarea").value = "first"; second.value = "很好";
  document.forms[0].requestSubmit();
};</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_the_page_chooses_a_model_and_sends_a_pair(tmp_path):
    task = ClassificationTask(("no", "yes"))
    places = [saved(tmp_path / "one", task), saved(tmp_path / "two", task, second="other")]
    service, asked = Service(places, device="cpu"), []

    def answer(rows):
        asked.extend(rows)
        return [{"prediction": "yes", "probability": .9, "error": None} for _ in rows]
    service.batchers["two"].call = answer
    app = make_app(service)

    async def driven():
        return HTMLResponse(make_page(["one", "two"], service.options) + PAIR_DRIVER)
    app.add_api_route("/driven", driven)
    page = drawn_page(app, "/driven", tmp_path)
    assert asked == [["first", "很好"]]
    assert page.split('id="out"')[1].split("</p>")[0].endswith(">yes")


def test_several_bundles_are_asked_by_name_and_share_only_their_own_encoder(tmp_path):
    from insight_nb.models.adapters import add_adapter
    from insight_nb.models.backbone import load_backbone
    from insight_nb.models.tasks import Model
    from insight_nb.ship.bundle import save_bundle
    whole = saved(tmp_path / "whole", ClassificationTask(LABELS))
    for i, name in enumerate(("one", "two")):
        backbone = load_backbone()
        add_adapter(backbone, "lora")
        set_seed(i)
        save_bundle(tmp_path / name, Model(backbone, ClassificationTask("ab")).eval(), 32)
    places = [whole, tmp_path / "one", tmp_path / "two", tmp_path / "one"]
    log = tmp_path / "log"
    service = Service(places, ServeOptions(log=str(log)), "cpu")
    assert list(service.bundles) == ["whole", "one", "two", "one-2"]
    encoders = [id(b.model.backbone) for b in service.bundles.values()]
    assert len(set(encoders)) == 2 and encoders[1] == encoders[2] == encoders[3]
    texts, answers = ["a day", "很好"], {}
    with TestClient(make_app(service)) as client:
        for _ in range(2): # in turn: what one computes changes nothing of another
            for name, place in zip(service.bundles, places):
                asked = {"texts": texts, "model": name, "probabilities": True}
                found = client.post("/predict", json=asked).json()
                got = np.array([list(a["probabilities"].values()) for a in found["predictions"]])
                want = predict(load_bundle(place, device="cpu"), texts)[1]
                assert found["model"] == name and got.shape == want.shape
                assert np.abs(got - want).max() < 1e-6
                answers[name] = got
        assert np.abs(answers["one"] - answers["two"]).max() > 1e-4
        assert client.post("/predict", json={"text": "a", "model": "three"}).status_code == 400
        assert len(client.get("/info").json()["models"]) == 4
    lines = [json.loads(line)["model"] for line in log.read_text().splitlines()]
    assert sorted(set(lines)) == sorted(service.bundles) and len(lines) == 16


def test_several_labels_have_the_probability_that_a_table_has(tmp_path):
    folder = saved(tmp_path / "m", MultiLabelTask(("a", "b", "c"), thresholds=[.4, .6, .99]))
    bundle = load_bundle(folder, device="cpu")
    texts = ["late", "很好", "a parcel"]
    table = predict_frame(bundle, pd.DataFrame({"text": texts}))
    rows = answer_rows(bundle, texts)
    assert table["prediction"].tolist() == [r["prediction"] for r in rows]
    assert table["probability"].tolist() == pytest.approx([r["probability"] for r in rows])
