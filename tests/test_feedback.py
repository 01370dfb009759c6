"""Answers are kept, corrected and counted: by predict, by the service, by the command line."""

import pandas as pd
import pytest
from conftest import refused, write_csv
from insight_nb.cli import main
from insight_nb.jobs.rungs import save_rung
from insight_nb.methods.classical import Tfidf
from insight_nb.ship.feedback import Answered, FeedbackStore
from insight_nb.ship.serve import ServeOptions, Service, make_app

TEXTS = ["good food", "bad room", "很好", "太差了", "=1+1", "<b>bad</b>"]


@pytest.fixture
def bundle(tmp_path):
    "A bundle without an encoder: words alone."
    rung = Tfidf().fit(TEXTS * 4, [1, 0, 1, 0, 1, 0] * 4, ["bad", "good"])
    save_rung(tmp_path / "run" / "bundle", rung)
    return tmp_path / "run" / "bundle"


def test_predict_keeps_answers_and_a_table_corrects_them(bundle, tmp_path, capsys):
    table = write_csv(tmp_path / "new.csv", [{"text": t} for t in [*TEXTS, ""]])
    store = str(tmp_path / "answers.db")
    asked = ["predict", str(bundle), str(table), "--out", str(tmp_path / "out.csv")]
    assert main([*asked, "--feedback", store]) == 0
    rows = pd.read_csv(tmp_path / "out.csv")
    assert rows["error"][6] == "empty text"
    right = [{"text": TEXTS[0], "label": "bad"}, {"text": TEXTS[4], "label": "odd"},
             {"text": "never asked", "label": "bad"}, {"text": TEXTS[2], "label": ""}]
    corrections = write_csv(tmp_path / "right.csv", right)
    capsys.readouterr()
    assert main(["feedback", "import", store, str(corrections)]) == 0
    said = capsys.readouterr().out
    assert "2 corrections kept, 1 row without a label" in said and "row 2: no answer has" in said
    with FeedbackStore(store) as opened:
        kept = opened.training_rows()
        assert kept[["text", "label"]].values.tolist() == [["good food", "bad"], ["=1+1", "odd"]]
        assert set(opened.frame()["model"]) == {"run"} and len(opened.frame()) == 6
    assert main(["feedback", "show", store]) == 0
    said = capsys.readouterr().out
    assert "share of right answers not known yet" in said and "2 corrections unasked" in said


def test_answers_that_were_drawn_estimate_how_good_it_is(bundle, tmp_path, capsys):
    table = write_csv(tmp_path / "new.csv", [{"text": t} for t in TEXTS])
    store, drawn = str(tmp_path / "answers.db"), str(tmp_path / "drawn.csv")
    out = str(tmp_path / "out.csv")
    assert main(["predict", str(bundle), str(table), "--out", out, "--feedback", store]) == 0
    assert main(["feedback", "sample", store, "--rows", "4", "--out", drawn]) == 0
    rows = pd.read_csv(drawn)
    assert len(rows) == 4
    rows.assign(label=rows["prediction"]).to_csv(drawn, index=False)
    assert main(["feedback", "import", store, drawn]) == 0
    capsys.readouterr()
    assert main(["feedback", "show", store]) == 0
    assert "1.000 [0.510, 1.000] right; 0 corrections unasked" in capsys.readouterr().out
    assert main(["feedback", "purge", store, "--days", "0"]) == 0
    assert "6 answers deleted" in capsys.readouterr().out


BAD = {
    "no such file": (["show", "none.db"], "none.db is not there"),
    "no table": (["import", "answers.db"], "needs a table of corrections"),
    "an empty table": (["import", "answers.db", "empty.csv"], "has no rows"),
    "no label": (["import", "answers.db", "texts.csv"], "no column 'label'"),
    "all unknown": (["import", "answers.db", "strange.csv"], "no row of the table could be used"),
    "nothing to draw": (["sample", "answers.db"], "0 answers with a text to draw from"),
    "no days": (["purge", "answers.db", "--days", "nan"], "days is nan"),
    "no store": (["show", "texts.csv"], "can't be opened to keep answers"),
    "no such command": (["shwo", "answers.db"], "Did you mean 'show'?"),
}


@pytest.mark.parametrize("given, words", BAD.values(), ids=BAD)
def test_bad_input_ends_in_one_line(given, words, tmp_path, monkeypatch, ends):
    monkeypatch.chdir(tmp_path)
    FeedbackStore("answers.db").db.close()
    write_csv(tmp_path / "texts.csv", [{"text": "a"}])
    write_csv(tmp_path / "strange.csv", [{"text": "a", "label": "b"}])
    (tmp_path / "empty.csv").write_text("text,label\n")
    refused(ends("feedback", *given), words)


def test_two_writers_lose_nothing(tmp_path):
    "Two open stores on one file, as of two processes."
    by = Answered("m", "v", "classify")
    with FeedbackStore(tmp_path / "a.db") as one, FeedbackStore(tmp_path / "a.db") as other:
        for i in range(20):
            first, = one.add(by, [f"text {i}"], [("a", .5)])
            other.correct(first["id"], "b")
            other.add(by, [f"more {i}"], [("a", .5)])
        assert len(one.frame()) == 40 and len(other.training_rows()) == 20
        assert one.digest("a") == other.digest("a")


def test_a_store_that_fails_costs_no_answer(bundle, tmp_path):
    from fastapi.testclient import TestClient
    options = ServeOptions(feedback=str(tmp_path / "a.db"))
    from insight_nb.jobs.loading import open_bundle
    service = Service([bundle], options, "cpu", open_bundle)
    with TestClient(make_app(service)) as client:
        service.store.db.connection.execute("drop table answers")
        reply = client.post("/predict", json={"texts": TEXTS})
        assert reply.status_code == 200 and "id" not in reply.json()["predictions"][0]
        assert "insight_nb_not_kept_total 6.0" in client.get("/metrics").text
        found = client.post("/feedback", json={"id": "a", "label": "b"}).json()
        assert found["kept"] == 0 and found["results"][0]["error"]
    plain = make_app(Service([bundle], ServeOptions(), "cpu", open_bundle))
    with TestClient(plain) as client:
        assert client.post("/feedback", json={"id": "a", "label": "b"}).status_code == 404
        assert client.post("/predict", json={"text": "很好"}).json()["predictions"][0][
            "prediction"] == "good"


def test_a_column_of_numbers_with_gaps_is_no_column_of_wrong_labels(tmp_path, capsys):
    rung = Tfidf().fit(TEXTS * 4, [1, 0, 1, 0, 1, 0] * 4, ["1", "5"])
    save_rung(tmp_path / "stars", rung)
    table = write_csv(tmp_path / "new.csv", [{"text": t} for t in TEXTS])
    store, drawn = str(tmp_path / "answers.db"), str(tmp_path / "drawn.csv")
    out = str(tmp_path / "out.csv")
    assert main(["predict", str(tmp_path / "stars"), str(table), "--out", out,
                 "--feedback", store]) == 0
    assert main(["feedback", "sample", store, "--rows", "4", "--out", drawn]) == 0
    rows = pd.read_csv(drawn) # label is a column of floats now, as long as one is empty
    rows.assign(label=[*rows["prediction"][:3], None]).to_csv(drawn, index=False)
    assert "1.0\n" in open(drawn).read() or "5.0\n" in open(drawn).read()
    capsys.readouterr()
    assert main(["feedback", "import", store, drawn]) == 0
    assert "that no answer here has" not in capsys.readouterr().out
    assert main(["feedback", "show", store]) == 0
    said = capsys.readouterr().out
    assert "1.000 [0.439, 1.000] right; 1 of 4 drawn answers wait" in said
    assert "until then it leans to what people chose to look at" in said
    rows.assign(label=[None, None, None, "typo"]).to_csv(drawn, index=False)
    assert main(["feedback", "import", store, drawn]) == 0
    assert "1 label that no answer here has: 'typo' (1)" in capsys.readouterr().out
    with FeedbackStore(store) as opened:
        assert set(opened.frame()["model"]) == {"stars"}


def test_answers_that_a_service_drew_come_out_to_be_labeled(bundle, tmp_path, capsys):
    store = str(tmp_path / "answers.db")
    with FeedbackStore(store, review=1.) as opened:
        notes = opened.add(Answered("run", "v1", "classify"), TEXTS, [("good", .9)] * 6)
    drawn = str(tmp_path / "drawn.csv")
    for _ in range(2): # a table that was lost can be had again
        assert main(["feedback", "sample", store, "--out", drawn, "--force"]) == 0
        assert set(pd.read_csv(drawn)["id"]) == {n["id"] for n in notes}
    assert "6 rows: fill in the column label" in capsys.readouterr().out


@pytest.mark.parametrize("words, said", [
    (["--push", "bad"], "--push is 'bad': name OWNER/NAME."),
    (["--label", "label"], "--label needs --table")])
def test_an_export_asks_for_what_it_needs_before_it_begins(words, said, bundle, tmp_path, capsys):
    asked = ["export", str(bundle), "--to", "onnx", "--out", str(tmp_path / "out")]
    assert main([*asked, *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
