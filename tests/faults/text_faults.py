"""Faults in runs for texts of other kinds, and in what all of them are measured by."""
import numpy as np
import torch
from classify_faults import FAULTS as CLASSIFY
from harness import around, registrar, ungroup
from insight_nb.data import split as splits
from insight_nb.data import tags, targets
from insight_nb.eval import metrics, report, spans
from insight_nb.jobs import span_tagger, tagging, text_estimators, training
from insight_nb.models import adapters, tasks
from insight_nb.ship import bundle, predict
from insight_nb.train import trainer

FAULTS = []
fault = registrar(FAULTS)


# Measured


@fault("swapped arguments", "the confusion matrix gets predictions as truth", "classify",
       "test: classes_by_hand", "of ")
def _(patch):
    around(patch, report, "confusion", lambda old, y, p, k: old(p, y, k))


@fault("micro for macro", "macro F1 is the accuracy", "classify", "test: metrics_by_hand",
       "macro F1")
def _(patch):
    def micro(old, y, probs, **how):
        found = old(y, probs, **how)
        return found | {"macro_f1": found["accuracy"]}
    around(patch, report, "evaluate", micro)


@fault("majority of the test rows", "the baseline is the most frequent label of the test rows",
       "timed", "test: baseline_by_hand", "accuracy of the majority class")
def _(patch):
    around(patch, report.Report, "measure", lambda old, self, y, p, learned, *a: old(
        self, y, p, np.full(9, np.bincount(y).argsort()[-2]), *a))


@fault("intervals by rows", "rows of one customer count as independent", "grouped",
       "test: intervals_by_hand", "times as wide as a bootstrap")
def _(patch):
    around(patch, report.Report, "measure", lambda old, self, y, p, learned, before, groups: old(
        self, y, p, learned, before, None))


@fault("narrow intervals", "intervals are of 50 %, not of 95 %", "classify",
       "test: intervals_by_hand", "times as wide as a bootstrap")
def _(patch):
    around(patch, metrics, "proportion_metric", lambda old, right, groups=None, level=.95: old(
        right, groups, .5))


@fault("temperature of the test rows", "the temperature is fitted on the test rows", "classify",
       "guard: threshold_unseen", "was chosen on other rows")
def _(patch):
    def tune(old, self, logits, labels):
        old(self, logits, labels)
        parts = self.parts_
        rows = training.token_dataset([self.texts_[i] for i in parts.test],
                                      self.setup_.encoder.tokenizer, self.setup_.length)[0]
        return text_estimators.fit_temperature(
            text_estimators.predict_logits(self.trainer_.model, rows),
            self.encode([self.y_[i] for i in parts.test]))
    around(patch, text_estimators.TextClassifier, "tune", tune)


# Split


@fault("groups ignored", "a customer's rows may be on both sides", "grouped", "guard: group_leak",
       "are in training and in the test")
def _(patch):
    ungroup(patch)


@fault("future rows in training", "rows are split at random, whatever their time is", "timed",
       "guard: time_leak", "rows to learn from are later than the oldest test row")
def _(patch):
    around(patch, splits, "_by_time", lambda old, times, *a: old(
        np.random.default_rng(0).permutation(len(times)), *a))


# Adapters


@fault("frozen layer moves", "the encoder of method frozen is trained a little", "frozen",
       "guard: adapters_changed", "that were to stay as they are have changed")
def _(patch):
    def shake(old, self):
        with torch.no_grad():
            self.model.backbone.encoder.encoder.layer[0].output.dense.bias.add_(1e-3)
        return old(self)
    around(patch, trainer.Trainer, "end_epoch", shake)


@fault("base moves", "the weights under the adapter are trained as well", "lora",
       "guard: adapters_changed", "that were to stay as they are have changed")
def _(patch):
    def shake(old, self):
        with torch.no_grad():
            self.model.backbone.encoder.embeddings.word_embeddings.weight.mul_(1.001)
        return old(self)
    around(patch, trainer.Trainer, "end_epoch", shake)


@fault("adapter not trained", "the adapter's weights get no gradient", "lora",
       "guard: adapters_changed", "are as they were before training")
def _(patch):
    def still(old, *args):
        return [g | {"params": [p for p in g["params"] if p.dim() == 1 or p.shape[0] < 8 > p.ndim
                                and p.shape[0] == 2]} for g in old(*args)]
    around(patch, trainer, "param_groups", still)


@fault("adapter not saved", "the adapter is saved as zeros", "lora", "guard: reload_equal",
       "weights of the bundle are not those in memory")
def _(patch):
    around(patch, bundle, "save_file", lambda old, tensors, file: old(
        {k: v * ("adapter" not in str(file)) for k, v in tensors.items()}, file))


@fault("adapter added twice", "an opened adapter is merged, and stays on as well", "lora",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    def twice(old, self, w): return old(self, old(self, w))
    def opened(old, *args):
        model = old(*args)
        patch_after(patch, twice)
        return model
    around(patch, bundle, "load_adapter", opened)


def patch_after(patch, change): around(patch, adapters.LoRA, "weight", change)


@fault("alpha lost", "an opened adapter has the scale of another alpha", "lora",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    around(patch, bundle, "Adapter", lambda old, backbone, method, **options: old(
        backbone, method, **options | {"alpha": 8}))


# Windows, pairs, several labels, numbers


@fault("windows lost", "an opened bundle cuts long texts", "windows", "guard: reload_equal",
       "logits differ by at most")
def _(patch):
    around(patch, bundle, "read_info", lambda old, path: old(path) | {"overlap": None})


@fault("overlap lost", "an opened bundle reads windows that don't overlap", "windows",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    around(patch, bundle, "read_info", lambda old, path: old(path) | {"overlap": 0})


@fault("pair swapped", "a table's two columns are read in the other order", "pair",
       "guard: row_order", "rows came back elsewhere")
def _(patch):
    def swap(old, *args):
        pairs, good, faults = old(*args)
        return [(b, a) for a, b in pairs], good, faults
    around(patch, predict, "read_inputs", swap)


@fault("segments lost", "the bundle does not say which text a token is in", "pair",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    around(patch, predict, "tokenize_pairs", lambda old, *a: (
        lambda t, segments: (t, segments * 0))(*old(*a)))


@fault("thresholds lost", "an opened bundle gives each label from one half on", "multilabel",
       "guard: row_order", "rows came back elsewhere")
def _(patch):
    around(patch, tasks.MultiLabelTask, "settings", lambda old, self: {
        k: v for k, v in old(self).items() if k != "thresholds"})


@fault("thresholds for another label", "each label has the threshold of the next", "multilabel",
       "test: thresholds_by_hand", "at its threshold")
def _(patch):
    around(patch, text_estimators, "best_thresholds", lambda old, *a: np.roll(old(*a), 1))


@fault("thresholds of the test rows", "thresholds are chosen on rows at random", "multilabel",
       "test: thresholds_by_hand", "at its threshold")
def _(patch):
    around(patch, text_estimators, "best_thresholds", lambda old, y, p: old(y[::-1], p))


@fault("columns of labels shifted", "an indicator stands one column beside its label",
       "multilabel", "guard: label_order", "training rows were learned under another name")
def _(patch):
    around(patch, targets, "binarize_labels", lambda old, *a: np.roll(old(*a), 1, axis=1))


@fault("scaled by all rows", "targets are standardized by all rows", "regress",
       "guard: fitted_inside", "other rows were used to standardize them")
def _(patch):
    def whole(old, self, y, options):
        import inspect
        return old(self, inspect.currentframe().f_back.f_back.f_locals["y"], options)
    around(patch, text_estimators.TextRegressor, "make_task", whole)


@fault("scale lost", "an opened bundle has mean 0 and scale 1", "regress", "guard: row_order",
       "rows came back elsewhere")
def _(patch):
    around(patch, tasks.RegressionTask, "settings", lambda old, self: {})


@fault("R² swapped", "R² takes predictions as the truth", "regress", "test: metrics_by_hand", "R²")
def _(patch):
    def swap(old, y, p, groups=None):
        found = old(y, p, groups)
        return found | {"r2": old(p, y, groups)["r2"]} if np.ptp(p) else found
    around(patch, text_estimators, "regression_metrics", swap)


# Tags


@fault("spans shifted", "a tag counts for the word after its own", "tag",
       "guard: as_shipped", "spans end inside words, or words are cut otherwise")
def _(patch):
    around(patch, predict, "word_to_char_spans", lambda old, words, spans: [
        (a + 1, b + 1, kind) for a, b, kind in old(words, spans)])


@fault("tags shifted in training", "the tags of a text stand one word too late", "tag",
       "test: fresh_rows_are_answered_right", "on 120 fresh rows")
def _(patch):
    around(patch, tagging.TaggingRows, "label_ids", lambda old, self, side: np.roll(
        old(self, side), 1))


@fault("kinds swapped", "the head's rows for two kinds are saved swapped", "tag",
       "guard: reload_equal", "weights of the bundle are not those in memory")
def _(patch):
    around(patch, bundle, "save_file", lambda old, tensors, file: old(
        {k: v.roll(2, 0) if k.startswith("linear") else v for k, v in tensors.items()}, file))


@fault("casing lost", "an opened tagger does not read the casing of words", "tag",
       "guard: reload_equal", "head.casing.weight first")
def _(patch):
    def blind(old, *args):
        model = old(*args)
        model.head.casing.weight.data.zero_()
        return model
    around(patch, bundle, "load_whole", blind)


@fault("words for spans", "F1 counts words, not whole spans", "tag", "test: metrics_by_hand",
       "F1 of ")
def _(patch):
    def words(truth, found):
        out = {"": []}
        for a, b in zip(truth, found):
            out[""].append([sum(t != "O" for t in a), sum(t != "O" for t in b),
                            sum(s == t != "O" for s, t in zip(a, b))])
        return {k: np.array(v) for k, v in out.items()} | {
            k: v for k, v in spans.span_counts(truth, found).items() if k}
    for place in (tagging, span_tagger):
        patch.setattr(place, "span_counts", words)


@fault("windows joined wrongly", "the second window of a text overwrites the first", "tag",
       "test: fresh_rows_are_answered_right", "on 120 fresh rows")
def _(patch):
    around(patch, tags.TagWindows, "words", lambda old, self, logits: old(
        self, np.roll(logits, 1, axis=0)))


TEXT_FAULTS = CLASSIFY + FAULTS
