"""What is asked of every update, store of answers and export. What it compares with is made
without the product: by transformers, safetensors, sqlite3, or by counting."""
import json

import numpy as np
from insight_nb.ship.bundle import load_bundle
from insight_nb.ship.predict import predict
from text_checks import bundle_path, close, hand_logits, opened

# Update


def said_of(o): return json.loads((bundle_path(o) / "bundle.json").read_text())
def first_of(o): return json.loads((o.first / "bundle.json").read_text())


def share_right(bundle, frame):
    found = predict(bundle, frame.text.tolist())[0]
    return float(np.mean([a == b for a, b in zip(frame.label, found)]))


def update_answers_fresh_rows_right(o):
    found = share_right(opened(o), o.make(seed=99))
    assert found > .75, f"{found:.3f} on 120 fresh rows, expected at least 0.75"


def update_shares_by_hand(o):
    "What the bundles of before and after have on both tests, asked as users ask them."
    told = json.loads((o.folder / "evidence.json").read_text())["update"]["strategies"]
    first = load_bundle(o.first, device="cpu")
    for name, bundle in (("before", first), (o.strategy, opened(o))):
        for side, table in (("old_test", "old_test"), ("new_test", "test")):
            close(told[name][side], share_right(bundle, o.frame[table]), f"{side} {name}", 1e-6)
    gain = told[o.strategy]["old_test"] - told["before"]["old_test"]
    close(told[o.strategy]["backward_transfer"]["value"], gain, "backward transfer", 1e-6)


def update_learns_rows_to_learn_from(o):
    "All new rows and at most 20 old ones of each label; no test row; a correction, not its old row."
    job = o.names["job"]
    frame = job.rows.source.frame.iloc[job.runs[o.strategy].used]
    tested = {*o.frame["old_test"].text, *o.frame["test"].text}
    both = len(tested & {*frame.text})
    assert not both, f"{both} test texts were learned"
    old = frame[frame.period == "old"]
    assert 10 <= len(old) and old.label.value_counts().max() <= 40, f"{len(old)} old rows replayed"
    right = o.frame["table"].set_index("text").label
    wrong = sum(right.get(text, label) != label for text, label in zip(frame.text, frame.label))
    assert not wrong, f"{wrong} rows were learned as they were before they were corrected"


def update_targets_are_what_the_old_bundle_says(o):
    "The divergence holds the model to the old bundle's logits, where those are right."
    if "distill" not in o.strategy:
        return
    job = o.names["job"]
    run = job.runs[o.strategy]
    texts = job.rows.source.frame.text.iloc[run.used].tolist()
    want = hand_logits(o.first, (texts,))
    got = run.trainer.train_dataset.labels[:, 1:]
    kept = np.isfinite(got).all(1)
    assert kept.sum() > 20, f"{kept.sum()} rows are held to the old answers"
    close(got[kept], want[kept], "logits to keep to", 1e-3)


def update_is_drawn_as_asked(o):
    "Half of what an epoch draws are old rows."
    job = o.names["job"]
    run = job.runs[o.strategy]
    weights = np.asarray(run.trainer.train_dataset.sampling_weights)
    share = weights[job.rows.is_old(run.used)].sum() / weights.sum()
    close(share, .5, "share of old rows in what is drawn", 1e-6)


def update_says_where_it_comes_from(o):
    told, first, job = said_of(o), first_of(o), o.names["job"]
    assert told["updates"][-1]["from"] == first["seal"], "bundle.json names another bundle before it"
    assert told["labels"] == [*first["labels"], "fair"], f"labels are {told['labels']}"
    used = job.rows.is_old(job.runs[o.strategy].used)
    rows = told["updates"][-1]["rows"]
    assert rows == {"old": int(used.sum()), "new": int((~used).sum())}, f"{rows} rows are told"


def update_leaves_the_first_bundle(o):
    assert o.untouched, "the bundle that was updated has changed"


def update_keeps_rows_to_learn_from(o):
    "The rows in the bundle are training rows: the next update may test on the others."
    lines = (bundle_path(o) / "replay.jsonl").read_text("utf-8").splitlines()
    kept = {json.loads(line)["text"] for line in lines}
    tested = kept & {*o.frame["old_test"].text, *o.frame["test"].text}
    assert kept and not tested, f"{len(tested)} of {len(kept)} kept rows are test rows"


CHECKS = [check for name, check in list(globals().items()) if name.startswith(
    ("update_", "feedback_", "export_"))]
