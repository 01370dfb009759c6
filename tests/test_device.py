"""A GPU without a GPU. `meta` is a device that computes nothing: tensors of two devices in one
operation raise there, and so does whatever asks for a value. A dispatch mode answers those who ask,
and counts them: on a real GPU, each would make the CPU wait."""
from collections import Counter

import numpy as np
import pytest
import torch
import torch.optim.optimizer as optimizer_module
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from insight_nb.apps.assistant.out_of_scope import IntentClassifier
from insight_nb.models.vision import ImagePreprocessor, features, small_vision
from insight_nb.apps.recommend.recommender import item_vectors
from insight_nb.base.tensors import FakeTokenizer, set_seed
from insight_nb.data.dataset import TokenDataset
from insight_nb.data.tokens import tokenize
from insight_nb.data.windows import WindowDataset
from insight_nb.decide.strategy.demand import text_vectors
from insight_nb.methods.fewshot import Prototype
from insight_nb.methods.frozen import LinearProbe, StaticEmbeddings
from insight_nb.methods.prompt import ZeroShot
from insight_nb.models.adapters import METHODS, add_adapter, method_options
from insight_nb.models.backbone import Backbone
from insight_nb.models.tagging import TaggingTask
from insight_nb.models.tasks import ClassificationTask, Model, MultiLabelTask, RegressionTask
from insight_nb.ship.bundle import Bundle
from insight_nb.ship.predict import predict
from insight_nb.train import trainer as trainer_module
from insight_nb.train.inference import embed, optimize_for_inference
from insight_nb.train.optim import TrainConfig
from insight_nb.train.trainer import FETCH_LOSSES, Trainer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
aten = torch.ops.aten
# the operations whose result has a size that only the values tell
DATA_DEPENDENT = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_dim.default, aten.bincount.default, aten.is_nonzero.default, aten.equal.default}


class Waits(TorchDispatchMode):
    """Counts what would make the CPU wait for a GPU. The answers are made up, so that the program
    goes on."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        on_device = [t.device == META for t in tensors]
        if func is aten._local_scalar_dense.default and any(on_device):
            self.seen["value"] += 1
            return torch.ones((), dtype=tensors[0].dtype).item()
        copies = func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu")
        if copies and any(on_device):
            self.seen["copy"] += 1
            return torch.ones(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        if func is aten.copy_.default and on_device == [False, True]:
            self.seen["copy"] += 1
            return tensors[0].fill_(1)
        if func in DATA_DEPENDENT and any(on_device):
            raise AssertionError(f"{func} makes the CPU wait")
        return func(*args, **kwargs)


class Autocast(TorchFunctionMode):
    "What autocast does on a GPU, for `meta`, which torch's own does not know."
    LOWER = {torch.nn.functional.linear, torch.matmul, torch.bmm, torch.addmm, torch.Tensor.matmul,
             torch.nn.functional.scaled_dot_product_attention, torch.Tensor.__matmul__}
    stack, lowered = [], 0

    def __init__(self, kind, dtype=None, enabled=True, **_):
        super().__init__()
        self.dtype = dtype if enabled else None

    def __enter__(self):
        Autocast.stack.append(self.dtype)
        return super().__enter__()

    def __exit__(self, *error):
        Autocast.stack.pop()
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, dtype = kwargs or {}, Autocast.stack[-1]
        if dtype and func in self.LOWER and self.dtype is dtype:
            def lower(a):
                if not isinstance(a, torch.Tensor) or a.dtype != torch.float32:
                    return a
                Autocast.lowered += 1
                return a.to(dtype)
            args, kwargs = map(lower, args), {k: lower(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)


REAL_AUTOCAST = torch.autocast


def autocast(kind, *how, **more):
    return (Autocast if kind == "meta" else REAL_AUTOCAST)(kind, *how, **more)


class Kept:
    "Stands for a copy of weights on the CPU, which `meta` has none of."
    def __init__(self, weights): self.weights = weights
    def load(self): return self.weights


class Machine:
    "What `make_accelerator` gives, for a machine with a device called meta."
    def __init__(self, precision):
        Accelerator(cpu=True)  # its optimizer asks for the state of one
        self.device, self.num_processes, self.process_index = META, 1, 0
        self.mixed_precision, self.is_main_process = precision, True
        scale = {"init_scale": 2. ** 10, "growth_interval": 4}
        self.scaler = torch.amp.GradScaler("cpu", **scale) if precision == "fp16" else None

    def autocast(self):
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mixed_precision)
        return torch.autocast("meta", half, enabled=bool(half))

    def backward(self, loss):
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def prepare_optimizer(self, optimizer):
        return AcceleratedOptimizer(optimizer, device_placement=False, scaler=self.scaler)

    def unscale_gradients(self, optimizer):
        if self.scaler:
            self.scaler.unscale_(optimizer.optimizer)


@pytest.fixture
def gpu(monkeypatch):
    "A machine whose device is `meta`: yields the counter of waits."
    Autocast.lowered = 0
    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(trainer_module, "_FUSED", ("meta",))
    monkeypatch.setattr(optimizer_module, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(trainer_module, "WeightSnapshot", Kept)
    monkeypatch.setattr(trainer_module, "make_accelerator",
                        lambda device, precision: Machine(precision))
    with Waits() as waits:
        yield waits


def rows(task, n=64, seed=0):
    "Texts of 8 to 20 tokens with what the task wants to be told."
    r = np.random.default_rng(seed)
    texts = ["".join(r.choice(list("abcdefgh"), r.integers(6, 19))) for _ in range(n)]
    tokens = tokenize(texts, FakeTokenizer(), 32)
    labels = {"classify": lambda: r.integers(0, 3, n),
              "multilabel": lambda: r.integers(0, 2, (n, 3)).astype(np.float32),
              "regress": lambda: r.normal(size=n).astype(np.float32),
              "pair": lambda: r.integers(0, 3, n),
              "windows": lambda: r.integers(0, 3, n // 2),
              "tag": lambda: r.integers(-1, 3, len(tokens.input_ids)) * 1}[task]()
    if task == "tag":
        labels = np.where(labels < 0, -100, labels)
    if task == "windows":
        return WindowDataset(tokens, labels, starts=np.arange(0, n + 1, 2))
    features = np.zeros(len(tokens.input_ids), np.int64) if task in ("pair", "tag") else None
    return TokenDataset(tokens, labels, token_features=features)


TASKS = {
    "classify": lambda: ClassificationTask("abc", torch.ones(3), focal=1., smoothing=.1),
    "multilabel": lambda: MultiLabelTask("abc", torch.ones(3), focal=1.),
    "regress": lambda: RegressionTask(),
    "pair": lambda: ClassificationTask("abc"),
    "windows": lambda: ClassificationTask("abc"),
    "tag": lambda: TaggingTask(["O", "B-x", "I-x"], torch.ones(3), focal=1., casing=True)}


def encoder():
    "A BERT of two small layers, of transformers, on the CPU."
    from transformers import BertConfig, BertModel
    config = BertConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=96, max_position_embeddings=64)
    return Backbone(BertModel(config, add_pooling_layer=False), FakeTokenizer(), "small")


def prepared(task, method, precision, n=64):
    set_seed(0)
    body = encoder()
    add_adapter(body, method, **method_options(method, 4 if "lora" in method else None))
    model = Model(body, TASKS[task]()).to(META)
    return Trainer(model, rows(task, n), rows(task, 32, 1), None,
                   TrainConfig(epochs=2, batch_size=16), precision=precision)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_a_step_stays_on_the_device(gpu, task, method, precision):
    t = prepared(task, method, precision)
    t.setup()
    t.model.train()
    batches = iter(t.batches)
    gpu.seen.clear()
    t.train_step(next(batches))
    t.train_step(next(batches))
    assert gpu.seen == {}, "a training step asks the device for a value"
    assert (Autocast.lowered > 0) == (precision != "no")
    assert (t.accelerator.scaler is not None) == (precision == "fp16")
    assert {p.device for p in t.model.parameters()} == {META}
    assert {s.device for state in t.optimizer.state.values()
            for k, s in state.items() if k != "step"} == {META}
    found = t.validate()
    assert gpu.seen == {"copy": 1}, "validation fetches its results once"
    assert np.isfinite(found["valid_loss"])


@pytest.mark.slow
def test_an_epoch_waits_for_its_losses_alone(gpu):
    t = prepared("tag", "adalora", "fp16", n=22 * 16)
    t.fit()
    steps = t.state.global_step
    assert steps == 44 and len(t.state.losses) == 44
    # losses: every 20 steps and at the end of an epoch; validation once; AdaLoRA's ranks, which
    # decide whether an epoch can be the best; and the best weights are copied once
    a_module = len(t.model.adapter.adalora_modules)
    fetched = 2 * (-(-22 // FETCH_LOSSES) + 1)
    assert gpu.seen["copy"] <= fetched + 2
    assert gpu.seen["value"] <= 3 * a_module


def test_what_waits_is_noticed():
    "The counter itself: each way to wait is seen."
    x = torch.ones(3, device=META)
    with Waits() as waits:
        assert float(x.sum()) == 1 and x.cpu().tolist() == [1, 1, 1]
        torch.zeros(3).copy_(x)
        for ask in (lambda: x.nonzero(), lambda: x[x > 0], lambda: torch.bincount(x.long())):
            with pytest.raises((AssertionError, NotImplementedError)):
                ask()
    assert waits.seen == {"value": 1, "copy": 2}
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(3)


def test_what_embeds_does_it_on_the_device(gpu):
    backbone = encoder()
    vectors = embed(["abc", "a longer text", "b"], backbone, 32, device=META)
    assert vectors.shape == (3, 64) and gpu.seen == {"copy": 1}
    assert {p.device for p in backbone.parameters()} == {META}
    embed(["abc"], backbone, 32, static=True, device=META)
    assert gpu.seen == {"copy": 2}


TEXTS = ["abc", "a longer text", "b", "很好"]


@pytest.mark.parametrize("rung", [LinearProbe, StaticEmbeddings, ZeroShot, Prototype])
def test_a_frozen_rung_reads_on_the_device(gpu, rung):
    made = rung(backbone=encoder(), max_length=32, device=META)
    assert made.vectors(TEXTS).shape == (4, 64)
    assert {p.device for p in made.backbone.parameters()} == {META}
    assert gpu.seen == {"copy": 1}


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("task", ["classify", "multilabel", "regress"])
def test_a_bundle_answers_on_the_device(gpu, task, precision):
    model = optimize_for_inference(Model(encoder(), TASKS[task]()).eval())
    info = {"task": task, "max_length": 32, "temperature": 1., "backbone": {"name": "small"}}
    bundle = Bundle(model, info, precision)
    answers, probabilities = predict(bundle, TEXTS, device=META)
    assert (len(answers), len(probabilities), bundle.device) == (4, 4, META)
    assert gpu.seen == {"copy": 1} and (Autocast.lowered > 0) == (precision != "no")


def test_the_assistant_and_the_recommender_read_on_the_device(gpu):
    reader = IntentClassifier(encoder(), max_length=32, device=META)
    assert reader.embed(TEXTS).shape == (4, 64)
    backbone = encoder()
    assert item_vectors([*TEXTS, ""], backbone, 32, META).shape == (5, 64)
    used = [*reader.backbone.parameters(), *backbone.parameters()]
    assert {p.device for p in used} == {META} and gpu.seen == {"copy": 2}


def test_themes_and_pictures_are_read_on_the_device(gpu):
    vectors, basis = text_vectors(["a text here", "another text", "a third one"], encoder(), META)
    assert vectors.shape == (3, 64) and basis == "an encoder"
    vision = small_vision(ImagePreprocessor(1, (16, 16), (.5,), (.5,)))
    assert features(vision, np.zeros((5, 1, 16, 16), np.uint8), META, 2).shape[0] == 5
    assert gpu.seen == {"copy": 2}
