"""Rows with more than a text: what is guessed, what is refused, what ships, and what each kind of
evidence is worth."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import damage, refused, run_here, tiny_encoder
from insight_nb import load
from insight_nb.apps.multimodal import methods
from insight_nb.apps.multimodal.columns import open_mixed, split_mixed
from insight_nb.apps.multimodal.importance import importance_of
from insight_nb.apps.multimodal.ladder import MixedLadder, mixed_methods
from insight_nb.apps.multimodal.leaks import find_evidence_leaks
from insight_nb.apps.multimodal.methods import (
    Boosting, FeatureMaker, RowEvidence, collect_evidence, row_text_vectors)
from insight_nb.apps.multimodal.mixed_bundle import predict_mixed
from insight_nb.apps.multimodal.pictures import FACTS, PictureVectors, picture_vectors
from insight_nb.base.core import InputError
from insight_nb.cli import main
from PIL import Image

NOTES = np.array([["late", "broken", "rude"], ["fine", "quick", "friendly"]])


def rows(n=240, seed=0, zh=False):
    rng = np.random.default_rng(seed)
    price, mood = rng.uniform(1, 9, n), rng.integers(0, 2, n)
    words = NOTES[mood, rng.integers(0, 3, n)]
    texts = [f"the {a} was {w}" for a, w in zip(rng.choice(["parcel", "shop"], n), words)]
    if zh:
        texts = [f"包裹{'很快' if m else '坏了'}，第{i}次" for i, m in enumerate(mood)]
    back = price + 4 * mood + rng.normal(size=n) * .5 > 7
    return pd.DataFrame({"note": texts, "price": price.round(2), "city": rng.choice(
        ["北京", "Rome"], n), "label": np.where(back, "again", "never")})


def words(frame, out="out", **how):
    frame.to_csv("rows.csv", index=False)
    given = {"table": "rows.csv", "methods": "trees", "importance_rows": 20} | how
    return ["run", "multimodal", "--out", out, "--force",
            *(w for k, v in given.items() for w in ("-p", k, str(v)))]


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_encoder(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def run(*given, **how):
    return run_here(*words(*given, **how)[1:])


def test_a_run_from_table_to_prediction(encoder):
    frame = rows()
    frame.loc[3, "note"] = "<script>alert(1)</script>"
    assert run(frame, backbone=encoder, text="note", methods="trees,late,fine_tuned", epochs=1) == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert told["data"]["columns"] == {"note": "text", "price": "number", "city": "category"}
    gains = {g["modality"]: g for g in told["ladder"]["gains"]}
    assert gains["table"]["difference"]["low"] < gains["table"]["difference"]["value"]
    assert len(told["ladder"]["methods"]) == 8
    assert [c["check"] for c in told["guard"] if c["passed"] is False] == []
    assert "<script>alert" not in open("out/report.html", encoding="utf-8").read()
    new = frame.drop(columns="label").iloc[:30].assign(note=lambda f: f.note.where(f.index > 4))
    new.to_csv("new.csv", index=False)
    assert main(["predict", "out/bundle", "new.csv", "--out", "answers.csv"]) == 0
    answers = pd.read_csv("answers.csv")
    assert answers["note"].isna().sum() == 5 and answers["prediction"].notna().all()
    bundle = load("out/bundle")
    if "text" in bundle.modalities:
        assert (answers["missing"][:5] == "text").all()
    assert predict_mixed(bundle, new).prediction.tolist() == answers.prediction.tolist()


def test_numbers_and_chinese_rows(encoder):
    frame = rows(zh=True).assign(label=lambda f: f.price + f.note.str.contains("很快") * 3.0)
    assert run(frame, text="note", backbone=encoder, methods="trees,late") == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert told["metrics"]["mae"]["value"] < told["baseline"]["mae"]["value"] / 2
    frame.drop(columns="label").iloc[:5].to_csv("new.csv", index=False)
    assert main(["predict", "out/bundle", "new.csv", "--out", "answers.csv"]) == 0
    got = pd.read_csv("answers.csv").prediction
    assert np.abs(got - frame.label[:5]).max() < 3


@pytest.mark.parametrize("zh", [False, True])
def test_several_labels_in_a_row(encoder, zh):
    mark, names = ("、", ("贵", "北方", "坏")) if zh else (";", ("dear", "north", "bad"))
    frame = rows(zh=zh)
    bad = frame.note.str.contains("坏了" if zh else "late|broken|rude")
    told = zip(frame.price > 6, frame.city == "北京", bad)
    frame["label"] = [mark.join(n for n, yes in zip(names, row) if yes) or "[]" for row in told]
    frame.loc[:2, "label"] = None  # not looked at yet
    how = {"methods": "trees,late,fine_tuned", "epochs": 1} if not zh else {"methods": "late"}
    assert run(frame, text="note", numbers="price", categories="city", backbone=encoder,
               task="multilabel", **how) == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert told["data"]["labels"] == sorted(names) and told["data"]["dropped"]["missing label"] == 3
    assert told["metrics"]["micro_f1"]["value"] > .9 > told["baseline"]["micro_f1"]["value"]
    assert {g["verdict"] for g in told["ladder"]["gains"]} == {"pays"}
    frame.drop(columns="label").iloc[:30].to_csv("new.csv", index=False)
    assert main(["predict", "out/bundle", "new.csv", "--out", "answers.csv"]) == 0
    got = pd.read_csv("answers.csv").prediction.map(json.loads)
    wanted = [sorted(t.split(mark)) if isinstance(t, str) and t != "[]" else [] for t in
              frame.label[3:30]]
    assert np.mean([g == w for g, w in zip(got[3:], wanted)]) > .8
    frame[200:].to_csv("valid.csv", index=False)
    assert run(frame[:200], text="note", task="multilabel", valid="valid.csv", backbone=encoder,
               methods="trees") == 0


def chinese_encoder(folder, texts):
    "Some kilobytes, with a token for each character of these texts."
    from transformers import BertConfig, BertModel, BertTokenizerFast
    folder = Path(folder)
    folder.mkdir()
    found = sorted(set("".join(texts)))
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *found, *(f"##{c}" for c in found)]
    (folder / "vocab.txt").write_text("\n".join(known), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(known), hidden_size=8, num_hidden_layers=4,
                         num_attention_heads=2, intermediate_size=16)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("asked", ["class", "number"])
def test_tuned_vectors_of_chinese_rows(encoder, asked):
    "In groups, from table to prediction; the bundle answers what was measured."
    frame = rows(160, zh=True).assign(customer=np.arange(160) // 4)
    if asked == "number":
        frame["label"] = frame.price + frame.note.str.contains("很快") * 3.0
    own = chinese_encoder("zh", frame.note)
    assert run(frame, text="note", backbone=own, methods="tuned", epochs=2, group="customer") == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert [m["modalities"] for m in told["ladder"]["methods"]] == [["text"], ["text", "table"]]
    checks = {c["check"]: c["passed"] for c in told["guard"]}
    assert checks["reload_equal"] and checks["language"] and checks["weights_finite"]
    assert set(told["tuned_gap"]) == {"out of fold", "as seen in training"}
    bundle = load("out/bundle")
    assert "text" in bundle.modalities and (Path("out/bundle/encoder/config.json")).is_file()
    assert predict_mixed(bundle, frame.iloc[:9]).prediction.notna().all()
    if asked == "class":
        shutil.rmtree("zh")  # the bundle is whole
        again = predict_mixed(load("out/bundle"), frame, probabilities=True)
        assert again.equals(predict_mixed(bundle, frame, probabilities=True))


def test_tuned_vectors_need_an_encoder_that_reads_the_texts(encoder, ends):
    refused(ends(*words(rows(80, zh=True), text="note", backbone=encoder, methods="tuned")),
            "methods names tuned, but this encoder was not made for the language")


def test_folds_of_tuned_vectors_keep_groups_apart(monkeypatch):
    frame = rows(60)
    table = open_mixed(frame, given={"text": ["note"]})
    groups, seen = (np.arange(60) // 6).tolist(), []
    maker = FeatureMaker(table, groups)
    method = mixed_methods(maker, "tuned", groups)[1]
    monkeypatch.setattr(method, "tune", lambda texts, y, *_: seen.append(len(texts)))
    monkeypatch.setattr(methods, "module_device", lambda encoder: None)
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    monkeypatch.setattr(methods, "row_text_vectors", lambda *_: vectors)
    train = maker.fit(made_evidence(frame, 0), table.target)
    found = method.fit_texts(train, 2)
    assert len(seen) == 4 and seen[-1] == 60 and all(n % 6 == 0 for n in seen)
    assert found.outside.shape == found.seen.shape == (60, 8)


def test_sides_that_are_given(encoder, ends):
    frame, new = rows(200), rows(60, seed=1)
    new.to_csv("new.csv", index=False)
    assert run(frame, backbone=encoder, text="note", test="new.csv", valid_rows=40) == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())["data"]
    assert told["rows"]["test"] == 60 and told["source"].endswith("rows.csv + new.csv")
    new.assign(label="maybe").to_csv("new.csv", index=False)
    for how, said in (({"test": "new.csv"}, "has the label 'maybe'"),
                      ({"valid": "gone.csv"}, "gone.csv"),
                      ({"test": "new.csv", "time": "price"}, "time only applies when")):
        refused(ends(*words(frame, backbone=encoder, text="note", **how)), said)


def test_a_sheet_of_a_workbook(encoder):
    with pd.ExcelWriter("rows.xlsx") as book:
        pd.DataFrame({"a": [1]}).to_excel(book, sheet_name="first", index=False)
        rows(80).to_excel(book, sheet_name="wanted", index=False)
    assert run_here("multimodal", "-p", "table", "rows.xlsx", "-p", "sheet", "wanted", "-p",
                    "methods", "trees", "-p", "drop", "note", "-p", "importance_rows", "0",
                    "--out", "out") == 0


def test_pictures_of_two_columns_and_a_network_in_the_bundle(encoder):
    from transformers import ViTConfig, ViTForImageClassification
    ViTForImageClassification(ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=4)).save_pretrained("net")
    for i, color in enumerate(("black", "white")):
        Image.new("RGB", (20, 20), color).save(f"{i}.png")
    rng, n = np.random.default_rng(0), 120
    front, back = rng.integers(0, 2, n), rng.integers(0, 2, n)
    frame = pd.DataFrame({"front": [f"{k}.png" for k in front], "back": [f"{k}.png" for k in back],
                          "size": rng.uniform(1, 9, n),
                          "label": np.where(front + back > 0, "light", "dark")})
    frame.loc[::10, "back"] = None
    frame.loc[1, "front"] = "gone.png"
    assert run(frame, picture_model="net", methods="trees,late", test_rows=40, valid_rows=20) == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert told["data"]["unreadable_pictures"] == 1
    assert told["metrics"]["accuracy"]["value"] > 0.8  # one alone: three of four rows
    asked = frame.drop(columns="label").iloc[:20]
    before = predict_mixed(load("out/bundle"), asked)
    assert before.error[1] == "picture 'gone.png' is not there" and (before.missing == "").all()
    shutil.rmtree("net")
    assert predict_mixed(load("out/bundle"), asked).equals(before)
    damage("out/bundle/vision/model.safetensors", 3)
    with pytest.raises(InputError, match="sha256 does not match"):
        load("out/bundle")


def test_pictures(encoder):
    rng, n = np.random.default_rng(0), 120
    for i in range(6):
        pixels = np.full((20, 20, 3), 40, np.uint8)
        pixels[:, ::2 + i // 3 * 6] = 200  # narrow or wide stripes
        Image.fromarray(pixels).save(f"{i}.png")
    kind = rng.integers(0, 6, n)
    frame = pd.DataFrame({"photo": [f"{k}.png" for k in kind], "size": rng.uniform(1, 9, n),
                          "label": np.where(kind > 2, "wide", "narrow")})
    frame.loc[0, "photo"], frame.loc[1, "photo"] = "gone.png", "../../etc/hosts"
    assert run(frame, test_rows=40, valid_rows=20) == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert told["data"]["unreadable_pictures"] == 2
    assert {g["modality"]: g["verdict"] for g in told["ladder"]["gains"]}["picture"] == "pays"
    frame.drop(columns="label").iloc[:4].to_csv("new.csv", index=False)
    assert main(["predict", "out/bundle", "new.csv", "--out", "answers.csv"]) == 0
    answers = pd.read_csv("answers.csv")
    assert "is not there" in answers.error[0] and "outside" in answers.error[1]
    assert answers.error[2:].isna().all()
    bundle, gone = load("out/bundle"), pd.DataFrame({"photo": ["gone.png"], "size": [2.0]})
    assert "is not there" in predict_mixed(bundle, gone).error[0]  # one row: no reason to refuse
    Path("there").mkdir()
    Path("3.png").rename("there/3.png")
    gone.assign(photo="3.png").to_csv("there/one.csv", index=False)
    assert predict_mixed(bundle, "there/one.csv").error.tolist() == [""]  # beside its table
    with pytest.raises(InputError, match="must not name files"):
        from insight_nb.jobs.loading import open_served
        open_served("out/bundle")


BAD = {
    "label": ({"label": "lable"}, "no column 'lable' for the label. Did you mean 'label'?"),
    "name": ({"numbers": "prise"}, "no column 'prise' (number). Did you mean 'price'?"),
    "twice": ({"numbers": "price", "drop": "price"}, "is named twice"),
    "method": ({"methods": "svm"}, "say trees, late, fine_tuned or tuned"),
    "task": ({"task": "rank"}, "say classify, multilabel, regress"),
    "nothing left": ({"drop": "note,price,city"}, "no column besides 'label'"),
    "rows": ({"rows": 0}, "rows is 0"),
    "labels": ({"task": "multilabel", "label": "note", "rows": 40}, "no training row has these"),
    "pictures": ({"pictures": "note,city"}, "none of"),
    "picture paths": ({"pictures": "city"}, "none of"),
    "number": ({"task": "regress"}, "not a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line(case, encoder, ends):
    how, said = BAD[case]
    refused(ends(*words(rows(60), backbone=encoder, **how)), said)


def test_one_class_and_a_kind_that_changes(encoder, ends):
    same = rows(60).assign(label="same")
    refused(ends(*words(same, backbone=encoder)), "all 60 rows have the label 'same'")
    assert run(rows(), backbone=encoder, drop="note") == 0
    for change, said in ((lambda f: f.assign(price="dear"), "held numbers in training"),
                         (lambda f: f.drop(columns="price"), "no column 'price'")):
        change(rows(20).drop(columns=["label", "note"])).to_csv("new.csv", index=False)
        refused(ends("predict", "out/bundle", "new.csv", "--out", "x.csv"), said)
    refused(ends("export", "out/bundle", "--to", "onnx", "--out", "x"),
            "is for the task 'multimodal', and what is read and exported here are bundles that")


def made_evidence(frame, seed):
    "Vectors without an encoder: what a text says, and noise; of pictures, noise alone."
    rng = np.random.default_rng(seed)
    texts = frame.note.tolist()
    mood = np.array([any(w in t for w in NOTES[1]) for t in texts])
    vectors = rng.normal(size=(len(frame), 8)).astype(np.float32)
    vectors[:, 0] += 4 * mood
    pictures = None
    if "photo" in frame:
        pictures = PictureVectors(rng.normal(size=(len(frame), 8)).astype(np.float32),
                                  np.zeros((len(frame), len(FACTS)), np.float32))
    return RowEvidence(frame, texts, vectors, pictures, {"table": 0., "text": 1e-3})


def useless_rows(useless, seed):
    "A table in which one kind or one column says nothing: its cells are shuffled, or noise."
    frame, rng = rows(600, seed), np.random.default_rng(seed)
    columns = {"table": ["price", "city"], "text": ["note"]}.get(useless, [])
    order = rng.permutation(len(frame))
    frame[columns] = frame[columns].to_numpy()[order]
    if useless == "picture":
        frame["photo"] = [f"{i}.png" for i in range(len(frame))]
    if useless == "column":
        frame["weight"] = rng.normal(size=len(frame))
    table = open_mixed(frame, given={"text": ["note"]})
    return MixedLadder(table, split_mixed(table, test=200, valid=100, seed=seed),
                       made_evidence(frame, seed), seed)


@pytest.mark.slow
@pytest.mark.parametrize("useless", ["table", "text", "picture"])
def test_a_useless_kind_is_called_useless_in_19_of_20_draws(useless):
    said = []
    for seed in range(20):
        ladder = useless_rows(useless, seed)
        ladder.run(mixed_methods(ladder.maker, "trees,late"))
        said.append(ladder.gain(useless).verdict)
    assert said.count("pays") <= 1


@pytest.mark.slow
def test_a_useless_column_is_called_useless_in_19_of_20_draws():
    used = []
    for seed in range(20):
        ladder = useless_rows("column", seed)
        ladder.run([Boosting(("table", "text"))])
        found = importance_of(ladder.best().method, ladder.maker, ladder.test, 2, seed)
        used += [i.low > 0 for i in found if i.name == "weight"]
        assert next(i for i in found if i.name == "price").low > 0
    assert len(used) == 20 and sum(used) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "text", "picture"])
def test_a_planted_leak_is_found_in_20_of_20_draws(kind):
    for seed in range(20):
        frame, rng = rows(300, seed), np.random.default_rng(seed)
        frame["photo"] = [f"{i}.png" for i in range(300)]
        table = open_mixed(frame, given={"text": ["note"]})
        y, clean = table.target, rng.normal(size=(300, len(FACTS))).astype(np.float32)
        pictures = PictureVectors(np.zeros((300, 2), np.float32), clean)
        evidence = RowEvidence(frame, frame.note.tolist(), None, pictures)
        assert find_evidence_leaks(table, evidence, y) == []
        if kind == "table":
            frame["paid"] = y * 10 + rng.normal(size=300)
        if kind == "text":
            frame["note"] = [f"{t}{' case closed' if v else ''}" for t, v in zip(frame.note, y)]
        if kind == "picture":
            clean[:, 4] += 20 * y
        table = open_mixed(frame, given={"text": ["note"]})
        evidence = RowEvidence(frame, frame.note.tolist(), None, pictures)
        assert {k.modality for k in find_evidence_leaks(table, evidence, y)} == {kind}


def test_many_pictures_take_little_memory(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    found = picture_vectors(["a.png", None] * 1000, tmp_path)
    assert found.there.sum() == 1000
    assert found.vectors.nbytes / len(found) * 100_000 < 200e6  # of a hundred thousand


def test_a_leak_is_left_out_unless_it_is_named(encoder):
    frame = rows(200)
    frame["paid"] = np.where(frame.label == "again", 7, 3) + np.arange(200) / 1e3
    assert run(frame, backbone=encoder, drop="note") == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    checks = {c["check"]: c for c in told["guard"]}
    assert checks["evidence_leak"]["passed"] and "left out" in checks["evidence_leak"]["detail"]
    assert "paid" not in told["data"]["columns"] and told["leaks"][0]["used"] is False
    assert any("'paid' is left out" in note for note in told["data"]["notes"])
    frame.drop(columns=["label", "paid"]).to_csv("new.csv", index=False)
    assert main(["predict", "out/bundle", "new.csv", "--out", "answers.csv"]) == 0
    assert run(frame, backbone=encoder, drop="note", numbers="paid") == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert {c["check"]: c["passed"] for c in told["guard"]}["evidence_leak"] is False


def test_texts_and_pictures_that_leak_are_left_out(encoder):
    "What is left is trained; the bundle asks for it alone."
    frame = rows(120).drop(columns="note")
    again = frame.label == "again"
    frame["letter"] = [f"dear customer {i}, {'welcome back' if a else 'good bye'}"
                       for i, a in enumerate(again)]
    frame["photo"] = [f"{i}.png" for i in range(120)]
    for i, a in enumerate(again):
        Image.new("RGB", (30 if a else 20, 20 + i % 7), (i, i, i)).save(f"{i}.png")
    assert run(frame, backbone=encoder, methods="trees,late,fine_tuned", epochs=1) == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert {k["column"] for k in told["leaks"] if not k["used"]} == {"letter", "photo"}
    assert told["data"]["columns"] == {"price": "number", "city": "category"}
    assert {c["check"]: c["passed"] for c in told["guard"]}["evidence_leak"] is True
    assert load("out/bundle").modalities == ("table",)


@pytest.mark.parametrize("zh", [False, True])
def test_the_report_tells_the_columns_and_five_rows_with_their_pictures(encoder, zh):
    frame, n = rows(160, zh=zh), 160
    frame["height"] = np.where(np.arange(n) % 40, 1.7, 170) + np.random.default_rng(0).normal(
        size=n) / 50
    frame["note"] = [f"<i>{t}</i>" if i % 2 else "" for i, t in enumerate(frame.note)]
    frame["photo"] = [f"<b>{i}.png" if i > 3 else f"no/{i}.png" for i in range(n)]
    for i in range(4, n):
        Image.new("RGB", (9 + i % 5, 9), (i, i, i)).save(f"<b>{i}.png")
    assert run(frame, backbone=encoder, text="note", methods="trees") == 0
    page = open("out/report.html", encoding="utf-8").read()
    for said in ("about 100 times the others", "another unit?", "which is not there",
                 "empty in training", "Rows to look at", "Their pictures",
                 "points of accuracy to the best method", "&lt;b&gt;"):
        assert said in page, said
    assert "<i>" not in page and "<b>5.png" not in page and page.count("data:image") >= 5


def test_dates_with_the_year_last(encoder):
    "A column says what stands first; a row alone is read as the column was."
    frame = rows(120).drop(columns="note")
    days = pd.date_range("2020-01-01", periods=120, freq="D")
    frame["seen"] = days.strftime("%d/%m/%Y")
    frame["label"] = np.where(days.month % 2, "odd", "even")
    assert run(frame, backbone=encoder) == 0
    told = json.loads(open("out/evidence.json", encoding="utf-8").read())
    assert told["data"]["columns"]["seen"] == "date"
    assert {c["check"]: c for c in told["guard"]}["evidence_leak"]["passed"] is True
    assert run(frame, backbone=encoder, dates="seen") == 0
    bundle, one = load("out/bundle"), frame.drop(columns="label").iloc[[40]]
    one["seen"] = "03/02/2020"  # the third of February, to those who wrote the table
    assert predict_mixed(bundle, one).prediction[0] == "even"


def test_cells_of_another_kind_are_told_and_lose_nothing(encoder):
    assert run(rows(), backbone=encoder, drop="note") == 0
    new = rows(20).drop(columns=["label", "note"]).astype(object)
    new.loc[3, "price"] = "<b>dear</b>"
    new.to_csv("new.csv", index=False)
    assert main(["predict", "out/bundle", "new.csv", "--out", "answers.csv"]) == 0
    answers = pd.read_csv("answers.csv")
    assert answers.prediction.notna().all() and answers.error.notna().sum() == 1
    assert answers.error[3] == "'<b>dear</b>' in 'price' is no number"


def test_a_huge_picture_a_category_of_many_values_and_odd_numbers(encoder):
    n = 120
    Image.new("L", (9000, 9000)).save("huge.png")
    frame = pd.DataFrame({
        "price": ["1,5", "n/a", "∞", "2,25"] * 30, "code": [f"v{i % 60}" for i in range(n)],
        "seen": ["2020-01-05", "2021/3/7", "2020年5月1日", None] * 30,
        "photo": ["huge.png", ""] * 60, "side": np.arange(n) % 7,
        "label": np.where(np.arange(n) % 7 > 3, "a", "b")})
    frame.to_csv("rows.csv", index=False)
    given = {"number": ["price"], "category": ["code"], "drop": ["photo"]}
    table = open_mixed("rows.csv", given=given)
    assert {c.name: c.kind for c in table.columns if c.modality} == {
        "price": "number", "code": "category", "seen": "date", "side": "number"}
    with pytest.raises(InputError, match="more than 64,000,000"):
        picture_vectors(frame.photo.tolist(), ".")
    parts = split_mixed(table, test=30, valid=20)
    ladder = MixedLadder(table, parts, collect_evidence(table))
    ladder.run(mixed_methods(ladder.maker, "trees"))
    assert ladder.best().metrics["accuracy"].value > .8


def test_text_vectors_of_empty_texts(encoder):
    from insight_nb.models.backbone import load_backbone
    found = row_text_vectors(["", "fine", ""], load_backbone(encoder), 16)
    assert np.isnan(found[[0, 2]]).all() and np.isfinite(found[1]).all()
