"""The fused layer of ModernBERT against transformers' own, where the lessons don't go."""
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import ErnieConfig, ErnieModel, ModernBertConfig, ModernBertModel

from insight_nb.base.tensors import FakeTokenizer, set_seed
from insight_nb.data.dataset import TokenDataset
from insight_nb.data.tokens import tokenize
from insight_nb.models.backbone import Backbone
from insight_nb.models.frozen_layers import freeze_layers
from insight_nb.models.fused_modern import (
    attend_in_blocks, blocks_backward, fuse, plan_attention, query_blocks)
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.train.inference import optimize_for_inference, predict_logits

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
           "sep_token_id": 2}


def make_config(**changes):
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 4,
             "num_attention_heads": 3, "intermediate_size": 32, "local_attention": 8}
    return ModernBertConfig(**SPECIAL | sizes | changes)


def twins(**changes):
    set_seed(0)
    plain = ModernBertModel(make_config(**changes))
    fused = copy.deepcopy(plain)
    assert fuse(fused) == plain.config.num_hidden_layers
    return plain, fused


def batch(*lengths):
    seen = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(3, 60, seen.shape), seen


def check(plain, fused, seen, *, tol=1e-4, **inputs):
    found = []
    for m in (plain, fused):
        out = m(**inputs).last_hidden_state[seen]
        d = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
        found.append([out, *torch.autograd.grad(out, [*m.parameters()], d)])
    for want, got in zip(*found):
        assert_close(got, want, rtol=tol, atol=tol)


@pytest.mark.parametrize("changes, lengths", [
    ({"num_attention_heads": 1}, [6]), ({}, [1]), ({}, [1, 1]), ({"num_attention_heads": 12}, [5]),
    ({"num_hidden_layers": 1}, [7, 3]), ({"local_attention": 2}, [80, 50]),
    ({"local_attention": 0}, [9, 4]), ({"norm_eps": 1e-3, "norm_bias": True}, [9, 4]),
    ({"layer_types": ["sliding_attention"] * 4}, [40, 70]),
    ({"hidden_activation": "gelu_python"}, [9, 4])])
def test_shapes_and_settings(changes, lengths):
    plain, fused = twins(**changes)
    ids, seen = batch(*lengths)
    assert all(m.is_supported(torch.ones(1)) for m in fused.layers)
    check(plain, fused, seen, input_ids=ids, attention_mask=seen)


@pytest.mark.parametrize("theta", [{"global_rope_theta": 50.0, "local_rope_theta": 7.0}, {
    "rope_parameters": {
        "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0,
                           "original_max_position_embeddings": 16},
        "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10.0}}}])
def test_each_kind_of_layer_has_its_own_turns(theta):
    plain, fused = twins(**theta)
    ids, seen = batch(30, 12)
    check(plain, fused, seen, input_ids=ids, attention_mask=seen)


def test_places_of_each_text():
    plain, fused = twins()
    ids, seen = batch(20, 11)
    places = torch.stack([torch.arange(20), torch.arange(20) * 3 + 5])
    check(plain, fused, seen, input_ids=ids, attention_mask=seen, position_ids=places)


def test_a_text_longer_than_what_is_kept():
    plain, fused = twins(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    ids, seen = batch(600, 530)
    check(plain, fused, seen, input_ids=ids, attention_mask=seen)


def test_a_mask_of_ones_own_is_taken_as_it_is():
    "Also one that shows more than the window, and one whose padding sees nothing."
    plain, fused = twins()
    ids, seen = batch(90, 70)
    masks = {"full_attention": seen[:, None, None] & seen[:, None, :, None],
             "sliding_attention": seen[:, None, None].expand(2, 1, 90, 90)}
    check(plain, fused, seen, input_ids=ids, attention_mask=masks)
    lower = torch.ones(90, 90, dtype=torch.bool).tril()[None, None]
    check(plain, fused, seen, input_ids=ids, attention_mask={k: lower for k in masks})
    heads = lower.expand(2, 3, 90, 90) # one for each head: transformers' own code
    check(plain, fused, seen, input_ids=ids, attention_mask={k: heads for k in masks})


def test_a_mask_changed_in_place_is_seen():
    plain, fused = twins()
    ids, seen = batch(12, 12)
    masks = {k: torch.ones(2, 1, 12, 12, dtype=torch.bool)
             for k in ("full_attention", "sliding_attention")}
    for last in (12, 7):
        for m in masks.values():
            m[..., last:] = False
        check(plain, fused, seen[:, :12], input_ids=ids, attention_mask=masks)


def test_eager_masks_in_sixteen_bits_hide_without_spoiling():
    "A padded token beyond every window sees nothing: no NaN comes of it."
    plain, fused = twins()
    ids, seen = batch(100, 20)
    for m in (plain, fused):
        m.set_attn_implementation("eager")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        want, got = (m(ids, attention_mask=seen).last_hidden_state for m in (plain, fused))
    assert got.isfinite().all()
    assert (got - want)[seen].abs().mean() < .02


def test_inference_mode_and_threads():
    plain, fused = (m.eval() for m in twins())
    batches = [batch(n, n // 2) for n in range(4, 40, 3)]

    def answer(m, ids, seen):
        with torch.inference_mode():
            return m(ids, attention_mask=seen).last_hidden_state[seen]

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda b: answer(fused, *b), batches))
    for b, found in zip(batches, got):
        assert_close(found, answer(plain, *b), rtol=1e-4, atol=1e-5)


def test_predictions_in_each_precision():
    set_seed(0)
    tokenizer = FakeTokenizer()
    body = Backbone(ModernBertModel(make_config(vocab_size=5000, hidden_size=48)), tokenizer,
                    "fake", width=48)
    model = Model(body, ClassificationTask(["no", "yes"])).eval()
    rows = TokenDataset(tokenize([f"text {i} " * (i % 9 + 1) for i in range(40)], tokenizer, 64))
    want = predict_logits(copy.deepcopy(model), rows)
    optimize_for_inference(model)
    off = {p: np.abs(predict_logits(model, rows, precision=p) - want).max()
           for p in ("no", "bf16", "int8")}
    assert off["no"] < 1e-5 and 0 < off["bf16"] < .05 and 0 < off["int8"] < .1


@pytest.mark.parametrize("tokens, reach", [(150, 4), (600, 40)])
def test_masks_of_blocks(tokens, reach):
    "For one draw the values are linear in v, and its gradient is the transposed map."
    turns = torch.rand(2, 1, tokens, 8, dtype=torch.float64)
    plan = plan_attention(*turns, None, None, torch.float64)
    plan.blocks = query_blocks(tokens, reach)
    q, k, v, d = torch.randn(4, 2, tokens, 8, dtype=torch.float64)
    out, kept = attend_in_blocks(q, k, v, plan, 0.5)
    back = blocks_backward(d, q, k, v, plan, 0.5, kept)
    assert_close((out * d).sum(), (back[2] * v).sum())
    assert (out - attend_in_blocks(q, k, v, plan, 0)[0]).abs().mean() > 0.1


def test_the_gradient_is_that_of_the_masks_that_were_drawn():
    "A small step changes the output by as much as the gradient says."
    _, fused = twins(embedding_dropout=0.1, attention_dropout=0.2, mlp_dropout=0.3)
    ids, seen = batch(12, 7)
    fused.double().train()

    def answer():
        set_seed(5)
        return fused(ids, attention_mask=seen).last_hidden_state[seen].sin().sum()

    weights = [p for p in fused.parameters() if p.ndim == 2]
    steps = [torch.randn_like(p) for p in weights]
    said = sum((g * d).sum() for g, d in zip(torch.autograd.grad(answer(), weights), steps))
    values = []
    for size in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(weights, steps):
                p += size * d
            values.append(answer())
    assert_close((values[0] - values[1]) / 2e-6, said, rtol=1e-4, atol=1e-6)


def test_attention_weights_can_be_asked_for():
    plain, fused = (m.eval() for m in twins())
    ids, seen = batch(12, 7)
    for m in (plain, fused):
        m.set_attn_implementation("eager")
    want, got = (m(ids, attention_mask=seen, output_attentions=True, output_hidden_states=True)
                 for m in (plain, fused))
    assert (len(got.attentions), len(got.hidden_states)) == (4, 5)
    assert_close(got.attentions, want.attentions)
    assert_close(got.hidden_states[2][seen], want.hidden_states[2][seen])


def test_layers_that_compute_anew_copies_and_other_processes():
    plain, fused = twins()
    others = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]
    fused.train().gradient_checkpointing_enable()
    ids, seen = batch(12, 7)
    for m in (fused, *others):
        check(plain, m, seen, input_ids=ids, attention_mask=seen)


def test_frozen_layers():
    plain, fused = twins()
    ids, seen = batch(12, 7)
    found = []
    for m in (plain, fused):
        body = Backbone(m, FakeTokenizer(), "fake", width=24)
        freeze_layers(body, 2)
        body.train()(ids, seen)[seen].sin().sum().backward()
        found.append({k: p.grad for k, p in m.named_parameters()})
    want, got = found
    assert [k for k in want if want[k] is None] == [k for k in got if got[k] is None]
    for k in want:
        if want[k] is not None:
            assert_close(got[k], want[k], rtol=1e-4, atol=1e-5)


def test_ernie():
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 3, "intermediate_size": 48, "max_position_embeddings": 16}
    plain = ErnieModel(ErnieConfig(**sizes, use_task_id=True), add_pooling_layer=False).eval()
    fused = copy.deepcopy(plain)
    assert fuse(fused) == 2
    ids, seen = batch(12, 7)
    for tasks in (None, torch.ones_like(ids)):
        check(plain, fused, seen, input_ids=ids, attention_mask=seen, task_type_ids=tasks)
