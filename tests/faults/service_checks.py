"""What is asked of every update, store of answers and export. What it compares with is made
without the product: by transformers, safetensors, sqlite3, or by counting."""
import hashlib
import json
from unittest import mock

import numpy as np
import onnxruntime
import torch
from insight_nb.ship import export
from insight_nb.ship.bundle import load_bundle
from insight_nb.ship.export import ExportRefused, export_bundle, load_plain, scaled_head
from insight_nb.ship.predict import predict
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from text_checks import bundle_path, close, hand_logits, opened
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

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
    "All new rows and a sample of old ones; no test row; a correction, not its old row."
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
    named = told["updates"][-1]["from"] == first["seal"]
    assert named, "bundle.json names another bundle before it"
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


# Feedback


def feedback_share_by_hand(o):
    "Answers that were drawn count, each as many times as its chance says; the others don't."
    drawn = o.rows[o.rows.id.isin(o.drawn)]
    weight = 1 / drawn.id.map(o.drawn).to_numpy(float)
    right = (drawn.answer == drawn.text.map(o.truth)).to_numpy()
    estimate = next(e for e in o.estimates if e.version == o.version)
    assert estimate.share.n == len(drawn), f"{estimate.share.n} answers count, {len(drawn)} drawn"
    close(estimate.share.value, weight[right].sum() / weight.sum(), "share of right answers", 1e-9)
    n = weight.sum()**2 / (weight**2).sum()
    p, z2 = estimate.share.value, 1.959964**2
    middle, half = p + z2 / 2 / n, (z2 * (p * (1 - p) / n + z2 / 4 / n**2))**.5
    wilson = [(middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)]
    close([estimate.share.low, estimate.share.high], wilson, "its interval")
    mine = o.rows[o.rows.version == o.version]
    truth = (mine.answer == mine.text.map(o.truth)).mean()
    told = estimate.share.value
    assert abs(told - truth) < .12, f"{told:.3f} is estimated, and in truth {truth:.3f}"


def feedback_labels_are_those_of_their_texts(o):
    "What was said of a text stands beside it, the last word of several."
    said = o.learned.set_index("text").label
    wrong = [text for text, label in said.items() if o.truth[text] != label]
    assert not wrong, f"{len(wrong)} of {len(said)} rows have another label than was said of them"
    assert len(said) > 60, f"{len(said)} rows come out, and more were corrected"


def feedback_rows_are_of_the_bundle(o):
    strange = [text for text in o.learned.text if text.startswith("another model")]
    assert not strange, f"{len(strange)} rows were answered by another bundle"


def feedback_sides_are_kept(o):
    "Answers that were drawn test, and those that were corrected unasked train."
    mine = o.rows[o.rows.version == o.version]
    drawn = {*mine.text[mine.id.isin(o.drawn)]}
    for side, texts in o.learned.groupby("side").text:
        wrong = sum((text in drawn) != (side == "test") for text in texts)
        assert not wrong, f"{wrong} rows are on the wrong side, {side or 'train'!r}"


def feedback_purge_leaves_nothing(o):
    "Neither a row nor a letter of what was to go; all the rest."
    assert not o.old & {*o.left.id}, f"{len(o.old & {*o.left.id})} answers of long ago are left"
    assert len(o.left) == len(o.rows) - len(o.old), f"{len(o.left)} answers are left"
    strange = {*o.corrected} - {*o.left.id}
    assert not strange, f"{len(strange)} corrections have no answer any more"
    letters = sum(text.encode() in o.bytes for text in o.rows.text[o.rows.id.isin(o.old)])
    assert not letters, f"{letters} texts that were deleted still stand in the file"


def feedback_hashes_are_keyed(o):
    "Where texts are not kept, none is in the file, and nobody can look for one by its hash."
    assert o.secret.encode() not in o.hashed, "a text is kept, and only its hash was to be"
    assert o.digests[0] != o.digests[1], "two stores give a text the same hash: it has no key"
    for name in ("blake2b", "sha256", "md5"):
        for text in (o.secret, json.dumps([o.secret])):
            plain = hashlib.new(name, text.encode()).hexdigest()
            assert not plain.startswith(o.digests[0]), f"the hash is a {name} without a key"


# Export


def softmax(z): return np.exp(z) / np.exp(z).sum(1, keepdims=True)
def sigmoid(z): return 1 / (1 + np.exp(-z))


def same_rows(names, probs, bundle, texts, words):
    "The columns of an export, by its own names, against the bundle's."
    want = predict(bundle, texts)[1]
    own = list(bundle.labels.names)
    assert sorted(names) == sorted(own), f"{words} names {names}"
    close(probs[:, [names.index(n) for n in own]], want, f"probabilities by {words}")


def export_by_transformers_alone(o):
    folder, bundle = o.folder / "transformers", load_bundle(o.bundles / "one", device="cpu")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        o.asked, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        probs = softmax(model(**tokens).logits.double().numpy())
    names = [model.config.id2label[i] for i in range(probs.shape[1])]
    same_rows(names, probs, bundle, o.asked, "transformers")


def export_by_onnxruntime_alone(o):
    folder, bundle = o.folder / "onnx", load_bundle(o.bundles / "several", device="cpu")
    told = json.loads((folder / "export.json").read_text("utf-8"))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokens = AutoTokenizer.from_pretrained(folder)(
        o.asked, truncation=True, padding=True, return_tensors="np")
    names = [i.name for i in session.get_inputs()]
    probs = sigmoid(session.run(None, {k: tokens[k] for k in names})[0].astype(float))
    same_rows(told["labels"], probs, bundle, o.asked, "onnxruntime")
    given = [{n for n, yes in zip(told["labels"], row) if yes}
             for row in probs >= told["settings"]["thresholds"]]
    same = [a == set(b) for a, b in zip(given, predict(bundle, o.asked)[0])]
    assert all(same), f"{same.count(False)} rows have other labels by the thresholds of the export"


def export_vectors_alone(o):
    "The first token's vector, as the bundle's head reads it, by transformers, of length one."
    encoder = o.bundles / "one" / "encoder"
    tokens = AutoTokenizer.from_pretrained(encoder)(
        o.asked, truncation=True, max_length=24, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(encoder).eval()(**tokens).last_hidden_state
    first = hidden[:, 0].numpy()
    got = SentenceTransformer(str(o.folder / "vectors"), device="cpu").encode(o.asked)
    close(got, first / np.linalg.norm(first, axis=1, keepdims=True), "vectors")


def export_certificates_say_what_was_asked(o):
    bundle = load_bundle(o.bundles / "one", device="cpu")
    told = json.loads((o.folder / "transformers" / "certificate.json").read_text())
    assert told["rows"] == len(o.asked), f"{told['rows']} rows were asked, {len(o.asked)} given"
    right = np.mean([a == b for a, b in zip(o.labels, predict(bundle, o.asked)[0])])
    sides = [told["metric"][side] for side in ("before", "after")]
    close(sides, [right] * 2, "share of rows right")
    assert told["equal_answers"] == 1 and told["largest_difference"] < 1e-4, told


def export_weights_have_all_their_digits(o):
    weights = load_file(o.folder / "transformers" / "model.safetensors")
    short = [name for name, w in weights.items() if w.dtype != torch.float32]
    assert not short, f"{len(short)} tensors have 16 bits, and the certificate says 32"


def export_refuses_what_is_spoilt(o):
    "An export whose weights were turned round just before they were written."
    turned = scaled_head(load_plain(o.bundles / "one"))
    with mock.patch.object(export, "scaled_head", lambda bundle: [-part for part in turned]):
        try:
            export_bundle(o.bundles / "one", "transformers", o.folder / "spoilt", o.asked)
        except ExportRefused:
            return
    raise AssertionError("an export with turned weights has a certificate")


CHECKS = [check for name, check in list(globals().items()) if name.startswith(
    ("update_", "feedback_", "export_")) and name != "export_bundle"]
