"""Recipes declare their parameters well, and leave what they promise."""

import json

import pytest
from conftest import LABELS, SECTIONS, in_process, refused, run_here
from insight_nb.cli import main, read_recipe, recipes
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
# it compares several methods on one split of one table
LACKS = {"multimodal": {"method", "class_weights"}}
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
        needed = TRAINING - LACKS.get(path.stem, set())
        yield from (f"no parameter {name}" for name in sorted(needed - set(known)))
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
    words = "second", "ms_", "memory", "cpu_share"
    for part in (e["cost"], *e.get("history", [])):
        for name in [n for n in part if any(w in n for w in words)]:
            del part[name]
    return e, {p.name: p.read_bytes() for p in (folder / "bundle").rglob("*.safetensors")}


def test_one_seed_one_result(trained, tmp_path):
    "With a kernel of its own, or in this process."
    words = ["-p", "table", trained.parent / "table.csv", "-p", "epochs", "1", "-p", "max_length",
             "32"]
    assert run_here("classify", *words, "--out", tmp_path / "again") == 0
    assert same(tmp_path / "again") == same(trained)


EARLY = [ # recipe, parameters, words of the message
    ("label", {"price": "-1", "point_value": "2"}, "a label for -1 and a point for 2"),
    ("label", {"device": "tpu"}, "device is 'tpu'"),
    ("label", {"encoder": "./nowhere"}, "nowhere"),
    ("label", {"strategy": "margins"}, "Did you mean 'margin'"),
    ("audit", {"accept": "exact copy"}, "Did you mean 'exact copies'"),
    ("audit", {"accept": "gone.csv"}, "gone.csv"),
    ("audit", {"device": "tpu"}, "device is 'tpu'"),
    ("audit", {"backbone": "./nowhere"}, "nowhere"),
    ("audit", {"time": "day", "models": "false"}, "leave models on, or time out"),
    ("weak", {"least": "2", "functions": "rules.csv"}, "least is 2"),
    ("weak", {"functions": "gone.csv"}, "gone.csv"),
    ("ladder", {"margin": "0"}, "margin is 0"),
    ("ladder", {"confidence": "95"}, "confidence is 95"),
    ("ladder", {"price": "-1"}, "price is -1"),
    ("ladder", {"learning_rate": "-1"}, "learning_rate is -1"),
    ("ladder", {"llm_error_price": "-1"}, "llm_error_price is -1"),
    ("ladder", {"llm_answers": "gone.csv"}, "gone.csv"),
    ("ladder", {"state": "state.txt"}, "state is 'state.txt', which is a file"),
    ("evaluate", {"bundle": "nowhere"}, "no such folder"),
    ("evaluate", {"bundle": "nowhere", "device": "tpu"}, "device is 'tpu'"),
]


@pytest.mark.parametrize("recipe, given, words", EARLY, ids=[f"{r} {[*g]}" for r, g, _ in EARLY])
def test_what_needs_no_row_is_refused_before_the_table_is_read(recipe, given, words, ends):
    "The table is not there: who looks at it first would name it."
    with open("state.txt", "w") as file:
        file.write("a file")
    more = [w for k, v in given.items() for w in ("-p", k, v)]
    refused(ends("run", recipe, "-p", "table", "missing.csv", *more, "--out", "o"), words)


def test_names_of_columns_need_a_table(ends):
    "The recipe would else train its sample first."
    refused(ends("run", "evaluate", "-p", "text", "note", "--out", "o"), "name columns of a table")


MASKING = [name for name, path in recipes().items() if "mask" in read_recipe(path)[1]]


@pytest.mark.parametrize("recipe", MASKING)
def test_a_tagger_is_not_taken_for_yes(recipe, ends):
    "Names are masked in the table, or else a bundle would see them whenever it is asked."
    said = "insight-nb mask TABLE --names BUNDLE --out FILE"
    refused(ends("run", recipe, "-p", "mask", "runs/names/bundle", "--out", "o"), said)
    with pytest.raises(Exception) as stopped: # in a notebook no command line stands before it
        in_process(recipes()[recipe], "run.ipynb", {"mask": "runs/names/bundle", "out": "o"})
    assert "say true or false. It masks what has a form" in stopped.value.evalue


def test_every_recipe_that_trains_masks():
    assert len(MASKING) == 14 and {"classify", "tag", "ladder", "update"} <= set(MASKING)


@pytest.mark.parametrize("name", ["growth", "classify", "risk"])
def test_help_keeps_its_columns_apart(name, capsys):
    "A long name is not glued to its type."
    assert main(["run", name, "--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    named = {words[0]: words[1] for words in lines if len(words) > 2}
    known = {k: p for k, p in read_recipe(recipes()[name])[1].items()
             if k not in ("out", "resume", "checkpoint")}
    assert {k: named[k] for k in known} == {k: p.type for k, p in known.items()}
