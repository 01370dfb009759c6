"""Faults in what comes after training: updates, answers that are corrected, and exports."""
import hashlib
import json
from contextlib import contextmanager

import numpy as np
import pytest
from harness import around, registrar
from insight_nb.base.databases import Database
from insight_nb.jobs import update, update_rows
from insight_nb.models import heads, native
from insight_nb.ship import export, feedback
from insight_nb.ship.feedback import FeedbackStore
from insight_nb.train import inference

FAULTS = []
fault = registrar(FAULTS)


# Update


@fault("old head rows lost", "the longer head begins anew", "update", "guard: old_head_rows",
       "did not begin with its old rows")
def _(patch): patch.setattr(update, "extend_head", lambda head, old: head)


@fault("old head rows swapped", "the old rows of the longer head are swapped", "update",
       "guard: old_head_rows", "did not begin with its old rows")
def _(patch):
    def swap(old, head, known):
        old(head, known)
        head.linear.weight.data[:2] = known.linear.weight.data.flip(0)
        return head
    around(patch, update, "extend_head", swap)


@fault("new labels not last", "labels of an update stand in the order of the alphabet", "update",
       "error", "in another order: plan them")
def _(patch):
    around(patch, update_rows, "all_labels", lambda old, *a: tuple(sorted(old(*a))))


@fault("old rows not replayed", "a strategy with replay learns new rows alone", "update",
       "guard: forgetting", "points on 100 old test rows")
def _(patch):
    def new_alone(old, self, strategy):
        used = old(self, strategy)
        return used[~self.rows.is_old(used)]
    around(patch, update.BundleUpdate, "used_rows", new_alone)


@fault("old rows hardly drawn", "old rows are a thousandth of what is drawn", "update",
       "guard: forgetting", "points on 100 old test rows")
def _(patch):
    around(patch, update, "replay_sampling_weights", lambda old, is_old, share: old(
        is_old, share / 500))


@fault("kept to itself", "the divergence is from the new model, not from the old one", "update",
       "test: update_targets_are_what_the_old_bundle_says", "logits to keep to")
def _(patch):
    def own(old, self, strategy, setup, model, old_model=None):
        return old(self, strategy, setup, model, model)
    around(patch, update.BundleUpdate, "prepare_trainer", own)


@fault("dropout in what is kept to", "the old model answers while a shared part is in training",
       "update", "test: update_targets_are_what_the_old_bundle_says", "logits to keep to")
def _(patch):
    @contextmanager
    def outermost(module):  # whether it is in training is asked of the whole, not of its parts
        was = module.training
        if was:
            module.eval()
        yield
        if was:
            module.train()
    patch.setattr(inference, "eval_mode", outermost)


@fault("old logits permuted", "the old model's labels are swapped in what is kept to", "update",
       "test: update_targets_are_what_the_old_bundle_says", "logits to keep to")
def _(patch):
    around(patch, update, "labels_and_logits", lambda old, labels, logits: old(
        labels, logits[:, ::-1]))


@fault("before is after", "the old bundle is measured by the new one's answers", "update",
       "test: update_shares_by_hand", "old_test before")
def _(patch):
    def same(old, self, name="before"): return old(self, next(iter(self.runs)))
    around(patch, update.BundleUpdate, "correct", same)


@fault("old and new tests swapped", "forgetting is measured on the new test rows", "update",
       "test: update_shares_by_hand", "old_test before")
def _(patch): around(patch, update.BundleUpdate, "old_tests", lambda old, self: ~old(self))


@fault("old test learned", "old test rows are among the old rows that are replayed", "update",
       "guard: split_duplicates", "among the rows that were trained on")
def _(patch):
    around(patch, update.BundleUpdate, "used_rows", lambda old, self, strategy: np.sort(
        np.concatenate([old(self, strategy), self.rows.parts.test[:40]])))


@fault("corrections lost", "of a text that came twice, the first row counts", "update",
       "test: update_learns_rows_to_learn_from", "before they were corrected")
def _(patch):
    around(patch, update_rows, "keep_last", lambda old, frame: old(frame.iloc[::-1]).iloc[::-1])


@fault("old temperature", "the new bundle has the temperature of the one before", "update",
       "guard: row_order", "rows came back elsewhere")
def _(patch):
    around(patch, update, "save_bundle", lambda old, path, model, length, temperature, facts: old(
        path, model, length, 4., facts))


@fault("saved before training", "the new bundle has the weights of the old one", "update",
       "guard: reload_equal", "weights of the bundle are not those in memory")
def _(patch):
    def untrained(old, self, name, *args, **how):
        model = self.runs[name].trainer.model
        state = {k: v.clone() for k, v in model.state_dict().items()}
        first = update.open_classifier(self.path, "cpu").model
        model.backbone.load_state_dict(first.backbone.state_dict())
        update.extend_head(model.head, first.head)
        try:
            return old(self, name, *args, **how)
        finally:
            model.load_state_dict(state)
    around(patch, update.BundleUpdate, "save", untrained)


@fault("test rows kept", "the rows that a bundle keeps for the next update are test rows", "update",
       "test: update_keeps_rows_to_learn_from", "kept rows are test rows")
def _(patch):
    def tested(old, self, *args, **how):
        parts = self.rows.parts
        self.rows.parts = update.replace(parts, train=parts.test)
        try:
            return old(self, *args, **how)
        finally:
            self.rows.parts = parts
    around(patch, update.BundleUpdate, "save", tested)


@fault("origin lost", "bundle.json names no bundle before", "update",
       "test: update_says_where_it_comes_from", "names another bundle")
def _(patch):
    around(patch, update.BundleUpdate, "describe_update", lambda old, self, name: old(
        self, name) | {"from": ""})


# Feedback


@fault("corrections count as drawn", "an answer that a user corrects counts as drawn at random",
       "feedback", "test: feedback_share_by_hand", "answers count")
def _(patch):
    def note(old, self, key=None, *args, **how):
        key = old(self, key, *args, **how)
        with self.db.transaction() as sql:
            sql.execute("update answers set chance = 1 where id = ?", (key,))
        return key
    around(patch, FeedbackStore, "correct", note)


@fault("chances ignored", "each answer that was drawn stands for one", "feedback",
       "test: feedback_share_by_hand", "share of right answers")
def _(patch):
    def alike(old, self, found=None):
        found = self.frame() if found is None else found
        return old(self, found.assign(chance=found.chance.where(found.chance.isna(), 1.)))
    around(patch, FeedbackStore, "estimates", alike)


@fault("chance not noted", "answers that are drawn later have a chance of 1", "feedback",
       "test: feedback_share_by_hand", "share of right answers")
def _(patch):
    def sure(old, self, pool, n):
        rows = old(self, pool, n)
        with self.db.transaction() as sql:
            sql.executemany("update answers set chance = 1 where id = ?", [(k,) for k in rows.id])
        return rows
    around(patch, FeedbackStore, "draw", sure)


@fault("ids of other texts", "the ids of a sample stand one row below their texts", "feedback",
       "error", "is to another text")
def _(patch):
    around(patch, feedback, "_to_label", lambda old, rows: (
        lambda table: table.assign(id=np.roll(table.id, 1)))(old(rows)))


@fault("labels of other rows", "the labels of a table stand one row below their texts", "feedback",
       "test: feedback_labels_are_those_of_their_texts", "another label than was said of them")
def _(patch):
    around(patch, FeedbackStore, "import_table", lambda old, self, frame, **how: old(
        self, frame.assign(label=np.roll(frame.label, 1)), **how))


@fault("first word counts", "of two corrections the first one counts", "feedback",
       "test: feedback_labels_are_those_of_their_texts", "another label than was said of them")
def _(patch):
    around(patch, Database, "read", lambda old, self, words, values=(): old(
        self, words.replace("max(rowid)", "min(rowid)"), values))


@fault("all is right", "each correction counts as a confirmation", "feedback",
       "test: feedback_share_by_hand", "share of right answers")
def _(patch): patch.setattr(feedback, "is_right", lambda task, answer, label: True)


@fault("interval of all rows", "the interval is that of four times as many rows", "feedback",
       "test: feedback_share_by_hand", "its interval")
def _(patch):
    around(patch, feedback, "wilson_interval", lambda old, right, n: old(4 * right, 4 * n))


def on_side(patch, side):
    "All rows of the feedback are on one side."
    def move(old, *args):
        rows, said = old(*args)
        return rows.assign(side=side), said
    around(patch, update_rows, "feedback_rows", move)


@fault("drawn answers train", "answers that were drawn to test are trained on", "feedback",
       "guard: fair_test", "are among the rows to train on")
def _(patch):
    on_side(patch, "")


@fault("corrections test", "answers that users chose to correct are test rows", "feedback",
       "guard: fair_test", "people correct what looks wrong")
def _(patch):
    on_side(patch, "test")


@fault("rows of another bundle", "corrections of another bundle's answers are learned", "feedback",
       "test: feedback_rows_are_of_the_bundle", "answered by another bundle")
def _(patch):
    patch.setattr(update_rows, "_of_bundle", lambda found, *_: found[
        found.label.notna() & found.texts.notna()])


@fault("hash without key", "texts are hashed without the store's key", "feedback",
       "test: feedback_hashes_are_keyed", "it has no key")
def _(patch):
    patch.setattr(FeedbackStore, "digest", lambda self, texts: hashlib.sha256(
        json.dumps([texts] if isinstance(texts, str) else list(texts)).encode()).hexdigest())


@fault("texts kept unasked", "a store that is to keep hashes keeps texts", "feedback",
       "test: feedback_hashes_are_keyed", "only its hash was to be")
def _(patch):
    around(patch, FeedbackStore, "__init__", lambda old, self, path, keep_texts=True, **how: old(
        self, path, True, **how))


@fault("purge leaves rows", "days count as twice as long", "feedback",
       "test: feedback_purge_leaves_nothing", "answers of long ago are left")
def _(patch):
    around(patch, FeedbackStore, "purge", lambda old, self, days: old(self, 2 * days))


@fault("purge leaves corrections", "what was said of an answer outlives it", "feedback",
       "test: feedback_purge_leaves_nothing", "corrections have no answer any more")
def _(patch):
    def outlive(old, self, days):
        said = self.db.read("select * from corrections")
        gone = old(self, days)
        with self.db.transaction() as sql:
            sql.execute("delete from corrections")
            sql.executemany("insert into corrections values (?, ?, ?, ?)", said)
        return gone
    around(patch, FeedbackStore, "purge", outlive)


@fault("purge leaves letters", "the space of deleted rows is not given back", "feedback",
       "test: feedback_purge_leaves_nothing", "still stand in the file")
def _(patch): patch.setattr(Database, "shrink", lambda self: None)


# Export


REFUSED = "have the same answer as the bundle's"


@fault("certificate of itself", "an export is compared with itself, and its head is another",
       "export", "test: export_by_transformers_alone", "probabilities by transformers")
def _(patch):
    spoil_head(patch)
    around(patch, export, "_certify_answers", compare_with_itself)


@fault("certificate that can't fail", "an export is compared with itself", "export",
       "test: export_refuses_what_is_spoilt", "has a certificate")
def _(patch): around(patch, export, "_certify_answers", compare_with_itself)


def compare_with_itself(old, trial, run, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "predict", lambda bundle, texts: (None, run(texts)))
        return old(trial, run, *args)


def spoil_head(patch):
    around(patch, export, "scaled_head", lambda old, bundle: [
        part.roll(1, 0) for part in old(bundle)])


@fault("head permuted in the export", "the rows of the head are exported in another order",
       "export", "error", REFUSED)
def _(patch): spoil_head(patch)


@fault("labels permuted in the export", "each label of the export has the name of the next",
       "export", "error", REFUSED)
def _(patch):
    def turn(old, bundle):
        model = old(bundle)
        names = model.config.id2label
        model.config.id2label = {i: names[(i + 1) % len(names)] for i in names}
        return model
    around(patch, export, "to_transformers", turn)


@fault("labels permuted beside a graph", "export.json names the labels backwards", "export",
       "error", REFUSED)
def _(patch): told(patch, lambda facts: facts | {"labels": facts["labels"][::-1]})


@fault("thresholds lost in the export", "export.json has no thresholds", "export", "error", REFUSED)
def _(patch):
    told(patch, lambda facts: facts | {"settings": {
        k: v for k, v in facts["settings"].items() if k != "thresholds"}})


def told(patch, change):
    def write(old, trial):
        old(trial)
        file = trial.folder / "export.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    patch.setitem(export._TARGETS, "onnx", (
        lambda trial: write(export._write_onnx, trial), export.onnx_runner))


@fault("temperature lost in the export", "probabilities are as sharp as before calibration",
       "export", "error", REFUSED)
def _(patch):
    around(patch, export, "scaled_head", lambda old, bundle: [
        part * bundle.info["temperature"] for part in old(bundle)])


@fault("tokenizer of another model exported", "words have other numbers in the saved tokenizer",
       "export", "error", REFUSED)
def _(patch):
    def other(old, trial):
        old(trial)
        file = trial.folder / "tokenizer.json"
        made = json.loads(file.read_text())
        words = made["model"]["vocab"]
        late = [w for w, i in words.items() if i > 2000]
        words.update(zip(late, [words[w] for w in late[40:] + late[:40]]))
        file.write_text(json.dumps(made))
    around(patch, export, "_write_tokenizer", other)


@fault("length lost in the export", "the exported tokenizer cuts at 6 tokens", "export", "error",
       REFUSED)
def _(patch):
    def short(old, trial):
        trial.bundle.model.backbone.tokenizer.model_max_length = 6
        trial.bundle.model.backbone.tokenizer.save_pretrained(trial.folder)
    around(patch, export, "_write_tokenizer", short)


@fault("length unlimited in the export", "the exported tokenizer cuts nothing", "export", "error",
       REFUSED)
def _(patch):
    def long(old, trial):
        trial.bundle.model.backbone.tokenizer.model_max_length = 400
        trial.bundle.model.backbone.tokenizer.save_pretrained(trial.folder)
    around(patch, export, "_write_tokenizer", long)


@fault("mean for first token", "a graph pools the mean where the model reads the first token",
       "export", "error", REFUSED)
def _(patch):
    def mean(old, self, bundle):
        old(self, bundle)
        self.model.head.pool = heads.POOLS["mean"]
    around(patch, export._Whole, "__init__", mean)


@fault("mean vector for first token", "the exported encoder says that it takes the mean",
       "export", "error", REFUSED)
def _(patch):
    def mean(old, file, content):
        if "pooling_mode_mean_tokens" in content:
            content = content | {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
        old(file, content)
    around(patch, native, "_write", mean)


@fault("16 bits in the export", "an export in 32 bits is rounded to 16", "export", "error", REFUSED)
def _(patch):
    around(patch, export, "to_transformers", lambda old, bundle: old(bundle).half())


@fault("rounded to 16 bits", "weights are rounded to bfloat16, and saved as 32 bits", "export",
       "error", REFUSED)
def _(patch):
    around(patch, export, "to_transformers", lambda old, bundle: old(bundle).bfloat16().float())


@fault("first rows asked", "a certificate asks the first five rows", "export",
       "test: export_certificates_say_what_was_asked", "rows were asked")
def _(patch):
    def few(old, *args):
        texts, truth = old(*args)
        return texts[:5], truth and truth[:5]
    around(patch, export, "rows_to_ask", few)


@fault("metric of other labels", "the certificate's metric has labels one row too low", "export",
       "test: export_certificates_say_what_was_asked", "share of rows right")
def _(patch):
    around(patch, export, "read_truth", lambda old, *args: np.roll(old(*args), 1, axis=0))


SERVICE_FAULTS = FAULTS
