"""Runs of the recipes for texts on a tiny encoder, and what is asked of each of them."""
import functools
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from harness import Outcome, ask, error_of, guard_lines, run_recipe, write_table
from insight_nb.base.tensors import set_seed
from insight_nb.models.backbone import embedded_folder, load_tokenizer
from text_checks import CHECKS
from transformers import AutoConfig, AutoModel

SIZE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 48, "initializer_range": .3}
WORDS = {
    "bad": "broken dirty late rude cold noisy dark", "fair": "plain usual normal simple average ok",
    "good": "lovely warm friendly clean bright quiet fresh"}
FILL = "room soup guide train coat film day bed tea shop bus sea hill book car door lamp".split()
HOW = {"max_length": 32, "epochs": 6, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"}
KEPT = []  # the folder of the encoder, for as long as this process


def tiny() -> str:
    "The folder of a tiny encoder with random weights and a real tokenizer."
    if not KEPT:
        KEPT.append(tempfile.TemporaryDirectory())
        set_seed(0)
        AutoModel.from_config(AutoConfig.for_model("bert", **SIZE)).save_pretrained(KEPT[0].name)
        load_tokenizer(embedded_folder(), local_files_only=True).save_pretrained(KEPT[0].name)
    return KEPT[0].name


def say(draw, mood):
    "A text of 4 to 11 words, three of which tell the label."
    words = draw.sample(WORDS[mood].split(), 3) + draw.choices(FILL, k=draw.randint(1, 8))
    draw.shuffle(words)
    return " ".join(words)


def rows(n=240, seed=0, noise=0.06):
    "Three labels, unequally frequent, some of them wrong; groups whose rows err together; times."
    draw, made = random.Random(seed), []
    for i in range(n):
        mood = draw.choices(["bad", "fair", "good"], [3, 2, 5])[0]
        odd = random.Random(f"{seed} {i // 8}").random() < noise
        label = {"bad": "good", "fair": "bad", "good": "fair"}[mood] if odd else mood
        made.append({"text": say(draw, mood), "label": label, "customer": f"c{i // 8}",
                     "day": (i * 37 + 5) % n})
    for i in range(0, n - 20, 20):  # a tenth are copies, as tables have them
        for k in (11, 19):
            made[i + k] |= {name: made[i + k - 9][name] for name in ("text", "label")}
    return pd.DataFrame(made)


def easy(n=200, seed=0):
    "Two labels that each word tells."
    frame = rows(n, seed, 0)
    two, draw = frame[frame.label != "fair"], random.Random(seed)
    texts = [" ".join(draw.sample(WORDS[mood].split(), 5) + [draw.choice(FILL)])
             for mood in two.label]
    return two.assign(text=texts).reset_index(drop=True)


def clustered(n=800, seed=0):
    "Customers of eight rows; of some of them all labels are wrong."
    frame = rows(n, seed, 0)
    frame["label"] = frame.label.replace("fair", "bad")
    draw = random.Random(seed)
    frame["text"] = [" ".join(draw.sample(WORDS[mood].split(), 5) + [draw.choice(FILL)])
                     for mood in frame.label]
    wrong = [random.Random(f"{seed} {c}").random() < .08 for c in frame.customer]
    frame["label"] = frame.label.where(~np.array(wrong), frame.label.map(
        {"bad": "good", "good": "bad"}))
    return frame


def pairs(n=200, seed=0):
    "Two texts: do they speak of the same mood?"
    draw, made = random.Random(seed), []
    for i in range(n):
        first, second = draw.choice(["bad", "good"]), draw.choice(["bad", "good"])
        label = {"bad": "no", "good": "yes"}[second]
        made.append({"text": say(draw, first), "second": say(draw, second), "label": label})
    return pd.DataFrame(made)


def topics(n=200, seed=0):
    "Any number of three labels."
    draw, made = random.Random(seed), []
    for i in range(n):
        told = [mood for mood, p in zip(WORDS, (.5, .2, .4)) if draw.random() < p] or ["bad"]
        text = " ".join(say(draw, mood) for mood in told)
        made.append({"text": text, "label": "|".join(told)})
    return pd.DataFrame(made)


def numbers(n=200, seed=0):
    "A number that grows with the mood."
    frame = rows(n, seed, 0)
    value = frame.label.map({"bad": 10., "fair": 30., "good": 50.})
    return frame[["text"]].assign(label=value + np.random.default_rng(seed).normal(size=n))


def long_rows(n=240, seed=0):
    "Texts of several windows."
    draw = random.Random(seed)
    frame = rows(n, seed)
    frame["text"] = [" ".join(draw.choices(FILL, k=draw.randint(8, 30)) + [text])
                     for text in frame.text]
    return frame


def tagged(n=160, seed=0):
    "Sentences with names of people and places, as lists of spans; some ends are wrong."
    draw, made = random.Random(seed), []
    kinds = {"PER": ["Anna Berg", "Li Wei", "Omar Said", "Eva"],
             "LOC": ["Rome", "New York", "Oslo"]}
    for i in range(n):
        text, spans = " ".join(draw.choices(FILL, k=draw.randint(2, 5))), []
        for kind in draw.sample(list(kinds), draw.randint(1, 2)):
            name = draw.choice(kinds[kind])
            text += " " + {"PER": "met", "LOC": "in"}[kind] + " "
            end = len(name.split()[0]) if draw.random() < .15 else len(name)
            spans.append({"start": len(text), "end": len(text) + end, "label": kind})
            text += name
        made.append({"text": f"{text} {draw.choice(FILL)}", "label": json.dumps(spans)})
    return pd.DataFrame(made)


SLOW = {"epochs": 12, "batch_size": 4}
LONG = {"windows": True, "max_length": 12}
KINDS = {  # name: recipe, rows, parameters
    "classify": ("classify", rows, {}), "frozen": ("classify", easy, SLOW | {"method": "frozen"}),
    "lora": ("classify", easy, SLOW | {"method": "lora", "learning_rate": 1e-2}),
    "grouped": ("classify", clustered, {"group": "customer"}),
    "timed": ("classify", rows, {"time": "day"}), "windows": ("classify", long_rows, LONG),
    "pair": ("pair", pairs, {}), "multilabel": ("multilabel", topics, {"epochs": 14}),
    "regress": ("regress", numbers, {"epochs": 14}), "tag": ("tag", tagged, {"epochs": 6})}


def run_text(kind, folder) -> Outcome:
    "Train, measure, save, open, predict; then ask all questions."
    recipe, make, given = KINDS[kind]
    outcome = Outcome(folder / "run", frame=make())
    outcome.kind, outcome.make, outcome.given, outcome.backbone = kind, make, HOW | given, tiny()
    table = write_table(folder / "table.csv", outcome.frame)
    asked = HOW | given | {"table": table, "backbone": tiny(), "out": str(outcome.folder)}
    try:
        outcome.names = run_recipe(recipe, asked)
        outcome.found += guard_lines(outcome.report)
    except Exception as e:
        outcome.found.append(error_of(e))
        return outcome
    ask(CHECKS, outcome)
    return outcome


def run_kind(kind, folder: Path) -> list:
    return run_text(kind, folder).found


TEXT_RUNS = {kind: functools.partial(run_kind, kind) for kind in KINDS}
