"""Whatever was saved opens with one call, and bundles of applications answer tables."""
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from insight_nb import load
from insight_nb.apps.assistant.assistant import Assistant
from insight_nb.apps.assistant.out_of_scope import IntentClassifier
from insight_nb.apps.assistant.retrieval import AnswerIndex
from insight_nb.apps.diagnose.imaging import save_imaging
from insight_nb.models.vision import ImagePreprocessor, small_vision
from insight_nb.apps.risk.estimators import RiskClassifier, RiskRegressor
from insight_nb.apps.risk.risk_bundle import save_risk
from insight_nb.base.core import InputError
from insight_nb.cli import main
from insight_nb.data.samples import synthetic
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.ship.bundle import SCHEMA, _seal, write_manifest


@pytest.fixture
def risk(tmp_path):
    draw = np.random.default_rng(0)
    ages, towns = draw.integers(20, 70, 200), draw.choice(["a", "很好"], 200)
    rows = pd.DataFrame({"age": ages, "town": towns})
    late = (rows["age"] + draw.normal(0, 9, 200) > 45).astype(int)
    save_risk(tmp_path / "risk", RiskClassifier().fit(rows, late), "late", ("no", "yes"))
    save_risk(tmp_path / "loss", RiskRegressor().fit(rows, rows["age"] * 2.), "loss")
    return rows


@pytest.mark.parametrize("name, column", [("risk", "probability"), ("loss", "low")])
def test_predict_answers_a_table_with_a_risk(name, column, risk, tmp_path, capsys):
    risk.assign(age=["x", *risk["age"][1:]]).to_csv(tmp_path / "new.csv", index=False)
    asked = ["predict", str(tmp_path / name), str(tmp_path / "new.csv")]
    assert main([*asked, "--out", str(tmp_path / "out.csv")]) == 0
    assert "200 rows, 1 of them with an error" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "out.csv")
    assert list(found["town"]) == list(risk["town"]) and column in found.columns
    assert "age" in found["error"][0] and found["error"][1:].isna().all()
    assert main([*asked, "--out", str(tmp_path / "out.csv")]) == 2
    assert main([*asked, "--text", "town"]) == 2
    said = capsys.readouterr().err
    assert "takes no column: leave it out" in said and "Traceback" not in said
    assert load(tmp_path / name, device="cpu").info["task"] == "risk"


def test_predict_answers_a_table_of_images(tmp_path):
    names = ("no", "yes")
    vision = small_vision(ImagePreprocessor(1, (8, 8), (.5,), (.5,)))
    save_imaging(tmp_path / "b", Model(vision, ClassificationTask(names)).eval())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    pd.DataFrame({"path": [str(tmp_path / "a.png"), "nowhere.png"]}).to_csv(
        tmp_path / "new.csv", index=False)
    assert main(["predict", str(tmp_path / "b"), str(tmp_path / "new.csv"), "--probabilities",
                 "--out", str(tmp_path / "out.csv")]) == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["prediction"][0] in names and "not there" in found["error"][1]


def test_predict_answers_a_table_with_an_assistant(tmp_path, capsys):
    frame = synthetic(120)
    kinds = sorted(set(frame.label))
    reader = IntentClassifier().fit(
        list(frame.text), [kinds.index(k) for k in frame.label], kinds)
    questions, said = ["怎么付款？", "When are you open?"], ["刷卡。", "From 9 to 5."]
    answers = AnswerIndex(questions, said, reader.embed)
    Assistant(reader, answers).save(tmp_path / "b")
    pd.DataFrame({"text": ["when are you open?", "", "怎么付款？"]}).to_csv(
        tmp_path / "new.csv", index=False)
    assert main(["predict", str(tmp_path / "b"), str(tmp_path / "new.csv"),
                 "--out", str(tmp_path / "out.csv")]) == 0
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert found["reply"].tolist() == ["From 9 to 5.", "", "刷卡。"]
    assert found["error"].tolist()[1] and "1 of them with an error" in capsys.readouterr().out


def test_a_bundle_that_answers_no_table_says_what_to_do(tmp_path, capsys):
    (tmp_path / "b").mkdir()
    write_manifest(tmp_path / "b", {"schema": SCHEMA, "task": "translate"})
    (tmp_path / "t.csv").write_text("text\na\n")
    assert main(["predict", str(tmp_path / "b"), str(tmp_path / "t.csv")]) == 2
    assert "insight_nb.load" in capsys.readouterr().err
    for command in (["export", "--to", "onnx", "--out", str(tmp_path / "o")], ["serve"]):
        assert main([command[0], str(tmp_path / "b"), *command[1:]]) == 2
        said = capsys.readouterr().err
        assert "'translate'" in said and said.count("\n") == 1
    info = json.loads((tmp_path / "b" / "bundle.json").read_text())
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(info | {"task": "classify"}))
    assert main(["serve", str(tmp_path / "b")]) == 2


@pytest.mark.parametrize("facts, word", [
    ({"files": None}, "files"), ({"files": ["a"]}, "files"), ({"files": {"../x": "0"}}, "'../x'"),
    ({"task": "classify"}, "labels"), ({"task": "classify", "labels": "ab"}, "labels"),
    ({"task": "risk"}, "not whole"), ({"task": 3}, "task")])
def test_a_bundle_with_a_fault_inside_ends_in_one_line(facts, word, tmp_path, capsys):
    folder = tmp_path / "b"
    folder.mkdir()
    (tmp_path / "t.csv").write_text("text\na\n")
    info = {"schema": SCHEMA, "task": "recommend", "files": {}} | facts
    (folder / "bundle.json").write_text(json.dumps(info | {"seal": _seal(info)}))
    with pytest.raises(InputError) as e:
        load(folder)
    assert word in str(e.value) or "damaged" in str(e.value)
    assert main(["predict", str(folder), str(tmp_path / "t.csv")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said


def test_a_bundle_does_not_hold_what_its_tokenizer_did_last(tmp_path):
    from insight_nb.models.backbone import load_backbone
    from insight_nb.models.native import save_encoder

    encoder = load_backbone()
    save_encoder(encoder, tmp_path / "a", 32, weights=False)
    encoder.tokenizer(["words that are cut", "few"], truncation=True, max_length=4, padding=True)
    save_encoder(encoder, tmp_path / "b", 32, weights=False)
    first, second = ((tmp_path / name / "tokenizer.json").read_bytes() for name in "ab")
    assert first == second
