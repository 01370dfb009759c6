"""Students: what can't work is said in one line, and what is shipped answers as it was measured."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, SECTIONS, refused, rows_of, run_here, write_csv
from transformers import AutoModel

from insight_nb import load
from insight_nb.base.core import InputError
from insight_nb.base.tensors import FakeEncoder, FakeTokenizer
from insight_nb.cli import main, summary
from insight_nb.data.table import clean_table
from insight_nb.jobs.students import Distillation, Ensemble, open_teacher, parse_students
from insight_nb.jobs.text_estimators import TextClassifier
from insight_nb.methods.classical import Majority, Tfidf
from insight_nb.methods.fewshot import Contrastive
from insight_nb.models.backbone import Backbone, load_backbone
from insight_nb.models.tasks import ClassificationTask, Model, MultiLabelTask, RegressionTask
from insight_nb.ship.bundle import Bundle, load_bundle, save_bundle
from insight_nb.train.distill import DistillationTask, choose_layers, student_model
from insight_nb.train.inference import predict_logits


def run(ends, bundle, *more):
    return ends("run", "distill", "-p", "bundle", bundle, *more, "--out", "out")


@pytest.fixture
def texts(tmp_path):
    return write_csv(tmp_path / "texts.csv", [{"text": r["text"]} for r in rows_of(120)])


STUDENTS = {"layers:0": "from 1", "layers:-1": "from 1", "layers": "layers:3",
            "layers:7": "more layers than its teacher, which has 6", "layers:6": "as large as",
            "layers:2.5": "from 1", "layer:3": "'layers'", "bert": "not known",
            "tfidf:3": "leave :3 out", ",": "no student is named"}


@pytest.mark.parametrize("student", STUDENTS)
def test_students_that_cannot_be(ends, trained, texts, student):
    refused(run(ends, trained / "bundle", "-p", "table", texts, "-p", "student", student),
            STUDENTS[student])


OTHERS = {("temperature", "0"): "temperature is 0", ("label_share", "1.5"): "share of the labels",
          ("margin", "-1"): "margin is -1", ("epochs", "0"): "epochs is 0",
          ("rows", "0"): "rows is 0", ("seed", "-1"): "seed is -1", ("text", "txt"): "'txt'",
          ("labeled", "texts.csv"): "'label'", ("test", "nowhere.csv"): "nowhere.csv"}


@pytest.mark.parametrize("given", OTHERS, ids="=".join)
def test_parameters_that_cannot_be(ends, trained, texts, given):
    refused(run(ends, trained / "bundle", "-p", "table", texts, "-p", *given), OTHERS[given])


TABLES = {"": "bad.csv", "text\n": "bad.csv", "text,id\n,1\n ,2\n": "can be used",
          "text\n1\n2\n": "no texts", "id,title\n1,a b\n": "'text'"}


@pytest.mark.parametrize("content", TABLES, ids=["empty", "header", "blank", "numbers", "column"])
def test_tables_without_texts(ends, trained, content):
    Path("bad.csv").write_text(content)
    refused(run(ends, trained / "bundle", "-p", "table", "bad.csv"), TABLES[content])


def test_labels_that_the_teacher_does_not_know(ends, trained, texts):
    odd = write_csv("odd.csv", rows_of(60, ["a", "b", "c"]))
    for name in ("test", "labeled"):
        given = ("-p", "table", texts, "-p", name, odd)
        refused(run(ends, trained / "bundle", *given), "which is not among the 3 labels")


def test_few_texts_and_copies_of_the_test(ends, trained):
    few = write_csv("few.csv", rows_of(12))
    refused(run(ends, trained / "bundle", "-p", "table", few), "too few to set some aside")
    refused(run(ends, trained / "bundle", "-p", "table", few, "-p", "test", few),
            "every text has a copy among the test rows")


def test_a_teacher_and_its_texts_belong_together(ends, trained, texts):
    refused(run(ends, trained / "bundle"), "give both bundle and table")
    refused(ends("run", "distill", "-p", "table", texts, "--out", "out"), "both bundle and table")
    refused(run(ends, "gone", "-p", "table", texts), "gone")


@pytest.mark.parametrize("task", [RegressionTask(), MultiLabelTask("ab")], ids=lambda t: t.name)
def test_bundles_that_are_no_classifiers(ends, texts, task):
    save_bundle("other", Model(load_backbone(), task), 16)
    refused(run(ends, "other", "-p", "table", texts), repr(task.name), "one label for each text")


def test_teachers_with_other_labels(ends, trained, texts):
    save_bundle("other", Model(load_backbone(), ClassificationTask("ab")), 16)
    refused(run(ends, f"{trained / 'bundle'},other", "-p", "table", texts), "the same labels")


def test_a_student_larger_than_its_teacher():
    texts = [r["text"] for r in rows_of(60)]
    teacher = Ensemble([Tfidf().fit(texts, np.arange(60) % 3, LABELS)])
    job = Distillation(teacher, "vectors", device="cpu")
    frame = pd.DataFrame({"text": texts})
    job.set_rows(clean_table(frame, label=None))
    with pytest.raises(ValueError, match="student vectors takes 46.9 MB, and its teacher 0.0 MB"):
        job.train()
    with pytest.raises(ValueError, match="no encoder to take layers from"):
        Distillation(Ensemble([Majority().fit(texts, np.arange(60) % 3, LABELS)]), "layers:1")


# What is promised

@pytest.fixture(scope="module")
def shipped(trained, tmp_path_factory):
    "A run of the recipe: an ensemble of two, a student of two layers."
    folder = tmp_path_factory.mktemp("students")
    rows = rows_of(260)
    texts = write_csv(folder / "texts.csv", [{"text": r["text"]} for r in rows[:200]])
    test = write_csv(folder / "test.csv", rows[200:])
    twice = ",".join([str(trained / "bundle")] * 2)
    given = {"bundle": twice, "table": texts, "test": test, "student": "layers:2", "epochs": 1}
    words = [word for pair in given.items() for word in ("-p", *map(str, pair))]
    assert run_here("distill", *words, "--out", folder / "run") == 0
    return folder


def test_a_run_leaves_what_it_promises(shipped):
    run = shipped / "run"
    assert {p.name for p in run.iterdir()} >= {
        "notebook.ipynb", "report.html", "evidence.json", "bundle"}
    found = json.loads((run / "evidence.json").read_text(encoding="utf-8"))
    assert found["schema"] == 1 and found["task"] == "distill" and set(found) >= SECTIONS
    teacher, student = found["students"]
    assert (teacher["name"], student["name"]) == ("teacher", "layers:2")
    assert found["model"]["teachers"] == 2 and student["mb"] < teacher["mb"] / 2
    assert student["difference"]["low"] <= student["difference"]["high"]
    assert student["ms_per_text"] < teacher["ms_per_text"]
    assert found["data"]["measured_against"] == "labels"
    assert found["metrics"]["accuracy"]["n"] == found["data"]["rows"]["test"] > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<b>good</b>" not in page and "很好" in page


def test_the_bundle_is_an_encoder_like_any_other(shipped):
    bundle = load_bundle(shipped / "run" / "bundle", device="cpu")
    encoder = AutoModel.from_pretrained(shipped / "run" / "bundle" / "encoder").eval()
    assert encoder.config.num_hidden_layers == 2 and bundle.info["task"] == "classify"
    asked = bundle.model.backbone.tokenizer(["很好 so good", "a"], padding=True,
                                            return_tensors="pt")
    ours = bundle.model.backbone(asked["input_ids"], asked["attention_mask"].bool())
    theirs = encoder(asked["input_ids"], asked["attention_mask"]).last_hidden_state
    real = asked["attention_mask"].bool()
    assert (ours - theirs)[real].abs().max() < 1e-4


def test_predict_answers_with_the_student(shipped, tmp_path):
    out = tmp_path / "answers.csv"
    words = [str(shipped / "run" / "bundle"), str(shipped / "test.csv"), "--out", str(out)]
    assert main(["predict", *words]) == 0
    found = pd.read_csv(out, keep_default_na=False)
    texts = pd.read_csv(shipped / "test.csv")["text"]
    student = Ensemble([open_teacher(shipped / "run" / "bundle", "cpu")])
    wanted = np.array(student.names)[student.predict_proba(texts).argmax(1)]
    # a cell of a CSV file that begins with = gets an apostrophe, so that no program computes it
    assert found["prediction"].tolist() == wanted.tolist()


def test_the_order_of_labels_in_an_ensemble(trained):
    "Teachers whose labels stand in another order are averaged by name."
    one = open_teacher(trained / "bundle", "cpu")
    texts = [r["text"] for r in rows_of(9)]
    hard = Ensemble([one]).predict_proba(texts)

    class Turned: # the same answers, the labels the other way round
        names = one.labels.names[::-1]
        def predict_proba(self, texts): return hard[:, ::-1]
    both = Ensemble([one, Turned()])
    np.testing.assert_allclose(both.predict_proba(texts), hard, atol=1e-7)
    assert both.names == one.labels.names


def test_an_encoder_without_layers_to_take():
    model = Model(Backbone(FakeEncoder(), FakeTokenizer(), "fake", width=16),
                  ClassificationTask("ab"))
    with pytest.raises(ValueError, match="more layers than its teacher, which has 0"):
        Distillation(Ensemble([Bundle(model, {"max_length": 16})]), "layers:1")
    with pytest.raises(ValueError, match="can't be taken one by one"):
        student_model(model, DistillationTask("ab"), [0])


def test_all_layers_of_a_teacher_with_an_adapter_answer_as_it_does():
    texts, labels = zip(*((r["text"], r["label"]) for r in rows_of(60)))
    teacher = TextClassifier(method="lora", epochs=1, max_length=32, device="cpu")
    model = teacher.fit(list(texts), list(labels)).bundle_.model
    same = student_model(model, DistillationTask(LABELS), choose_layers(6, 6)).eval()
    rows = teacher.trainer_.train_dataset
    np.testing.assert_allclose(predict_logits(same, rows), predict_logits(model, rows), atol=1e-4)


def test_a_rung_that_learned_from_pairs_teaches():
    "A contrastive rung, of which a student takes layers and token vectors."
    rows, more = rows_of(60), rows_of(150)[60:]
    labels = [LABELS.index(r["label"]) for r in rows]
    rung = Contrastive(max_length=16, pairs=48, device="cpu")
    rung.fit([r["text"] for r in rows], labels, LABELS)
    job = Distillation(Ensemble([rung]), "vectors,layers:1", device="cpu")
    job.set_rows(clean_table(pd.DataFrame(more), label=None))
    assert [s.name for s in job.train(epochs=1)] == ["vectors", "layers:1"]
    results = job.measure()
    assert all(r.size_mb < results[0].size_mb for r in results[1:])
    assert job.make_report(job.choose()[0], []).metrics["accuracy"].n == len(job.test_texts)


def test_linear_students_are_saved_as_rungs(tmp_path):
    texts = [r["text"] for r in rows_of(150)]
    teacher = Ensemble([Tfidf().fit(texts, np.arange(150) % 3, LABELS)])
    job = Distillation(teacher, "tfidf", device="cpu")
    job.set_rows(clean_table(pd.DataFrame({"text": texts}), label=None))
    job.check_size = lambda *_: None # as large as its teacher, which is of no matter here
    student = job.train()[0]
    job.measure()
    checks = job.ship(student, tmp_path / "bundle")[1]
    assert [c.passed for c in checks] == [True] * 3
    again = open_teacher(tmp_path / "bundle") # what was saved can teach in its turn
    np.testing.assert_allclose(again.predict_proba(texts), student.model.predict_proba(texts))
    assert load(tmp_path / "bundle").predict(texts[:1]).tolist() == [LABELS[0]]


def test_several_students_stand_by_their_cost():
    assert list(parse_students("layers:4, layers:2,vectors , tfidf")) == [
        "tfidf", "vectors", "layers:2", "layers:4"]


def test_the_terminal_says_that_a_teacher_was_the_measure(tmp_path):
    shown = {"value": .9, "low": .8, "high": .95}
    evidence = {"metrics": {"accuracy": shown}, "data": {"measured_against": "labels"}}
    (tmp_path / "evidence.json").write_text(json.dumps(evidence))
    assert "measured" not in summary(tmp_path)
    evidence["data"]["measured_against"] = "the teacher's own answers to texts set aside"
    (tmp_path / "evidence.json").write_text(json.dumps(evidence))
    assert "against the teacher's own answers to texts set aside, not labels" in summary(tmp_path)


def test_a_teacher_that_says_one_label_is_named():
    rows = pd.DataFrame(rows_of(90))
    teacher = Tfidf().fit(rows["text"].tolist(), np.arange(90) % 2, ("a", "b"))
    teacher.predict_proba = lambda texts: np.tile([.9, .1], (len(list(texts)), 1))
    texts = clean_table(rows[["text"]], label=None)
    job = Distillation(Ensemble([teacher]), "tfidf", device="cpu")
    with pytest.raises(InputError, match="the teacher gives all [0-9]+ texts the label 'a'"):
        job.set_rows(texts)
    teacher.names = ("a",)
    with pytest.raises(InputError, match="the teacher knows one label, 'a'"):
        Ensemble([teacher])
