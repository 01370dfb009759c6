"""Recipes declare their parameters well, and leave what they promise."""

import json

import pytest
from conftest import LABELS, SECTIONS, run_here
from insight_nb.cli import read_recipe, recipes
from notebooks import Notebook

TRAINING = {
    "table",
    "text",
    "label",
    "test",
    "valid",
    "group",
    "time",
    "rows",
    "backbone",
    "method",
    "epochs",
    "batch_size",
    "learning_rate",
    "max_length",
    "class_weights",
    "seed",
    "device",
    "out",
}
GUARD = {
    "weights_finite",
    "label_order",
    "row_order",
    "loss_fell",
    "beats_majority",
    "truncation",
    "split_duplicates",
    "small_classes",
    "adapters_changed",
    "ranks_moved",
    "reload_equal",
    "language",
}
UNTRAINED = {"audit", "label"}  # they use an encoder as it is
PYTHON = {"str": str, "int": int, "float": (int, float), "bool": bool}


def faults(path):
    about, known = read_recipe(path)
    nb = Notebook(path)
    if not about:
        yield "no '> sentence' under the title"
    if "google.colab" not in nb.code[0].source:
        yield "the first code cell does not install on Colab"
    if "out" not in known:
        yield "no parameter out"
    if "backbone" in known and path.stem not in UNTRAINED:
        yield from (f"no parameter {name}" for name in sorted(TRAINING - set(known)))
    for p in known.values():
        if not p.help:
            yield f"{p.name} has no help"
        if not (p.optional if p.default is None else isinstance(p.default, PYTHON[p.type])):
            yield f"{p.name}: the default is not of its type"


def test_there_are_recipes():
    assert "classify" in recipes()


@pytest.mark.parametrize("path", recipes().values(), ids=recipes())
def test_declared_well(path):
    assert list(faults(path)) == []


def test_a_badly_declared_recipe_would_show(tmp_path):
    cells = [
        {
            "cell_type": "code",
            "metadata": {"tags": ["parameters"]},
            "outputs": [{}],
            "source": "rows: int = None\nbackbone: str = 'x' # it",
        }
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    found = list(faults(tmp_path / "a.ipynb"))
    assert {
        "no parameter out",
        "rows has no help",
        "rows: the default is not of its type",
        "no parameter seed",
    } <= set(found) and len(found) > 10


def test_a_run_leaves_what_it_promises(trained):
    assert {p.name for p in trained.iterdir()} >= {
        "notebook.ipynb",
        "report.html",
        "evidence.json",
        "bundle",
    }
    e = json.loads((trained / "evidence.json").read_text(encoding="utf-8"))
    assert e["schema"] == 1 and e["task"] == "classify"
    assert set(e) >= SECTIONS
    assert {"accuracy", "macro_f1", "mcc", "log_loss"} <= set(e["metrics"]) and set(
        e["metrics"]
    ) <= set(e["baseline"])
    for m in e["metrics"].values():
        assert isinstance(m["value"], float) and m["low"] <= m["value"] <= m["high"] and m["n"] > 0
    assert {
        "train_seconds",
        "train_tokens_per_second",
        "padding_share",
        "predict_ms_per_text",
        "peak_memory_mb",
        "device",
    } <= set(e["cost"])
    assert {g["check"] for g in e["guard"]} >= GUARD and all(
        isinstance(g["passed"], bool | None) and g["detail"] for g in e["guard"]
    )
    assert sorted(e["data"]["labels"]) == sorted(LABELS) and set(e["data"]) >= {
        "source",
        "rows",
        "sha256",
        "dropped",
    }


def test_users_text_is_harmless_in_the_report(trained):
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert (
        "<script>alert" not in page
        and "<b>good</b>" not in page
        and "&lt;b&gt;good" in page
        and "很好" in page
    )
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_the_executed_notebook_speaks_of_the_final_folder(trained):
    text = (trained / "notebook.ipynb").read_text(encoding="utf-8")
    assert str(trained) in text and f"/.{trained.name}." not in text


def same(folder):
    """All that may not differ between two runs: the evidence but for times and memory, and the
    weights."""
    e = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    for part in (e["cost"], *e.get("history", [])):
        for name in [n for n in part if any(w in n for w in ("second", "ms_", "memory"))]:
            del part[name]
    return e, {p.name: p.read_bytes() for p in (folder / "bundle").rglob("*.safetensors")}


def test_one_seed_one_result(trained, tmp_path):
    "With a kernel of its own, or in this process."
    words = ["-p", "table", trained.parent / "table.csv", "-p", "epochs", "1", "-p", "max_length",
             "32"]
    assert run_here("classify", *words, "--out", tmp_path / "again") == 0
    assert same(tmp_path / "again") == same(trained)
