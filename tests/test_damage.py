"""Files that were cut, changed or of another version, and two processes that fill one cache."""
import hashlib
import json
import multiprocessing
import random
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import damage, tiny_encoder
from insight_nb.apps.monitor.stream import Stream, StreamColumns
from insight_nb.base.core import InputError
from insight_nb.data.dataset import TokenDataset
from insight_nb.data.samples import synthetic
from insight_nb.data.tokens import tokenize
from insight_nb.methods.classical import Tfidf
from insight_nb.methods.evaluation import Evaluation, ResultCache, evaluate_method
from insight_nb.models.backbone import embedded_folder, load_backbone, load_tokenizer
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.train.checkpoint import read_checkpoint
from insight_nb.train.inference import embed
from insight_nb.train.optim import TrainConfig
from insight_nb.train.trainer import Trainer

TEXTS = ["a good day", "很好", "late", "bad food"] * 4


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    "An encoder's folder, and the checkpoint of a run on it."
    folder = tmp_path_factory.mktemp("sound")
    trainer_of(tiny_encoder(folder / "encoder")).save_checkpoint(folder / "run.safetensors")
    return folder


def trainer_of(backbone):
    rows = TokenDataset(tokenize(TEXTS, backbone.tokenizer, 8), labels=np.arange(len(TEXTS)) % 2)
    trainer = Trainer(Model(backbone, ClassificationTask(("a", "b"))), rows,
                      config=TrainConfig(epochs=1, batch_size=8), device="cpu")
    trainer.fit()
    return trainer


def one_line(call, where):
    "True: it works. False: one line says why not, and where."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
        return True
    except InputError as e:
        assert "\n" not in str(e) and len(str(e)) < 600 and where in str(e), e
        return False


FILES = ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"]
OTHER = ["[]", "{}", "null", '{"a": 1}', "\0\0"]


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_of_an_encoder(file, sound, tmp_path):
    def use():
        vectors = embed(TEXTS, load_backbone(str(tmp_path / "e")), 8, device="cpu")
        assert vectors.shape == (len(TEXTS), 8) and np.isfinite(vectors).all()

    def spoil(how):
        shutil.rmtree(tmp_path / "e", ignore_errors=True)
        shutil.copytree(sound / "encoder", tmp_path / "e")
        path = tmp_path / "e" / file
        if how in OTHER:
            path.write_text(how)
        elif how in ("gone", "folder"):
            path.unlink()
            if how == "folder":
                path.mkdir()
        else:
            damage(path, how)

    works = {}
    for how in ("half", "empty", "other", "gone", "folder", *OTHER, *range(4)):
        spoil(how)
        works[how] = one_line(use, "e")
    assert not any(works[how] for how in ("half", "empty", "other", "[]", "null", "\0\0"))
    if file != "tokenizer_config.json":  # what it says has defaults
        assert not works["gone"] and not works["{}"], works


@pytest.mark.parametrize("change", [
    {"model_type": "bert9"}, {"hidden_size": 16}, {"vocab_size": 99}, {"num_hidden_layers": 5},
    {"num_attention_heads": 3}, {"hidden_act": "zzz"}, {"hidden_size": "8"}, {"hidden_size": -8},
    {"max_position_embeddings": 4}, {"model_type": None}])
def test_a_config_of_another_version(change, sound, tmp_path):
    shutil.copytree(sound / "encoder", tmp_path / "e")
    file = tmp_path / "e" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert not one_line(lambda: load_backbone(str(tmp_path / "e")), "e")


def test_a_damaged_checkpoint(sound, tmp_path):
    "Not one bit may be another: a run would go on from it, and nobody could see it."
    file = tmp_path / "run.safetensors"
    read_checkpoint(sound / "run.safetensors")
    for how in ("half", "empty", "other", *range(40)):
        shutil.copy(sound / "run.safetensors", file)
        damage(file, how)
        assert not one_line(lambda: read_checkpoint(file), "run.safetensors"), how
    file.unlink()
    file.mkdir()
    assert not one_line(lambda: read_checkpoint(file), "run.safetensors")


def fill(name):
    "Make what another process makes at the same time; a digest of all that came of it."
    rows, found = synthetic(200), hashlib.sha256()
    texts, y = rows["text"].tolist(), (rows["label"] == rows["label"][0]).to_numpy().astype(int)
    evaluation = Evaluation(texts[:100], y[:100], texts[100:], y[100:], ("a", "b"))
    tokenizer = load_tokenizer(embedded_folder(), local_files_only=True)
    Path(name).touch()
    while not (Path("one").exists() and Path("two").exists()):
        time.sleep(.001)
    for i in range(6):  # new texts each time: both begin at once
        made = tokenize([f"{t} {i}" for t in texts], tokenizer, 16, cache="tokens")
        found.update(np.ascontiguousarray(made.input_ids))
    for i in range(1):
        cache, rung = ResultCache(f"results{i}", evaluation), Tfidf()
        cache.start(rung)
        if (step := cache.get(rung)) is None:
            step = evaluate_method(rung, evaluation)
            cache.put(rung, step)
        found.update(np.ascontiguousarray(step.predictions))
    return found.hexdigest()


def put_digest(name, queue):
    try:
        queue.put(fill(name))
    except BaseException as e:
        queue.put(repr(e))


def test_two_processes_fill_one_cache(monkeypatch):
    "Both end well with equal results, and nothing half-written stays."
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    fork = multiprocessing.get_context("fork")  # what is imported already need not be again
    queue = fork.Queue()
    both = [fork.Process(target=put_digest, args=(name, queue)) for name in ("one", "two")]
    for process in both:
        process.start()
    found = [queue.get(timeout=100) for _ in both]
    for process in both:
        process.join(20)
        assert process.exitcode == 0
    assert len(found[0]) == 64 and found[0] == found[1], found
    assert fill("one") == found[0]  # and so says whoever comes later
    names = [p.name for p in Path().rglob("*") if p.is_file()]
    assert len([n for n in names if n.endswith(".arrow")]) == 6
    assert len([n for n in names if n.endswith(".npz")]) == 1, names
    assert not [n for n in names if "insight_nb_" in n or n.endswith(".tmp")], names


def test_a_damaged_stream_is_one_line(tmp_path):
    "Bits turned round, bytes of others, an end cut off: whatever is asked of the store."
    columns = StreamColumns(id="id", opinion="said", probability="sure", truth="is")
    now = pd.Timestamp("2026-09-01").timestamp()
    rows = pd.DataFrame({"id": range(80), "text": [f"text {i} 很好" for i in range(80)],
                         "date": [f"2026-08-{1 + i % 27:02d}" for i in range(80)], "said": "good",
                         "sure": .9, "is": "bad"})
    whole, spoiled = tmp_path / "whole.db", tmp_path / "spoiled.db"
    stream = Stream(whole, columns, now=now)
    stream.add(rows)
    stream.db.close()
    found = {True: 0, False: 0}
    for seed in range(200):
        rng, data = random.Random(seed), bytearray(whole.read_bytes())
        at, n = rng.randrange(len(data)), (1, 20, 64)[seed % 3]
        data[at:at + n] = rng.randbytes(len(data[at:at + n]))
        for file in tmp_path.glob("spoiled.db*"):
            file.unlink()
        spoiled.write_bytes(data[:at] if seed % 4 == 3 else data)
        try:
            again = Stream(spoiled, columns, now=now)
            again.counts()
            again.rejected()
            again.complete_buckets(again.to_frame())
            again.add(rows.assign(id=range(100, 180)))
            again.db.close()
            found[True] += 1
        except InputError as e:
            assert "\n" not in str(e) and "spoiled.db" in str(e), e
            found[False] += 1
    assert min(found.values()) > 20, found
