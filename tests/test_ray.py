"""Search and scoring on Ray: the same as in one process, also when a worker is killed. On demand,
where the extra `ray` is installed."""

import json
import os
import signal
import threading
import time

import pandas as pd
import psutil
import pytest
from conftest import rows_of, tiny_encoder
from insight_nb.base.core import InputError
from insight_nb.cli import main
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.ship.bundle import save_bundle
from insight_nb.train.search import TrialStudy, search

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    "One Ray for all tests, so that each need not start it. Its workers find this file, too."
    os.environ["PYTHONPATH"] = f"{os.path.dirname(__file__)}:{os.environ.get('PYTHONPATH', '')}"
    from insight_nb.train.cluster import open_ray
    with open_ray() as ray:
        yield ray


def curve(settings, report):
    for share in (0.25, 0.5, 0.75):
        report(share, share - (settings["x"] - 0.3) ** 2)
    return 1 - (settings["x"] - 0.3) ** 2


def fails(settings, report):
    if settings["x"] > 0:
        raise InputError("too large")
    return settings["x"]


def dies_once(marker, settings, report):
    try:
        open(marker, "x").close()
    except FileExistsError:
        return curve(settings, report)
    os.kill(os.getpid(), signal.SIGKILL)


SPACE = {"x": (-2.0, 2.0), "n": (1, 1000)}


def trials(found):
    return [(t.settings, t.score, t.state) for t in found.trials]


def test_a_study_is_that_of_one_process(cluster):
    from insight_nb.train.ray_search import choose_engine
    many = choose_engine("ray", workers=2)
    alone = search(curve, TrialStudy(SPACE, 6, seed=3))
    assert trials(many(curve, TrialStudy(SPACE, 6, seed=3))) == trials(alone)
    failed = many(fails, TrialStudy(SPACE, 6, seed=3))
    assert trials(failed) == trials(search(fails, TrialStudy(SPACE, 6, seed=3)))
    assert any(t.why == "InputError: too large" for t in failed.trials)


def test_a_dead_worker_of_a_search_is_replaced(cluster, tmp_path):
    from functools import partial

    from insight_nb.train.ray_search import ray_search
    found = ray_search(partial(dies_once, str(tmp_path / "died")), TrialStudy(SPACE, 4), workers=2)
    assert trials(found) == trials(search(curve, TrialStudy(SPACE, 4)))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "A bundle and twelve files of three formats."
    folder = tmp_path_factory.mktemp("shop")
    model = Model(tiny_encoder(folder / "tiny"), ClassificationTask(["late", "early", "好"])).eval()
    save_bundle(folder / "bundle", model, max_length=32)
    (folder / "in").mkdir()
    rows = pd.DataFrame(rows_of(6000)).assign(n=range(6000))
    rows.loc[7, "text"] = ""
    for i in range(12):
        part, file = rows[500 * i : 500 * (i + 1)], folder / "in" / f"{i:02}"
        if i % 3 == 0:
            part.to_parquet(f"{file}.parquet")
        elif i % 3 == 1:
            part.to_csv(f"{file}.csv", index=False)
        else:
            part.to_json(f"{file}.jsonl", orient="records", lines=True)
    return folder


def scorers():
    return [p for p in psutil.process_iter(["name", "cmdline"])
            if "FileScorer" in " ".join(p.info["cmdline"] or ())]


def kill_one():
    until = time.monotonic() + 120
    while time.monotonic() < until and not (found := scorers()):
        time.sleep(0.05)
    time.sleep(1)
    found[0].kill()


def test_each_row_is_there_once_when_a_worker_is_killed(cluster, shop, capsys):
    killer = threading.Thread(target=kill_one)
    killer.start()
    words = ["predict", str(shop / "bundle"), str(shop / "in"), "--precision", "no", "--engine"]
    assert main([*words, "ray", "--workers", "2", "--out", str(shop / "out")]) == 0
    killer.join()
    manifest = json.loads((shop / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["files"], manifest["rows"], manifest["errors"]) == (12, 6000, 1)
    assert main([*words, "local", "--out", str(shop / "alone")]) == 0
    names = sorted(p.name for p in (shop / "alone").glob("*.parquet"))
    assert names == sorted(p.name for p in (shop / "out").glob("*.parquet"))
    for name in names:
        one, many = (pd.read_parquet(shop / n / name) for n in ("alone", "out"))
        assert one["prediction"].tolist() == many["prediction"].tolist()
        assert one["text"].tolist() == many["text"].tolist()
        assert (one["probability"] - many["probability"]).abs().max() < 1e-5


def test_a_run_that_was_cut_off_goes_on(cluster, shop):
    out = shop / "out"
    (out / "03.parquet.json").unlink()  # as if it had been killed in this file
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
    assert main(["predict", str(shop / "bundle"), str(shop / "in"), "--precision", "no",
                 "--engine", "ray", "--out", str(out)]) == 0
    now = {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
    assert [name for name in now if now[name] != before[name]] == ["03.parquet.parquet"]
    assert json.loads((out / "manifest.json").read_text())["files_of_this_run"] == 1


def test_no_ray_at_an_address(shop, capsys):
    began = time.monotonic()
    assert main(["predict", str(shop / "bundle"), str(shop / "in"), "--engine", "ray",
                 "--address", "127.0.0.1:9", "--out", str(shop / "none")]) == 2
    assert time.monotonic() - began < 10
    assert "no Ray can be reached at 127.0.0.1:9" in capsys.readouterr().err


def test_another_version_of_ray_is_told(monkeypatch):
    import ray
    from insight_nb.train import cluster
    def init(**_): raise RuntimeError("Version mismatch: The cluster was started with:\n Ray: 1.0")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "check_address", lambda address: None)
    with pytest.raises(InputError, match="the Ray at h:1 can't be used: Version mismatch"):
        with cluster.open_ray("h:1"):
            pass


def test_a_ladder_is_that_of_one_process(cluster, tmp_path):
    import numpy as np
    from insight_nb.methods.classical import Majority, Tfidf
    from insight_nb.methods.evaluation import Evaluation
    from insight_nb.methods.frozen import LinearProbe
    from insight_nb.methods.ladder import Ladder
    from insight_nb.methods.ray_ladder import ladder_engine
    rows = rows_of(150)
    texts, names = [r["text"] for r in rows], sorted({r["label"] for r in rows})
    y = np.array([names.index(r["label"]) for r in rows])
    exam = Evaluation(texts[:100], y[:100], texts[100:], y[100:], names, 0)
    encoder = tiny_encoder(tmp_path / "tiny")
    found = []
    for engine in ("local", "ray"):
        rungs = [Majority(), Tfidf(), LinearProbe(encoder, 32, "no")]
        ladder = Ladder(exam, rungs, on_progress=lambda _: None)
        with ladder_engine(ladder, engine):
            ladder.run()
        found.append([(s.name, s.status, s.metrics.get("accuracy"), s.why) for s in ladder.steps])
    assert found[0] == found[1]
