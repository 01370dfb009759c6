"""Files as an attacker would make them: one line each, and nothing is done."""

import math
import shutil

import numpy as np
import pytest
from conftest import refused
from insight_nb.apps.assistant.dialogue import read_flows
from insight_nb.base.core import InputError
from insight_nb.decide.launch.memo import read_json, read_yaml
from insight_nb.decide.launch.policy import reliability_from_evidence
from insight_nb.jobs.rungs import save_rung
from insight_nb.methods.classical import Tfidf
from insight_nb.ship.bundle import read_info, write_manifest
from safetensors.numpy import load_file, save_file

DEEP = "[" * 100_000


@pytest.mark.parametrize("temperature", [0, -1., math.nan, math.inf, "1", None, True])
def test_a_temperature_that_turns_answers_round(ends, trained, tmp_path, temperature):
    shutil.copytree(trained / "bundle", tmp_path / "b")
    info = read_info(tmp_path / "b")
    write_manifest(tmp_path / "b", info | {"temperature": temperature})
    (tmp_path / "t.csv").write_text("text\nfine\n")
    refused(ends("predict", "b", "t.csv", "--out", "o.csv"), "bundle.json is damaged",
            "temperature")


def spoil(bundle, file, value=math.nan):
    "One value is no number, and the bundle is sealed again."
    tensors = load_file(bundle / file)
    name = next(k for k, v in tensors.items() if v.dtype.kind == "f" and v.size)
    tensors[name].flat[0] = value
    save_file(tensors, bundle / file)
    write_manifest(bundle, read_info(bundle))


@pytest.mark.parametrize("file", ["head.safetensors", "encoder/model.safetensors"])
def test_weights_that_are_no_numbers(ends, trained, tmp_path, file):
    shutil.copytree(trained / "bundle", tmp_path / "b")
    spoil(tmp_path / "b", file)
    (tmp_path / "t.csv").write_text("text,label\nfine,good\n房间很好,bad\n")
    said = "b/" + file, "is damaged", "no numbers"
    refused(ends("predict", "b", "t.csv", "--out", "o.csv"), *said)
    refused(ends("export", "b", "--to", "transformers", "--out", "e"), *said)
    refused(ends("run", "evaluate", "-p", "bundle", "b", "-p", "table", "t.csv", "--out", "r"),
            *said)


@pytest.mark.parametrize("value, words", [
    (math.nan, "learned.safetensors is damaged"), (math.inf, "what was learned is damaged")])
def test_what_a_method_learned_is_no_number(ends, tmp_path, value, words):
    texts, y = ["good food", "bad room", "好吃", "很脏"] * 5, np.array([0, 1] * 10)
    save_rung(tmp_path / "b", Tfidf().fit(texts, y, ["good", "bad"]))
    spoil(tmp_path / "b", "learned.safetensors", value)
    (tmp_path / "t.csv").write_text("text\nfine\n")
    refused(ends("predict", "b", "t.csv", "--out", "o.csv"), words)


@pytest.mark.parametrize("read", [read_json, read_flows, reliability_from_evidence, read_info])
def test_json_without_end(tmp_path, read):
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "bundle.json").write_text(DEEP)
    with pytest.raises(InputError):
        read(folder if read is read_info else folder / "bundle.json")


def test_a_recipe_without_end(ends, tmp_path):
    (tmp_path / "deep.ipynb").write_text(DEEP)
    refused(ends("run", "deep.ipynb"), "deep.ipynb is not a notebook")


def test_aliases_that_fill_the_memory(tmp_path):
    lines = ['a: &a ["x"]'] + [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
                               for a, b in zip("abcdefgh", "bcdefghi")]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="bomb.yaml has an alias"):
        read_yaml(tmp_path / "bomb.yaml")
