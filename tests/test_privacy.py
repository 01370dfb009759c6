"Nothing that a run or a service leaves holds a masked value."

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import in_process, tiny_encoder, write_csv
from insight_nb.base.privacy import find_personal_data
from insight_nb.cli import main
from insight_nb.jobs.loading import load, open_bundle
from insight_nb.ship.serve import ServeOptions, Service, make_app
from notebooks import NBS
from starlette.testclient import TestClient

OPENERS = {"good": ["fine parcel, write to", "谢谢，很满意，请联系"],
           "bad": ["broken parcel, I paid with", "坏了，请退款，号码是"]}


def luhn(body):
    from insight_nb.base.privacy import passes_luhn
    return next(body + c for c in "0123456789" if passes_luhn(body + c))


def chinese_id(i):
    from insight_nb.base.privacy import passes_chinese_id
    body = f"110105{1950 + i % 50}{1 + i % 12:02}{1 + i % 28:02}{i % 1000:03}"
    return next(body + c for c in "0123456789X" if passes_chinese_id(body + c))


def planted(i):
    "A value, as people write it; another one for each row."
    return [f"user{i}.li@mail{i % 9}.com", f"+49 30 {1000000 + 37 * i}", luhn(f"411111{i:09}"),
            chinese_id(i), f"1391234{i:04}"][i % 5]


def people(n=200):
    "Rows of two classes in two languages, each with a value; the values."
    values = [planted(i) for i in range(n)]
    rows = []
    for i, value in enumerate(values):
        label = ("good", "bad")[i // 2 % 2]
        when = ["now", "soon", "today", "明天"][i // 4 % 4]
        text = f"{OPENERS[label][i % 2]} {value} {when} {i % 23}"
        rows.append({"text": text, "label": label, "customer": f"c{i % 40}"})
    return rows, values


def leaks(folder, values, but=()):
    "(file, value) of each value that stands in a file, raw or as JSON writes it."
    found = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in but):
        data = file.read_bytes()
        found += [(file.name, v) for v in values if v.encode() in data]
    return found


def work(folder, mask):
    "Train, serve, log, keep, correct and predict: all that a run and a service leave is in `out`."
    rows, values = people()
    table, out = write_csv(folder / "table.csv", rows), folder / "out"
    out.mkdir()
    tiny_encoder(folder / "tiny")
    given = {"table": table, "backbone": folder / "tiny", "epochs": 1, "max_length": 32,
             "keep_rows": 10, "anyway": "true", "mask": str(mask).lower()}
    words = [w for name, value in given.items() for w in ("-p", name, str(value))]
    assert main(["run", "classify", *words, "--out", str(out / "run")]) == 0
    bundle = out / "run" / "bundle"
    options = ServeOptions(log=str(out / "log.jsonl"), feedback=str(out / "answers.db"))
    asked = [row["text"] for row in rows[:50]]
    with TestClient(make_app(Service([bundle], options, "cpu", open_bundle))) as client:
        answers = client.post("/predict", json={"texts": asked}).json()["predictions"]
        told = [{"text": text, "label": "good"} for text in asked[:5]]
        told += [{"id": answers[9]["id"], "right": True}]
        kept = client.post("/feedback", json={"feedback": told}).json()
        assert kept["kept"] == 6, kept
    predicted = folder / "predicted.csv"
    assert main(["predict", str(bundle), str(table), "--out", str(predicted),
                 "--feedback", str(out / "predicted.db")]) == 0
    return out, values, predicted


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return work(tmp_path_factory.mktemp("plain"), False)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return work(tmp_path_factory.mktemp("masked"), True)


def test_each_value_is_one_that_can_be_found():
    rows, values = people()
    for row, value in zip(rows, values):
        assert value in [p.text for p in find_personal_data(row["text"])], row


@pytest.mark.slow
def test_without_mask_the_values_are_everywhere(plain):
    out, values, _ = plain
    files = {name.removesuffix("-wal") for name, _ in leaks(out, values)}
    wanted = {"report.html", "notebook.ipynb", "log.jsonl", "answers.db", "predicted.db"}
    assert wanted <= files, files
    assert any(name not in wanted for name in files), "replay rows lie in the bundle"


@pytest.mark.slow
def test_with_mask_no_value_is_in_any_file(masked):
    out, values, _ = masked
    assert leaks(out, values) == []
    assert "[EMAIL_1]" in (out / "run" / "report.html").read_text(encoding="utf-8")
    assert "[PHONE_1]" in (out / "log.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_evidence_says_what_was_masked(masked, plain):
    found, other = (json.loads((out / "run" / "evidence.json").read_text(encoding="utf-8"))
                    for out, *_ in (masked, plain))
    assert found["data"]["masked"] == {"CARD": 40, "EMAIL": 40, "ID": 40, "PHONE": 80}
    assert "masked" not in other["data"]
    info = json.loads((masked[0] / "run" / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    assert info["mask"] is True and load(masked[0] / "run" / "bundle").options["mask"] is True


@pytest.mark.slow
def test_the_predicted_table_keeps_the_users_own_texts(masked):
    _, values, predicted = masked
    said = predicted.read_text(encoding="utf-8-sig")
    assert all(value in said for value in values)


@pytest.mark.slow
def test_a_masked_bundle_does_not_see_which_value_it_is(masked):
    model = load(masked[0] / "run" / "bundle")
    texts = ["write to ann@mail.com", "write to bob@other.org", "write to [EMAIL_1]"]
    a, b, c = model.predict_proba(texts)
    assert a.tolist() == b.tolist() == c.tolist()


@pytest.mark.slow
def test_a_service_of_a_plain_bundle_masks_where_told(plain, tmp_path):
    options = ServeOptions(log=str(tmp_path / "log"), feedback=str(tmp_path / "db"), mask=True)
    service = Service([plain[0] / "run" / "bundle"], options, "cpu", open_bundle)
    strange = ["ask ann@mail.com", 13912345678, ["ann@mail.com", "b"], {"ann@mail.com": 1}, None,
               "x" * 30_000 + " ann@mail.com", True]
    with TestClient(make_app(service)) as client:
        reply = client.post("/predict", json={"texts": strange})
        assert reply.status_code == 200 and len(reply.json()["predictions"]) == len(strange)
    assert leaks(tmp_path, ["ann@mail.com", "13912345678"]) == []
    assert len((tmp_path / "log").read_text().splitlines()) == len(strange)


def test_check_names_them_and_fix_masks_them(tmp_path, capsys):
    rows, values = people(40)
    table = write_csv(tmp_path / "table.csv", rows)
    assert main(["check", str(table), "--backbone", "none"]) == 0
    said = capsys.readouterr().out
    assert "EMAIL in 8" in said and "-p mask true" in said
    assert main(["check", str(table), "--backbone", "none", "--fix", str(tmp_path / "fixed"),
                 "--accept", "personal data"]) == 0
    new = next(p for p in (tmp_path / "fixed").iterdir() if p.suffix == ".csv"
               and "findings" not in p.name and "removed" not in p.name)
    assert not [v for v in values if v in new.read_text(encoding="utf-8-sig")]


def test_a_table_goes_out_masked_and_comes_back(tmp_path, capsys):
    rows, values = people(60)
    table, key = write_csv(tmp_path / "table.csv", rows), tmp_path / "key.json"
    out, back = tmp_path / "masked.csv", tmp_path / "back.csv"
    assert main(["mask", str(table), "--out", str(out), "--key", str(key)]) == 0
    assert not [v for v in values if v in out.read_text(encoding="utf-8-sig")]
    assert key.stat().st_mode & 0o777 == 0o600
    assert main(["mask", str(out), "--out", str(back), "--key", str(key), "--undo"]) == 0
    assert all(v in back.read_text(encoding="utf-8-sig") for v in values)
    assert main(["mask", str(out), "--out", str(tmp_path / "x.csv"), "--undo"]) == 2
    assert "by its key alone" in capsys.readouterr().err


def run_card(folder, text):
    "The snippet of an export's README, run as its users would; its variables."
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("FOLDER", str(folder)).replace("a text", text), names)
    return card, names


@pytest.mark.slow
def test_an_export_says_that_it_masks_nothing_and_its_card_masks(masked, plain, tmp_path, capsys):
    "Asked rows with values, both sides read masked ones, and the snippet answers as the bundle."
    rows, values = people(60)
    table, bundle = write_csv(tmp_path / "rows.csv", rows), masked[0] / "run" / "bundle"
    out = tmp_path / "exports"
    for target in ("onnx", "sentence-transformers"):
        more = ["--label", "label"] if target == "onnx" else []
        assert main(["export", str(bundle), "--to", target, "--out", str(out / target),
                     "--table", table, *more]) == 0
        said = capsys.readouterr().out
        assert "an export masks nothing: mask what it is asked first" in said
        proof = json.loads((out / target / "certificate.json").read_text(encoding="utf-8"))
        assert proof["masked"] is True and proof["equal_answers"] == 1.
    assert leaks(out, values) == []
    assert json.loads((out / "onnx" / "export.json").read_text(encoding="utf-8"))["mask"] is True
    text = rows[0]["text"]
    card, names = run_card(out / "onnx", text)
    logits = np.asarray(names["logits"], float)[0]
    probs = np.exp(logits - logits.max())
    assert np.allclose(probs / probs.sum(), load(bundle).predict_proba([text])[0], atol=1e-4)
    assert "an export masks nothing" in card
    assert main(["export", str(plain[0] / "run" / "bundle"), "--to", "onnx", "--out",
                 str(out / "open"), "--table", table]) == 0
    said = capsys.readouterr().out
    card = (out / "open" / "README.md").read_text(encoding="utf-8")
    assert "masks nothing" not in said + card and "insight_nb" not in card.split("```")[1]


@pytest.mark.slow
def test_made_rows_and_unlabeled_ones_and_a_robustness_report_hold_no_value(tmp_path):
    rows, values = people(240)
    rows = [row for row in rows if row["text"].isascii()] # the encoder reads English
    words = "box late door ring shop blue cold fast lamp shoe wine coat".split()
    others = [f"{words[i % 12]} {words[i // 12]} and {words[i * 5 % 7]}, ask {planted(1000 + i)}"
              for i in range(96)]
    values += [planted(1000 + i) for i in range(96)]
    table = write_csv(tmp_path / "table.csv", rows)
    more = write_csv(tmp_path / "more.csv", [{"text": t} for t in others])
    given = {"table": table, "epochs": 1, "max_length": 32, "mask": "true", "adapt": "true",
             "unlabeled": more, "augment": "typos", "robustness": "true"}
    words = [w for name, value in given.items() for w in ("-p", name, str(value))]
    assert main(["run", "classify", *words, "--out", str(tmp_path / "out" / "run")]) == 0
    assert (tmp_path / "out" / "run" / "augmented_sample.csv").exists()
    assert leaks(tmp_path / "out", values) == []


def masks_unasked(out, values):
    "No value lies in what a run left, and its bundle masks."
    info = json.loads((out / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    return info["mask"] is True and leaks(out, values) == []


@pytest.mark.slow
def test_a_student_of_a_masked_bundle_masks_unasked(tmp_path):
    rows, values = people(240)
    rows = [row for row in rows if row["text"].isascii()]  # a teacher must know both labels
    table = write_csv(tmp_path / "rows.csv", rows)
    train = ["-p", "table", table, "-p", "epochs", "2", "-p", "max_length", "32", "-p", "mask",
             "true", "--out", str(tmp_path / "teacher")]
    assert main(["run", "classify", *train]) == 0
    given = ["-p", "bundle", str(tmp_path / "teacher" / "bundle"), "-p", "table", table]
    assert main(["run", "distill", *given, "-p", "student", "vectors", "--out",
                 str(tmp_path / "student")]) == 0
    assert masks_unasked(tmp_path / "student", values)


@pytest.mark.slow
def test_an_update_of_a_masked_bundle_masks_unasked(masked, tmp_path):
    "With new rows, and with what the feedback store kept."
    rows, values = people(400)
    table = write_csv(tmp_path / "new.csv", rows[200:])
    given = ["-p", "bundle", str(masked[0] / "run" / "bundle"), "-p", "table", table]
    more = ["-p", "feedback", str(masked[0] / "answers.db"), "-p", "compare", "false"]
    assert main(["run", "update", *given, *more, "-p", "epochs", "1", "--out",
                 str(tmp_path / "new")]) == 0
    assert masks_unasked(tmp_path / "new", values)


@pytest.mark.slow
def test_who_labels_by_table_or_by_panel_reads_no_value(tmp_path):
    rows, values = people(60)
    write_csv(tmp_path / "pool.csv", rows)
    given = {"table": "pool.csv", "rows": 10, "test_rows": 10, "mask": True, "label": "none"}
    words = [w for name, value in given.items() for w in ("-p", name, str(value).lower())]
    assert main(["run", "label", *words, "--out", "out"]) == 0
    asked = pd.read_csv("out/to_label.csv", keep_default_na=False)
    assert len(asked) == 10 and re.search(r"\[[A-Z]+_1\]", " ".join(asked["text"]))
    asked["label"] = ["good", "bad"] * 5
    asked.to_csv("filled.csv", index=False)
    in_process(NBS / "recipes" / "label.ipynb", "run.ipynb",
               given | {"out": "again", "labeled": ["filled.csv"]})
    for folder in ("out", "again"):
        assert leaks(tmp_path / folder, values) == []
    cell = json.loads((tmp_path / "again" / "label.ipynb").read_text(encoding="utf-8"))["cells"][0]
    assert "'mask': True" in "".join(cell["source"])


@pytest.mark.slow
def test_reports_of_an_audit_and_of_weak_labels_quote_no_value(tmp_path):
    "The list of findings is for the owner of the rows, and holds the texts; the report doesn't."
    rows, values = people(120)
    for row in rows:
        row["agent"] = values[0]
    write_csv(tmp_path / "table.csv", rows)
    assert main(["run", "audit", "-p", "table", "table.csv", "-p", "models", "false", "--out",
                 "audit"]) == 0
    assert leaks(tmp_path / "audit", values, ("findings.csv",)) == []
    write_csv(tmp_path / "rules.csv", [
        {"pattern": "fine|谢谢", "label": "good", "kind": "keyword"},
        {"pattern": "broken|退款", "label": "bad", "kind": "keyword"}])
    assert main(["run", "weak", "-p", "table", "table.csv", "-p", "functions", "rules.csv", "-p",
                 "mask", "true", "--out", "weak"]) == 0
    assert leaks(tmp_path / "weak", [v for v in values if v != values[0]]) == []
