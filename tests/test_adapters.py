"""Every task with every method: saved, loaded in another process, and asked again, it says the same
to the last bit. And what is planted is found."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_encoder
from insight_nb.base.core import InputError
from insight_nb.eval import guard
from insight_nb.models.adapters import METHODS, add_adapter, method_options
from insight_nb.models.backbone import load_backbone
from insight_nb.models.tagging import TaggingTask
from insight_nb.models.tasks import ClassificationTask, Model, MultiLabelTask, RegressionTask
from insight_nb.ship.bundle import load_bundle, read_info, save_bundle
from insight_nb.ship.predict import bundle_logits
from insight_nb.base.tensors import set_seed
from safetensors.torch import load_file, save_file

TEXTS = ["Ann flew from Nice to Rome.", "张伟在北京，很好 😀", "<b>x</b>", "no " * 40]
TASKS = {
    "classify": lambda: ClassificationTask(("no", "yes", "很好")),
    "multilabel": lambda: MultiLabelTask(("a", "b"), thresholds=[0.3, 0.6]),
    "regress": lambda: RegressionTask(("stars",), 3.0, 2.0),
    "tag": lambda: TaggingTask(("O", "B-X", "I-X"), casing=True),
    "pair": lambda: ClassificationTask(("other", "same")),
}
ASK = """
import json, sys
import numpy as np
from insight_nb.ship.bundle import load_bundle
from insight_nb.ship.predict import bundle_logits
for name, texts in json.loads(sys.argv[2]).items():
    found = bundle_logits(load_bundle(f"{sys.argv[1]}/{name}"), texts)
    found = np.concatenate(found) if isinstance(found, list) else found
    np.save(f"{sys.argv[1]}/{name}.npy", found)
"""


def made(task, method, encoder=None, rank=None):
    "A model whose adapter and head are not as they began."
    set_seed(0)
    body = load_backbone(encoder)
    adapter = add_adapter(body, method, **method_options(method, rank))
    model = Model(body, TASKS[task]())
    with torch.no_grad():
        for p in [
            *model.head.parameters(),
            *(q for g in (adapter.modules.values() if adapter else ()) for q in g.parameters()),
        ]:
            p += 0.05 * torch.randn_like(p)
    return model.eval()


@pytest.mark.parametrize("task", TASKS)
def test_the_same_in_another_process(task, tmp_path, other_process):
    asked = [(t, TEXTS[0]) for t in TEXTS] if task == "pair" else TEXTS
    tiny_encoder(tmp_path / "tiny")
    want = {}
    for method in METHODS:
        rank = 4 if method in ("lora", "adalora", "bottleneck", "prefix") else None
        save_bundle(
            tmp_path / method,
            made(task, method, str(tmp_path / "tiny"), rank),
            32,
            facts={"tag": {"overlap": 8}, "pair": {"second": "other"}}.get(task),
        )
        here = bundle_logits(load_bundle(tmp_path / method), asked)
        want[method] = np.concatenate(here) if isinstance(here, list) else here
    other_process(ASK, tmp_path, json.dumps({m: asked for m in METHODS}))
    for method in METHODS:
        assert np.array_equal(np.load(tmp_path / f"{method}.npy"), want[method]), method
    # and the methods differ
    assert all((want[a] != want[b]).any() for a, b in zip(METHODS[2:], METHODS[3:]))


def test_adapter_bundles_are_small(tmp_path):
    for method in METHODS[2:]:
        save_bundle(tmp_path / method, made("classify", method), 32)
        assert sum(f.stat().st_size for f in (tmp_path / method).rglob("*")) < 5e6, method


def test_a_dropped_head_is_refused(tmp_path):
    save_bundle(tmp_path / "b", made("classify", "lora"), 32)
    file = tmp_path / "b" / "head.safetensors"
    save_file(dict(list(load_file(file).items())[1:]), file)
    with pytest.raises(InputError, match="damaged or was changed"):
        load_bundle(tmp_path / "b")


def test_permuted_labels_turn_the_guard_red(tmp_path):
    model = made("classify", "bitfit")
    save_bundle(tmp_path / "b", model, 32)
    names = read_info(tmp_path / "b")["labels"]
    assert guard.label_order(names, model.task.names, names, names).passed
    assert guard.label_order(names, model.task.names, names, names[::-1]).passed is False


def test_frozen_ranks_turn_the_guard_red():
    adapter = made("classify", "adalora").adapter
    before = adapter.ranks(), adapter.snapshot()
    assert guard.ranks_moved(before[0], adapter.ranks()).passed is False
    assert guard.adapters_changed(before[1], adapter.snapshot()).passed is False
    for at in range(100):
        adapter.update_and_allocate(at, 100)
    assert (
        guard.ranks_moved(before[0], adapter.ranks()).passed
        and sum(adapter.ranks().values()) == adapter.target_total_rank
    )
