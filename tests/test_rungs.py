"""Bundles of the ladder's methods: whole or refused, and nothing in them gives random answers."""

import json

import numpy as np
import pytest
import torch
from conftest import refused, rows_of, write_csv
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from insight_nb import load
from insight_nb.base.core import InputError
from insight_nb.jobs.rungs import load_rung, save_rung
from insight_nb.methods.classical import Tfidf
from insight_nb.methods.frozen import LinearProbe, StaticEmbeddings
from insight_nb.models.backbone import load_backbone
from insight_nb.ship.bundle import write_manifest
from insight_nb.train.inference import embed

ROWS = rows_of(90)
TEXTS, NAMES = [r["text"] for r in ROWS], sorted({r["label"] for r in ROWS})
IDS = np.array([NAMES.index(r["label"]) for r in ROWS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Words, token vectors, sentence vectors, learned from hostile texts."
    encoder, path = load_backbone(), tmp_path_factory.mktemp("rungs")
    rungs = {"words": Tfidf(), "vectors": StaticEmbeddings(encoder, 32),
             "frozen": LinearProbe(encoder, 32)}
    for name, rung in rungs.items():
        save_rung(path / name, rung.fit(TEXTS, IDS, NAMES))
        found = load(path / name).predict_proba(TEXTS)
        np.testing.assert_allclose(found, rung.predict_proba(TEXTS), atol=1e-6)
        assert (load(path / name).predict(TEXTS) == np.array(NAMES)[found.argmax(1)]).all()
    return path


def test_known_calls_load_exactly_or_raise(folder):
    "No folder in a bundle gives answers from fresh weights."
    for name in ("words", "vectors", "frozen"):
        for place in [folder / name, *filter(lambda p: p.is_dir(), (folder / name).rglob("*"))]:
            if place.name != "encoder":
                with pytest.raises((OSError, ValueError, KeyError)):
                    AutoModel.from_pretrained(place)
            with pytest.raises((OSError, ValueError, KeyError, RuntimeError)):
                AutoModelForSequenceClassification.from_pretrained(place)
    ours = embed(TEXTS[:5], load_backbone(), 32)
    theirs = SentenceTransformer(str(folder / "frozen" / "encoder"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS[:5]), ours, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder / "vectors" / "tokenizer")
    assert tokenizer.tokenize("good food") == load_backbone().tokenizer.tokenize("good food")


def test_nothing_is_pickled_and_a_flipped_byte_is_refused(folder, tmp_path):
    kinds = {p.suffix for p in folder.rglob("*") if p.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt"}
    tables = load_file(folder / "words" / "learned.safetensors")
    assert {a.dtype.kind for a in tables.values()} <= {"f", "i"}
    save_rung(tmp_path / "b", Tfidf().fit(TEXTS, IDS, NAMES))
    file = tmp_path / "b" / "learned.json"
    file.write_bytes(file.read_bytes().replace(b"word", b"wore", 1))
    with pytest.raises(InputError, match="damaged or was changed"):
        load(tmp_path / "b")


@pytest.mark.parametrize("rung", [{"kind": "Oracle"}, {}, 5, {"kind": "Tfidf", "arguments": {
    "zzz": 1}, "precision": "no"}], ids=str)
def test_facts_that_do_not_fit_are_refused(rung, folder, tmp_path):
    info = json.loads((folder / "words" / "bundle.json").read_text(encoding="utf-8"))
    (tmp_path / "b").mkdir()
    write_manifest(tmp_path / "b", info | {"rung": rung})
    with pytest.raises(InputError):
        load_rung(tmp_path / "b")


def test_commands_say_what_they_take(folder, ends):
    table = write_csv("t.csv", ROWS[:5])
    words = str(folder / "words")
    assert ends("predict", words, table, "--out", "p.csv", "--probabilities").status == 0
    refused(ends("predict", words, table, "--precision", "int8"), "leave it out")
    refused(ends("export", words, "--to", "onnx", "--out", "o"), "TF-IDF + linear")
    refused(ends("predict", words, table, "--text", "txt"), "no column 'txt'")


def test_the_vectors_alone_are_half_of_the_encoder(folder):
    def size(name):
        return sum(p.stat().st_size for p in (folder / name).rglob("*") if p.is_file())
    assert size("words") < size("vectors") / 20 and size("vectors") < .6 * size("frozen")
    assert load_file(folder / "vectors" / "tokens.safetensors")["vectors"].dtype == np.float32
    assert torch.isfinite(torch.from_numpy(load(folder / "vectors").predict_proba(TEXTS))).all()
