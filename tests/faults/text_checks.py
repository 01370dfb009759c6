"""What is asked of every run for texts. Nothing here knows what was planted; what it compares with
is made without the product: scikit-learn, transformers, safetensors, and counting."""
import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from insight_nb.jobs.setup import FineTuningSetup
from insight_nb.ship.bundle import load_bundle
from insight_nb.ship.predict import predict, predict_frame
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score, log_loss, matthews_corrcoef, mean_absolute_error, r2_score
from transformers import AutoModel, AutoTokenizer

TASKS = {"pair": "pair", "multilabel": "multilabel", "regress": "regress", "tag": "tag"}


def task_of(o): return TASKS.get(o.kind, "classify")
def parts_of(o): return o.names["model"].parts_
def bundle_path(o): return o.folder / "bundle"


def opened(o):
    "The bundle as it lies on the disk, opened once for all questions."
    if not hasattr(o, "bundle"):
        o.bundle = load_bundle(bundle_path(o), device="cpu")
    return o.bundle


def asked(frame, o):
    "The texts of rows, or pairs of texts."
    return list(zip(frame.text, frame.second)) if o.kind == "pair" else frame.text.tolist()


def close(a, b, words, atol=1e-4):
    a, b = np.asarray(a, float), np.asarray(b, float)
    assert a.shape == b.shape, f"{words}: {a.shape} and {b.shape}"
    gap = float(np.abs(a - b).max(initial=0)) if np.isfinite(a - b).all() else np.nan
    assert gap <= atol, f"{words}: {gap:.3g} apart"


def truth_of(o, frame):
    "Answers as a person reads them from the table."
    if o.kind == "multilabel":
        return [tuple(sorted(s for s in str(v).replace("\n", "|").split("|")))
                for v in frame.label]
    if o.kind == "tag":
        return [[(s["start"], s["end"], s["label"]) for s in json.loads(v)] for v in frame.label]
    return frame.label.tolist()


def answers_of(o, frame):
    found = predict(opened(o), asked(frame, o))[0]
    if o.kind == "multilabel":
        return [tuple(sorted(v)) for v in found]
    if o.kind == "tag":
        return [[(s["start"], s["end"], s["label"]) for s in spans] for spans in found]
    return list(found)


def span_f1(truth, found):
    hits = sum(len(set(a) & set(b)) for a, b in zip(truth, found))
    return 2 * hits / (sum(map(len, truth)) + sum(map(len, found)))


def score(o, truth, found):
    "How good answers are, by the usual measure of the task; more is better."
    if o.kind == "multilabel":
        names = sorted({n for row in truth for n in row})
        y, p = (np.array([[n in row for n in names] for row in rows]) for rows in (truth, found))
        return f1_score(y, p, average="micro")
    if o.kind == "tag":
        return span_f1(truth, found)
    if o.kind == "regress":
        return r2_score(truth, np.array(found, float))
    return float(np.mean([a == b for a, b in zip(truth, found)]))


LEAST = {"classify": .7, "grouped": .6, "windows": .55, "frozen": .7, "pair": .85, "multilabel": .8,
         "regress": .7, "tag": .7}


def fresh_rows_are_answered_right(o):
    "The shipped model, asked rows that nobody has seen, gives the names of the table."
    frame = o.make(seed=99).head(120)
    found = score(o, truth_of(o, frame), answers_of(o, frame))
    least = LEAST.get(o.kind, LEAST["classify"])
    assert found >= least, f"{found:.3f} on 120 fresh rows, expected at least {least}"


def metrics_by_hand(o):
    "The report's numbers, computed by scikit-learn from what the bundle answers."
    if o.kind == "tag":  # words as given, and raw: near each other
        test = o.names["source"].select(np.sort(parts_of(o).test))
        truth = [test.spans(i) for i in range(len(test))]
        found = [[(s["start"], s["end"], s["label"]) for s in v]
                 for v in predict(opened(o), test.texts)[0]]
        close(o.report.metrics["shipped_f1"].value, span_f1(truth, found), "F1 of spans", 1e-6)
        close(o.report.metrics["entity_f1"].value, span_f1(truth, found), "F1 of words", .03)
        return
    frame = o.names["source"].frame.iloc[parts_of(o).test]
    truth, m = truth_of(o, frame), o.report.metrics
    found, probs = predict(opened(o), asked(frame, o))
    if o.kind == "regress":
        close(m["r2"].value, r2_score(truth, found), "R²", 1e-5)
        close(m["mae"].value, mean_absolute_error(truth, found), "MAE", 1e-3)
    elif o.kind == "multilabel":
        names = sorted({n for row in truth for n in row})
        y, p = (np.array([[n in row for n in names] for row in rows]) for rows in (truth, found))
        for kind in "micro", "macro":
            close(m[f"{kind}_f1"].value, f1_score(y, p, average=kind), f"{kind} F1", 1e-6)
    else:
        names = opened(o).labels.names
        close(m["accuracy"].value, np.mean([a == b for a, b in zip(truth, found)]), "accuracy")
        close(m["macro_f1"].value, f1_score(truth, found, average="macro"), "macro F1")
        close(m["mcc"].value, matthews_corrcoef(truth, found), "MCC")
        close(m["log_loss"].value, log_loss(truth, probs, labels=names), "log-loss", 1e-3)


def classes_by_hand(o):
    "Precision and recall of each class, and which is which."
    if task_of(o) not in ("classify", "pair"):
        return
    frame = o.names["source"].frame.iloc[parts_of(o).test]
    truth, found = np.array(truth_of(o, frame)), np.array(answers_of(o, frame))
    for name, m in o.report.classes.items():
        hit = ((truth == name) & (found == name)).sum()
        close(m["recall"].value, hit / max((truth == name).sum(), 1), f"recall of {name}")
        if (found == name).any():
            close(m["precision"].value, hit / (found == name).sum(), f"precision of {name}")


def baseline_by_hand(o):
    "What always saying the most frequent training label has on the test rows."
    if task_of(o) not in ("classify", "pair"):
        return
    frame, parts = o.names["source"].frame, parts_of(o)
    first = frame.label.iloc[parts.train].value_counts().index[0]
    close(o.report.baseline["accuracy"].value, (frame.label.iloc[parts.test] == first).mean(),
          "accuracy of the majority class")


def intervals_by_hand(o):
    "The accuracy's interval is about as wide as a bootstrap of rows, or of whole groups, has it."
    if task_of(o) != "classify":
        return
    frame = o.names["source"].frame.iloc[parts_of(o).test]
    right = np.array([a == b for a, b in zip(truth_of(o, frame), answers_of(o, frame))], float)
    codes = np.arange(len(right))
    if o.kind == "grouped":
        codes = pd.factorize(frame.customer)[0]
    hits, sizes = np.bincount(codes, right), np.bincount(codes)
    draws = np.random.default_rng(0).integers(len(sizes), size=(2000, len(sizes)))
    low, high = np.quantile(hits[draws].sum(1) / sizes[draws].sum(1), [.025, .975])
    m = o.report.metrics["accuracy"]
    if low == high:  # all right, or all wrong: a bootstrap knows no doubt, Wilson's interval does
        low, high = 1 - 3.84 / (len(sizes) + 3.84), 1
    ratio = (m.high - m.low) / (high - low)
    assert .75 < ratio < 2, f"the interval is {ratio:.2f} times as wide as a bootstrap has it"


def sides_are_apart(o):
    "Train, validation and test share no row, no text and no group, and keep the order of time."
    parts, frame = parts_of(o), o.names["source"]
    if o.kind == "tag":
        texts = frame.texts
    else:
        texts, frame = [" | ".join(map(str, np.atleast_1d(t))) for t in asked(frame.frame, o)], (
            frame.frame)
    learned = [*parts.train, *parts.valid]
    assert not {*parts.train} & {*parts.valid} and not {*learned} & {*parts.test}, "a row is twice"
    both = {texts[i] for i in learned} & {texts[i] for i in parts.test}
    assert o.kind == "tag" or not both, f"{len(both)} texts are on both sides"
    if o.kind == "grouped":
        both = {*frame.customer.iloc[learned]} & {*frame.customer.iloc[parts.test]}
        assert not both, f"{len(both)} customers are on both sides"
    if o.kind == "timed":
        day = frame.day.astype(int)
        later = (day.iloc[learned] > day.iloc[parts.test].min()).sum()
        assert not later, f"{later} rows to learn from are later than a test row"


def alone_as_in_a_batch(o):
    "Texts asked one by one, backwards and twice get the answers that they have in a batch."
    texts = asked(o.make(seed=7).head(24), o)
    def ask(some): return [np.asarray(p, float) for p in predict(opened(o), some)[1]]
    batch = ask(texts)
    for words, found in (("one by one", [ask([t])[0] for t in texts]), ("twice", ask(texts)),
                         ("backwards", ask(texts[::-1])[::-1])):
        for a, b in zip(batch, found):
            close(a, b, f"probabilities {words}")


def alike(a, b):
    "Two answers, whose probabilities may differ in their last digits."
    if isinstance(a, float):
        return abs(a - b) < 1e-4
    if isinstance(a, list) and a and isinstance(a[0], dict):
        a, b = ([{k: v for k, v in span.items() if k != "probability"} for span in spans]
                for spans in (a, b))
    return a == b


def tables_come_back(o):
    "Rows in order with all their columns, whatever the index is; a row without a text says so."
    frame = o.make(seed=5).head(12).assign(note=np.arange(12))
    names = ["text", "second"] if o.kind == "pair" else "text"
    plain = predict_frame(opened(o), frame, names)
    odd = frame.copy()
    odd.index = [3, 3, *range(9, -1, -1)]
    other = predict_frame(opened(o), odd, names)
    empty = frame.copy()
    empty.loc[4, "text"] = None
    third = predict_frame(opened(o), empty, names)
    for found, rows in ((other, range(12)), (third, [*range(4), *range(5, 12)])):
        assert found.note.tolist() == frame.note.tolist(), "the rows are others, or elsewhere"
        same = [alike(plain.prediction.iloc[i], found.prediction.iloc[i]) for i in rows]
        assert all(same), f"{same.count(False)} answers of a table with an odd index are others"
    assert third.error.iloc[4] and third.prediction.iloc[4] is None, "no reason for an empty text"


def hand_logits(path, texts):
    "Logits by transformers and a few lines: encoder and head as they lie on the disk."
    info = json.loads((path / "bundle.json").read_text())
    encoder = AutoModel.from_pretrained(path / "encoder").eval()
    tokenizer, head = AutoTokenizer.from_pretrained(path / "encoder"), load_file(
        path / "head.safetensors")
    t = tokenizer(*texts, padding=True, truncation=True, max_length=info["max_length"],
                  return_tensors="pt")
    with torch.no_grad():
        hidden, mask = encoder(**t).last_hidden_state, t["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return (mean @ head["linear.weight"].T + head["linear.bias"]).numpy()


def plain_tools_agree(o):
    "transformers, safetensors and a matrix product give the bundle's probabilities."
    if o.kind in ("lora", "windows", "tag"):
        return
    frame, info = o.make(seed=3).head(16), opened(o).info
    texts = (frame.text.tolist(), frame.second.tolist()) if o.kind == "pair" else (
        frame.text.tolist(),)
    logits, probs = hand_logits(bundle_path(o), texts), predict(opened(o), asked(frame, o))[1]
    if o.kind == "regress":
        return close(logits * info["settings"]["scale"] + info["settings"]["mean"], probs,
                     "numbers", 1e-3)
    if o.kind == "multilabel":
        return close(1 / (1 + np.exp(-logits)), probs, "probabilities")
    z = np.exp(logits / info["temperature"])
    close(z / z.sum(1, keepdims=True), probs, "probabilities")


def temperature_by_hand(o):
    "The temperature is the best one for the validation rows."
    if o.kind not in ("classify", "frozen", "grouped", "timed"):
        return
    frame, names = o.names["source"].frame.iloc[parts_of(o).valid], opened(o).labels.names
    logits = hand_logits(bundle_path(o), (frame.text.tolist(),)).astype(float)
    y = [names.index(v) for v in frame.label]

    def loss(log_t):
        z = logits / np.exp(log_t)
        return -(z[np.arange(len(y)), y] - np.log(np.exp(z).sum(1))).mean()

    best = float(np.exp(minimize_scalar(loss, bounds=(-3, 4), method="bounded").x))
    told = opened(o).info["temperature"]
    assert abs(np.log(told / best)) < .05, f"temperature {told:.3f}, best on validation {best:.3f}"


def thresholds_by_hand(o):
    "Each label's threshold is as good on the validation rows as any that can be tried."
    if o.kind != "multilabel":
        return
    frame = o.names["source"].frame.iloc[parts_of(o).valid]
    truth, probs = truth_of(o, frame), predict(opened(o), frame.text.tolist())[1]
    for i, name in enumerate(opened(o).labels.names):
        y = np.array([name in row for row in truth])
        told = f1_score(y, probs[:, i] >= opened(o).model.task.thresholds[i])
        best = max(f1_score(y, probs[:, i] >= t) for t in np.unique(probs[:, i]))
        assert told > best - .02, f"{name}: F1 {told:.3f} at its threshold, {best:.3f} is there"


def standardized_by_training_rows(o):
    if o.kind == "regress":
        y = o.names["source"].frame.label.iloc[parts_of(o).train].astype(float)
        told = opened(o).info["settings"]
        close([told["mean"], told["scale"]], [y.mean(), y.std(ddof=0)], "mean and spread")


def learned_rows_are_those_of_the_split(o):
    "The trainer had the texts and labels of the training rows, cut by the encoder's own tokenizer."
    if o.kind in ("tag", "windows"):
        return
    rows, frame = o.names["model"].trainer_.train_dataset, o.names["source"].frame
    some = parts_of(o).train[:40]
    assert len(rows) == len(parts_of(o).train), "other rows were trained on than those of the split"
    texts = asked(frame.iloc[some], o)
    tokenizer = AutoTokenizer.from_pretrained(o.backbone)
    for i, text in enumerate(texts):
        ids = tokenizer(*([text] if isinstance(text, str) else text), truncation=True,
                        max_length=o.given["max_length"])["input_ids"]
        assert ids == rows.tokens[i].tolist(), f"training row {i} has other tokens than its text"
    if task_of(o) in ("classify", "pair"):
        names = sorted(frame.label.unique())
        learned = [names[i] for i in rows.labels[:40]]
        assert learned == frame.label.iloc[some].tolist(), "labels were learned for other rows"


def what_was_asked_is_noted(o):
    "bundle.json has the labels in order and the length that was asked for."
    info = json.loads((bundle_path(o) / "bundle.json").read_text())
    assert info["max_length"] == o.given["max_length"], f"max_length is {info['max_length']}"
    if task_of(o) in ("classify", "pair"):
        names = sorted(set(o.frame.label))
        assert info["labels"] == names, f"labels are {info['labels']}, in the table {names}"


def frozen_weights_stay(o):
    "What was not to be trained is as the encoder's maker left it, to the bit."
    if o.kind not in ("frozen", "lora"):
        return
    theirs = AutoModel.from_pretrained(o.backbone).state_dict()
    mine = o.names["model"].trainer_.model.backbone.encoder.state_dict()
    same = [k for k in theirs if k in mine and "pooler" not in k]
    moved = [k for k in same if not torch.equal(theirs[k], mine[k])]
    assert same and not moved, f"{len(moved)} of {len(same)} frozen weights moved"


def weights_have_all_their_digits(o):
    "Weights that were trained in 32 bits are no numbers of 16 bits."
    head = load_file(bundle_path(o) / "head.safetensors")
    for name, w in head.items():
        if name == "linear.weight":
            kept = (w == w.half().float()) | (w == w.bfloat16().float())
            assert kept.float().mean() < .5, f"{kept.float().mean():.0%} of {name} fit in 16 bits"


def best_epoch_is_kept(o):
    "The newest weights are left, unless an earlier epoch was better by more than two errors."
    trainer = o.names["model"].trainer_
    scores = [row.get("score", -row.get("valid_loss", np.nan)) for row in trainer.state.history]
    top, noise = max(scores), 0.
    if "score" in trainer.state.history[0] and 0 <= top <= 1:
        noise = 2 * np.sqrt(top * (1 - top) / len(trainer.valid_dataset))
    wanted = [s for s in scores if s >= top - noise][-1]
    found = copy.copy(trainer).validate()
    now = found.get("score", -found["valid_loss"])
    assert abs(now - wanted) < 1e-4, f"score {now:.4f} is kept, {wanted:.4f} was to be: {scores}"


def seeds_count(o):
    "The same seed gives the same head, another seed another; training again gives the same."
    def start(seed):
        setup = FineTuningSetup(o.backbone, o.given.get("method", "full"), seed=seed, device="cpu")
        return setup.model(o.names["model"].trainer_.model.task).head.linear.weight
    assert torch.equal(start(0), start(0)), "the same seed begins elsewhere"
    assert not torch.equal(start(0), start(1)), "another seed begins at the same place"
    model = o.names["model"]
    if o.kind == "classify":
        again = type(model)(**model.get_params())
        again.fit(model.texts_, o.names["y"], valid=parts_of(o))
        a, b = (m.trainer_.model.head.linear.weight for m in (model, again))
        close(a.detach(), b.detach(), "weights of two runs with one seed", 1e-5)


def evidence_says_the_same(o):
    "evidence.json, the report and bundle.json have the same numbers."
    told = json.loads((Path(o.folder) / "evidence.json").read_text())
    for name, m in o.report.metrics.items():
        close([told["metrics"][name][k] for k in ("value", "low", "high")],
              [m.value, m.low, m.high], f"{name} in evidence.json", 1e-9)
        assert m.low <= m.value <= m.high, f"{name} lies outside of its interval"
    rows = {side: len(getattr(parts_of(o), side)) for side in ("train", "valid", "test")}
    assert told["data"]["rows"] == rows, f"{told['data']['rows']} in evidence.json, {rows} used"


CHECKS = [
    fresh_rows_are_answered_right, metrics_by_hand, classes_by_hand, baseline_by_hand,
    intervals_by_hand, sides_are_apart, alone_as_in_a_batch, tables_come_back, plain_tools_agree,
    temperature_by_hand, thresholds_by_hand, standardized_by_training_rows,
    learned_rows_are_those_of_the_split, what_was_asked_is_noted, frozen_weights_stay,
    weights_have_all_their_digits, best_epoch_is_kept, seeds_count, evidence_says_the_same]
