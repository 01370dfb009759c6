"""Faults in runs of the recipe classify: how it is trained, saved, opened and asked."""
import numpy as np
import torch
from harness import around, registrar
from insight_nb.data import split as splits
from insight_nb.jobs import setup, text_estimators, training
from insight_nb.models import backbone, heads, tasks
from insight_nb.ship import bundle, predict
from insight_nb.train import optim, trainer

FAULTS = []
fault = registrar(FAULTS, "classify")


# Saved and opened


def saved(patch, change):
    "What is done to a model's tensors just before a file of them is written."
    around(patch, bundle, "save_file", lambda old, tensors, file: old(
        {k: change(k, v) for k, v in tensors.items()} if "head" in str(file) else tensors, file))


@fault("head permuted", "the rows of the head are saved in another order", "guard: reload_equal",
       "weights of the bundle are not those in memory")
def _(patch): saved(patch, lambda k, v: v.roll(1, 0))


@fault("head not saved", "the head is saved as it was before training", "guard: reload_equal",
       "weights of the bundle are not those in memory")
def _(patch): saved(patch, lambda k, v: torch.randn_like(v) * .02)


@fault("bias lost", "the head is saved with a bias of zero", "guard: reload_equal",
       "head.linear.bias first")
def _(patch): saved(patch, lambda k, v: v * (k != "linear.bias"))


@fault("16 bits saved as 32", "the head is rounded to 16 bits when it is saved",
       "guard: reload_equal", "they were cut, or saved before training ended")
def _(patch): saved(patch, lambda k, v: v.half().float())


@fault("16 bits from the start", "the head is rounded to 16 bits after training, in memory",
       "test: weights_have_all_their_digits", "fit in 16 bits")
def _(patch):
    def cut(old, self, *args):
        head = self.trainer_.model.head.linear
        head.weight.data = head.weight.data.half().float()
        return old(self, *args)
    around(patch, text_estimators.TextClassifier, "tune", lambda old, *a: cut(old, *a))


@fault("NaN in a weight", "one weight of the head is NaN after training", "error",
       "values that are no finite numbers")
def _(patch):
    def spoil(old, model, *rest, **more):
        with torch.no_grad():
            model.head.linear.bias[0] = float("nan")
        return old(model, *rest, **more)
    around(patch, text_estimators, "bundle_info", spoil)


@fault("NaN in a rare word", "the vector of a word that no row has is NaN after training",
       "error", "is damaged")
def _(patch):
    def spoil(old, model, *rest, **more):
        with torch.no_grad():
            model.backbone.encoder.embeddings.word_embeddings.weight[29_000] = float("nan")
        return old(model, *rest, **more)
    around(patch, text_estimators, "bundle_info", spoil)


@fault("encoder not saved", "the encoder is saved as its maker left it", "guard: reload_equal",
       "weights of the bundle are not those in memory")
def _(patch):
    def first(old, model, folder, length):
        old(model, folder, length)
        theirs = backbone.load_backbone(model.backbone.name)
        (folder / "encoder" / "model.safetensors").unlink()
        bundle.save_file(bundle_tensors(theirs), folder / "encoder" / "model.safetensors")
    around(patch, bundle, "save_weights", first)


def bundle_tensors(theirs):
    from insight_nb.models.native import encoder_tensors
    return encoder_tensors(theirs.encoder)


@fault("labels permuted in the bundle", "bundle.json has the labels backwards",
       "guard: label_order", "in the bundle: predictions would carry wrong names")
def _(patch):
    around(patch, bundle, "bundle_info", lambda old, *a: (
        lambda info: info | {"labels": info["labels"][::-1]})(old(*a)))


@fault("labels permuted in the output", "the answers' names are those of the label before",
       "guard: row_order", "rows came back elsewhere")
def _(patch):
    def other(old, self, *args):
        found, probs = old(self, *args)
        names = list(self.names)
        return [names[names.index(n) - 1] for n in found], probs
    around(patch, tasks.ClassificationTask, "postprocess", other)


@fault("probabilities permuted in the output", "the columns of probabilities have swapped names",
       "guard: label_order", "in the predictions")
def _(patch):
    def swap(old, *args, **how):
        out = old(*args, **how)
        names = [c for c in out if c.startswith("probability_")]
        return out.rename(columns=dict(zip(names, names[::-1])))
    around(patch, training, "predict_frame", swap)


@fault("wrong pooling after reload", "a bundle is opened with the first token's vector as its pool",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    around(patch, bundle, "load_whole", lambda old, *a: cls(old(*a)))


def cls(model):
    model.head.pool = heads.first_pool
    return model


@fault("tokenizer of another model", "the saved tokenizer has another vocabulary",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    def shift(old, *args):
        model = old(*args)
        tokenizer = model.backbone.tokenizer
        model.backbone.tokenizer = Shifted(tokenizer)
        return model
    around(patch, bundle, "load_whole", shift)


class Shifted:
    "Gives each word the number of another."
    def __init__(self, tokenizer): self.tokenizer = tokenizer
    def __getattr__(self, name): return getattr(self.tokenizer, name)

    def __call__(self, *texts, **how):
        found = self.tokenizer(*texts, **how)
        ids = found["input_ids"]
        found["input_ids"] = [[i + 40 if i > 2000 else i for i in row] for row in ids]
        return found


@fault("max_length lost", "a bundle is opened with a max_length of 6", "guard: reload_equal",
       "logits differ by at most")
def _(patch):
    around(patch, bundle, "read_info", lambda old, path: old(path) | {"max_length": 6})


@fault("max_length not noted", "bundle.json says twice the length that was asked for",
       "test: what_was_asked_is_noted", "max_length is 64")
def _(patch):
    around(patch, text_estimators, "bundle_info", lambda old, model, length, t: old(
        model, 2 * length, t))


@fault("temperature lost", "a bundle is opened with a temperature of 4",
       "guard: row_order", "rows came back elsewhere")
def _(patch):
    around(patch, bundle, "read_info", lambda old, path: old(path) | {"temperature": 4.})


@fault("edited bundle", "bundle.json is edited by hand after it was sealed", "error",
       "was changed or is damaged")
def _(patch):
    def edit(old, folder, info):
        made = old(folder, info)
        file = folder / "bundle.json"
        file.write_text(file.read_text().replace('"temperature": ', '"temperature": 1'))
        return made
    around(patch, bundle, "write_manifest", edit)


# Asked


@fault("rows by length", "rows are sorted by length for speed, and not put back",
       "guard: beats_majority", "not shown to be better")
def _(patch):
    def stay(old, model, dataset, *rest, **how):
        order = np.argsort(-dataset.lengths, kind="stable")
        return old(model, dataset, *rest, **how)[order]
    around(patch, predict, "predict_logits", stay)


@fault("rows backwards in the table", "a table of answers has them backwards", "guard: row_order",
       "rows came back elsewhere")
def _(patch):
    around(patch, predict, "_with_answers", lambda old, good, faults, answers, sure, probs, names:
           old(good, faults, answers[::-1], sure[::-1], probs[::-1], names))


@fault("dropout left on", "dropout is active in prediction", "guard: reload_equal",
       "logits differ by at most")
def _(patch):
    patch.setattr(torch.nn.Dropout, "forward", lambda self, x: torch.dropout(x, .1, True))


@fault("padding pooled", "the mean over tokens counts padding", "guard: reload_equal",
       "logits differ by at most")
def _(patch):
    patch.setitem(heads.POOLS, "mean", lambda hidden, mask: hidden.mean(1))


@fault("padding attended", "the encoder reads padding as if it were text", "guard: reload_equal",
       "logits differ by at most")
def _(patch):
    around(patch, backbone.Backbone, "forward", lambda old, self, ids, mask, *a, **k: old(
        self, ids, torch.ones_like(mask), *a, **{n: v for n, v in k.items() if n != "packing"}))


@fault("duplicate index", "answers are joined to a table by its index", "test: tables_come_back",
       "elsewhere")
def _(patch):
    def join(old, bundle, frame, *args, **how):
        out = old(bundle, frame, *args, **how)
        new = [c for c in out if c not in frame]
        found = frame.join(out[new].drop_duplicates())
        return found.loc[~found.index.duplicated()].reindex(frame.index.unique())
    for place in (predict, training):
        around(patch, place, "predict_frame", join)
    import text_checks
    around(patch, text_checks, "predict_frame", join)


@fault("empty rows dropped", "a row without a text is left out of the answers",
       "test: tables_come_back", "the rows are others")
def _(patch):
    import text_checks
    around(patch, text_checks, "predict_frame", lambda old, b, frame, *a, **k: (
        lambda out: out[out.error == ""])(old(b, frame, *a, **k)))


@fault("other tokens in service", "the bundle cuts texts in lower case with a word before them",
       "guard: reload_equal", "logits differ by at most")
def _(patch):
    around(patch, predict, "tokenize", lambda old, texts, *a, **k: old(
        [f"query: {t}" for t in texts], *a, **k))


# Trained


@fault("validation rows in training", "the validation rows are trained on too",
       "guard: split_duplicates", "among the rows that were trained on")
def _(patch):
    def more(old, self, texts, y, *rest):
        parts = self.parts_
        self.parts_ = splits.DataSplit(np.concatenate([parts.train, parts.valid]), parts.valid,
                                       parts.test, parts.notes, parts.duplicates)
        return old(self, texts, y, *rest)
    around(patch, text_estimators.TextEstimator, "train", more)


@fault("test rows in training", "the trainer is given all rows", "guard: split_duplicates",
       "among the rows that were trained on")
def _(patch):
    whole = {}
    around(patch, text_estimators.TextEstimator, "read_tokens", lambda old, self, texts, y: (
        whole.setdefault("rows", old(self, texts, y))))
    around(patch, text_estimators, "make_trainer", lambda old, setup, model, sides, *a, **k: old(
        setup, model, (whole["rows"], sides[1]), *a, **k))


@fault("labels shifted by one row", "the training labels stand one row below their texts",
       "guard: label_order", "training rows were learned under another name")
def _(patch):
    def shift(old, setup, model, sides, *args, **more):
        sides[0].labels = np.roll(sides[0].labels, 1)
        return old(setup, model, sides, *args, **more)
    around(patch, text_estimators, "make_trainer", shift)


@fault("ids shifted by one", "each label has the number of the next one, everywhere",
       "guard: label_order", "training rows were learned under another name")
def _(patch):
    around(patch, text_estimators.TextClassifier, "encode", lambda old, self, y: (
        old(self, y) + 1) % len(self.classes_))


@fault("seed ignored", "training draws from the clock", "test: seeds_count",
       "the same seed begins elsewhere")
def _(patch):
    for place in (setup, trainer):
        patch.setattr(place, "set_seed", lambda seed: torch.seed())


@fault("seed always 0", "whatever the seed is, 0 is taken", "test: seeds_count",
       "another seed begins at the same place")
def _(patch): around(patch, setup, "set_seed", lambda old, seed: old(0))


@fault("nothing learned", "the optimizer makes no step", "guard: loss_fell", "the loss")
def _(patch): patch.setattr(optim.AdamW, "step", lambda *a, **k: None)


@fault("up, not down", "the gradient has the wrong sign", "guard: loss_fell", "the loss")
def _(patch):
    around(patch, trainer, "clip_grad_norm_", lambda old, parameters, size: [
        p.grad.neg_() for p in parameters if p.grad is not None])


@fault("last epoch kept", "the last weights are kept, not the best", "guard: best_kept",
       "the kept weights")
def _(patch):
    def worse(old, self):
        with torch.no_grad():  # a last epoch that went wrong
            self.model.head.linear.weight.mul_(-1)
    around(patch, trainer.Trainer, "load_best_model", worse)


@fault("copies kept", "copies of test rows stay in training", "guard: split_duplicates",
       "are left")
def _(patch):
    around(patch, training, "split", lambda old, *a, **k: old(*a, **k, keep_duplicates=True))


@fault("texts cut", "texts are cut at 6 tokens", "guard: truncation", "were cut at 6 tokens")
def _(patch):
    around(patch, text_estimators, "FineTuningSetup", lambda old, *a, **k: short(old(*a, **k)))


def short(made):
    made.length = 6
    return made


@fault("unknown words", "the tokenizer knows no word", "error", "can't read these texts")
def _(patch):
    def blind(old, *args, **how):
        made = old(*args, **how)
        made.tokenizer = Blind(made.tokenizer)
        return made
    around(patch, text_estimators, "load_backbone", blind)


class Blind(Shifted):
    def __call__(self, *texts, **how):
        found = self.tokenizer(*texts, **how)
        found["input_ids"] = [[100 if i > 103 else i for i in row] for row in found["input_ids"]]
        return found
