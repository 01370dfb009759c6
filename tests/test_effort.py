"""What training may cost: `effort`, and that the last epoch is not given up for a lucky one."""
import json

import numpy as np
import pytest
from conftest import rows_of, run_here, tiny_encoder, write_csv
from insight_nb import TextClassifier

ROWS = rows_of(60)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_encoder(folder, layers=2)
    return folder


def fitted(encoder, **options):
    model = TextClassifier(str(encoder), max_length=24, batch_size=16, device="cpu",
                           options=options)
    return model.fit([row["text"] for row in ROWS], [row["label"] for row in ROWS])


def test_quick_makes_half_of_the_epochs(encoder):
    quick, normal = (fitted(encoder, effort=e) for e in ("quick", "normal"))
    assert 2 * quick.trainer_.planned.epochs == normal.trainer_.planned.epochs == 30
    assert quick.setup_.rule.endswith("effort quick; set by hand: batch_size")


def test_best_learns_beside_the_texts_and_is_repeatable(encoder):
    best, again, normal = (fitted(encoder, effort=e) for e in ("best", "best", "normal"))
    weights = [m.bundle_.model.head.linear.weight.detach().numpy() for m in (best, again, normal)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.abs(weights[0] - weights[2]).max() > 1e-4


def test_the_report_says_what_it_brought(encoder, tmp_path):
    table = write_csv(tmp_path / "rows.csv", ROWS)
    given = {"table": table, "backbone": encoder, "epochs": 2, "effort": "best", "anyway": "true"}
    words = [w for k, v in given.items() for w in ("-p", k, v)]
    assert run_here("classify", *words, "--out", tmp_path / "a") == 0
    evidence = json.loads((tmp_path / "a" / "evidence.json").read_text(encoding="utf-8"))
    gain = next(iter(evidence["effort"]["differences"].values()))
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["n"] == evidence["data"]["rows"]["test"]
    assert "What the effort brought" in (tmp_path / "a" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("given, said", [
    ({"effort": "most"}, "give 'quick' or 'normal' or 'best'"),
    ({"effort": "best", "method": "bitfit"}, "with method bitfit they are not"),
    ({"effort": "best", "freeze": 1}, "with freeze they are not")])
def test_bad_input_ends_in_one_line(given, said, encoder, tmp_path, capsys):
    words = [w for k, v in given.items() for w in ("-p", k, v)]
    words += ["-p", "backbone", encoder, "--out", tmp_path / "a"]
    assert run_here("classify", *words) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1, line
    assert not (tmp_path / "a").exists()
