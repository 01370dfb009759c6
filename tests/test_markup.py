"""Markup in every field of every recipe is shown as text. On demand: each recipe runs whole."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from insight_nb.cli import main
from insight_nb.decide.launch.memo import EXAMPLES
from PIL import Image

pytestmark = pytest.mark.slow
EVIL = "'\"><img src=x onerror=evil>"  # out of any attribute, and then a tag
MARKUP = re.compile(r"<img\s+src=x\s+onerror", re.I)
WORDS = ["lovely warm friendly", "broken dirty late", "房间 干净 早餐"]


def name(word): return f"{word} {EVIL}"


def texts(n=120, first=0):
    labels = [name("a"), name("b"), "很好"]
    return pd.DataFrame({
        name("text"): [f"{WORDS[i % 3]} number {(first + i) * 7919 % 10007} {EVIL}"
                       for i in range(n)],
        name("label"): [labels[i % 3] for i in range(n)],
        name("group"): [name(f"g{i % 40}") for i in range(n)],
        name("slice"): [name(f"s{i % 2}") for i in range(n)]})


def table(frame, end=".csv", word="table"):
    path = f"{name(word)}{end}"
    if end == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    return path


USUAL = {"text": name("text"), "label": name("label")}
TRAINED = USUAL | {"group": name("group"), "epochs": 1, "max_length": 32}


def classify(): return TRAINED | {"table": table(texts())}
def regress():
    frame = texts()
    frame[name("label")] = np.arange(120) % 3 + .5
    return TRAINED | {"table": table(frame)}
def multilabel(): return TRAINED | {"table": table(texts())}
def pair():
    return TRAINED | {"second": name("second"), "table": table(
        texts().assign(**{name("second"): lambda f: f[name("text")]}))}


def tag():
    rows = [{name("text"): ["Anna", "lives", EVIL.replace(" ", ""), "in", "Paris",
                           chr(97 + i % 26) * 3 + chr(97 + i // 26) * 3],
             name("label"): [f"B-{EVIL}", "O", "O", "O", f"B-{EVIL}p", "O"]} for i in range(60)]
    return USUAL | {"epochs": 1, "max_length": 32,
                    "table": table(pd.DataFrame(rows), ".jsonl")}


def ladder():
    about = pd.DataFrame({"label": [name("a"), name("b"), "很好"],
                          "description": [f"{EVIL} one", f"{EVIL} two", f"{EVIL} three"]})
    about.to_csv(f"{name('about')}.csv", index=False)
    return USUAL | {"table": table(texts()), "group": name("group"), "slices": name("slice"),
                    "descriptions": f"{name('about')}.csv", "state": name("state"),
                    "rungs": "majority,label names,TF-IDF + linear,zero-shot by vectors"}


def assistant():
    frame = texts(150).assign(**{name("answer"): lambda f: "answer " + f[name("label")]})
    return USUAL | {"table": table(frame), "answer": name("answer"), "group": name("group")}


def diagnose():
    for p in range(12):
        folder = Path(name("clinic"), name("ab"[p % 2]), name(f"p{p}"))
        folder.mkdir(parents=True)
        for j in range(4):
            pixels = np.random.default_rng(9 * p + j).integers(0, 60, (12, 12))
            pixels[:6] += 150 * (p % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name(j)}.png")
    (folder / f"{name('broken')}.png").write_text(EVIL)
    return {"table": name("clinic"), "group": "folder", "epochs": 3, "folds": 2}


def risk():
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({name("age"): draw.integers(20, 70, 200),
                          name("town"): draw.choice([name("Rome"), "北京"], 200),
                          name("group"): [name(f"g{i % 50}") for i in range(200)]})
    late = frame[name("age")] + draw.normal(0, 9, 200) > 45
    frame[name("label")] = np.where(late, name("yes"), name("no"))
    return {"table": table(frame), "label": name("label"), "positive": name("yes"), "folds": 3,
            "repeats": 1, "compare": "false", "sensitive": name("town"), "group": name("group")}


def recommend():
    draw = np.random.default_rng(0)
    n = 3000
    items = draw.integers(0, 60, n)
    frame = pd.DataFrame({name("user"): [name(f"u{i}") for i in draw.integers(0, 90, n)],
                          name("item"): [name(f"i{i}") for i in items],
                          name("time"): np.arange(n) * 3600,
                          name("text"): [f"thing {i} {EVIL}" for i in items],
                          name("kind"): [name(f"k{i % 4}") for i in items]})
    return {"table": table(frame), "user": name("user"), "item": name("item"),
            "time": name("time"), "text": name("text"), "categories": name("kind")}


def monitor():
    draw = np.random.default_rng(0)
    n = 4000
    days = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.sort(draw.integers(0, 120, n)), "D")
    frame = pd.DataFrame({name("text"): [f"{WORDS[i % 3]} {i} {EVIL}" for i in range(n)],
                          name("date"): days.strftime("%Y-%m-%d"),
                          name("opinion"): draw.choice([name("good"), name("bad")], n),
                          name("topic"): draw.choice([name("food"), name("room")], n)})
    frame.loc[3, name("date")] = EVIL
    return {"table": table(frame), "text": name("text"), "date": name("date"),
            "opinion": name("opinion"), "topic": name("topic"), "now": "2026-05-02",
            "store": f"{name('store')}.db"}


def decide():
    known = (EXAMPLES / "assumptions.yaml").read_text(encoding="utf-8")
    known = re.sub(r"^(title|currency|period|volume):.*\n(?:[ #].*\n)*", "", known, flags=re.M)
    lines = known.splitlines()
    evil = json.dumps(EVIL)  # YAML too
    lines += [f"title: {evil}", f"currency: {evil}", f"period: {evil}",
              f"volume: {{low: 30000, high: 55000, source: {evil}}}"]
    Path(f"{name('a')}.yaml").write_text("\n".join(lines), encoding="utf-8")
    e = json.loads((EXAMPLES / "evidence.json").read_text(encoding="utf-8"))

    def poison(v):
        if isinstance(v, dict):
            return {k: poison(w) for k, w in v.items()}
        if isinstance(v, list):
            return [poison(w) for w in v]
        return name(v) if isinstance(v, str) else v

    e = {k: poison(v) if k in ("data", "model", "guard", "versions") else v for k, v in e.items()}
    Path(EVIL).mkdir()
    Path(EVIL, "evidence.json").write_text(json.dumps(e), encoding="utf-8")
    return {"evidence": f"{EVIL}/evidence.json", "assumptions": f"{name('a')}.yaml"}


def distill(trained=None):
    return {"bundle": str(trained), "table": table(texts()), "text": name("text"),
            "labeled": table(texts()), "label": name("label"), "student": "tfidf"}


def evaluate(trained=None):
    return USUAL | {"bundle": str(trained), "table": table(texts(first=999)),
                    "group": name("group")}


def update(trained=None):
    return USUAL | {"bundle": str(trained), "table": table(texts(first=999)),
                    "old": table(texts(), word="old"),
                    "epochs": 1, "compare": "false", "keep_rows": 3}


RECIPES = [classify, regress, multilabel, pair, tag, ladder, assistant, diagnose, risk, recommend,
           monitor, decide]


def shown(out):
    "All that a browser would be given: pages, and the outputs of notebooks."
    for page in out.rglob("*.html"):
        yield page.name, page.read_text(encoding="utf-8")
    for page in out.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        yield page.name, re.sub(r"```.*?```", "", text, flags=re.S)
    for cell in json.loads((out / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            for kind in ("text/html", "text/markdown", "image/svg+xml"):
                if kind in output.get("data", {}):
                    yield f"{kind} of the notebook", "".join(output["data"][kind])


def run(recipe, given):
    words = [w for k, v in given.items() for w in ("-p", k, str(v))]
    return main(["run", recipe, *words, "--out", name("out")])


def check():
    parts = list(shown(Path(name("out"))))
    assert len(parts) > 2 and any("onerror" in text for _, text in parts)  # it is shown
    for place, text in parts:
        found = MARKUP.search(text)
        assert not found, (place, text[max(0, found.start() - 200):found.end() + 50])


@pytest.mark.parametrize("make", RECIPES, ids=[make.__name__ for make in RECIPES])
def test_markup_in_every_field(make, capsys):
    status = run(make.__name__, make())
    assert status == 0, capsys.readouterr().err
    check()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    import os
    folder, before = tmp_path_factory.mktemp("teacher"), os.getcwd()
    os.chdir(folder)
    try:
        assert run("classify", classify()) == 0
    finally:
        os.chdir(before)
    return folder / name("out") / "bundle"


@pytest.mark.parametrize("make", [distill, evaluate, update], ids=lambda make: make.__name__)
def test_markup_in_what_others_trained(make, teacher, capsys):
    status = run(make.__name__, make(teacher))
    assert status == 0, capsys.readouterr().err
    check()
