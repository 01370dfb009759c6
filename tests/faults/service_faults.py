"""Faults in what comes after training: updates, answers that are corrected, and exports."""
from contextlib import contextmanager

import numpy as np
from classify_faults import around
from harness import Fault
from insight_nb.jobs import update, update_rows
from insight_nb.train import inference

FAULTS = []


def fault(name, what, kind, seen, words):
    "Register what is decorated as a fault: a function of a MonkeyPatch."
    def keep(plant):
        FAULTS.append(Fault(name, what, kind, plant, seen, words))
        return plant
    return keep


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


SERVICE_FAULTS = FAULTS
