"""The service: many clients, whatever they send, and its end."""
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient
from test_export import LABELS, saved

from insight_nb.models.tagging import TaggingTask
from insight_nb.models.tasks import ClassificationTask, MultiLabelTask, RegressionTask
from insight_nb.ship.bundle import load_bundle
from insight_nb.ship.predict import predict
from insight_nb.ship.serve import ServeOptions, Service, make_app

COMMAND = [sys.executable, "-c", "from insight_nb.cli import main; raise SystemExit(main())"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("served") / "b", ClassificationTask(LABELS))


def test_no_request_of_the_description_is_an_error_of_the_service(folder):
    limits = ServeOptions(max_texts=50, max_body_mb=.1)
    app = make_app(Service([folder], limits, "cpu"))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    counts = {}
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=300 if operation.path == "/predict" else 20, deadline=None,
                  suppress_health_check=list(HealthCheck), database=None, derandomize=True)
        def ask(case):
            status = case.call().status_code
            assert status < 500
            counts[status] = counts.get(status, 0) + 1

        ask()
    assert counts[200] > 50 and sum(counts.values()) >= 300


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


def post(port, content, timeout=30):
    address, body = f"http://127.0.0.1:{port}/predict", json.dumps(content).encode()
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.loads(reply.read())


def start(*words):
    process = subprocess.Popen([*COMMAND, "serve", *map(str, words)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, "CI": "1"})
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line, process.stderr.read()
    return process, int(line.rsplit(":", 1)[1])


def test_on_sigterm_it_answers_what_it_holds(folder):
    process, port = start(folder, "--port", "0")
    deadline = time.time() + 20
    while True:
        try:
            assert len(post(port, {"text": "a"})["predictions"]) == 1
            break
        except urllib.error.URLError:
            assert time.time() < deadline
            time.sleep(.1)
    taken = subprocess.run([*COMMAND, "serve", str(folder), "--port", str(port)], text=True,
                           capture_output=True)
    assert taken.returncode == 2 and "choose another --port" in taken.stderr
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
