"""Does this project work on a GPU, and how fast? For any machine with CUDA, in at most 8 minutes.

    python tests/gpu_check.py --backbone FOLDER [--out FILE] [--device DEVICE] [--only NAME,NAME]

Needs torch, transformers, accelerate, pandas, pyarrow, scikit-learn, scipy, fastcore, and a folder
with an encoder; neither pytest nor nbdev. Each step prints a line of JSON; a step that fails does
not stop the others. --out gets all lines as a table. With --device cpu the steps run on small
sizes, to try the script itself.
"""
import argparse
import contextlib
import copy
import functools
import gc
import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("INSIGHT_NB_PROGRESS", "quiet")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from insight_nb.base.tensors import choose_device, set_seed  # noqa: E402
from insight_nb.data.dataset import TokenDataset  # noqa: E402
from insight_nb.data.tokens import TokenizedTexts, tokenize  # noqa: E402
from insight_nb.jobs.colab import sentence_rows  # noqa: E402
from insight_nb.models.adapters import add_adapter, method_options  # noqa: E402
from insight_nb.models.backbone import Backbone, load_backbone  # noqa: E402
from insight_nb.models.tagging import TaggingTask  # noqa: E402
from insight_nb.models.tasks import (  # noqa: E402
    ClassificationTask, Model, MultiLabelTask, RegressionTask)
from insight_nb.ship.bundle import load_bundle, save_bundle  # noqa: E402
from insight_nb.ship.predict import predict  # noqa: E402
from insight_nb.train.callbacks import CollapseGuard  # noqa: E402
from insight_nb.train.checkpoint import Checkpoint  # noqa: E402
from insight_nb.train.inference import embed, optimize_for_inference, predict_logits  # noqa: E402
from insight_nb.train.optim import TrainConfig, default_precision  # noqa: E402
from insight_nb.train.trainer import Trainer  # noqa: E402

STEPS = {}  # name -> (function, seconds that it may take)


def step(seconds):
    "Registers a function as a step."
    def register(function):
        STEPS[function.__name__] = function, seconds
        return function
    return register


class Setting:
    "The machine, the encoder, and rows to learn from."
    def __init__(self, backbone, device):
        self.backbone, self.device = backbone, choose_device(device)
        self.gpu = self.device.type == "cuda"
        self.half = default_precision(self.device)
        self.tokenizer = load_backbone(backbone).tokenizer
        self.words = ["good fine lovely warm".split(), "bad slow cold broken".split(),
                      "red green blue gray".split()]

    def texts(self, n, seed=0):
        "Made-up texts of 4 to 30 words in three classes: (texts, (n,) ids)."
        r = np.random.default_rng(seed)
        filler = "the room a train some people this day our hotel that soup".split()
        y = r.integers(0, 3, n)
        return [" ".join([*r.choice(filler, r.integers(3, 28)), *r.choice(self.words[c], 2)])
                for c in y], y

    def rows(self, labels, texts, features=None):
        tokens = tokenize(texts, self.tokenizer, 64)
        features = None if features is None else np.zeros(len(tokens.input_ids), np.int64)
        labels = labels(tokens) if callable(labels) else labels
        return TokenDataset(tokens, labels, pad_id=self.tokenizer.pad_token_id,
                            token_features=features)

    def trainer(self, task, rows, method="full", precision=None, callbacks=(), **config):
        set_seed(0)
        encoder = load_backbone(self.backbone)
        add_adapter(encoder, method, **method_options(method, None))
        rate = 1e-4 if method == "full" else 2e-3
        config = {"epochs": 3, "batch_size": 32, "learning_rate": rate,
                  "head_learning_rate": 10 * rate} | config
        return Trainer(Model(encoder, task), rows, None, None, TrainConfig(**config),
                       [CollapseGuard(), *callbacks], self.device, precision)


def fell(losses):
    "The mean loss of the first and of the last fifth of the steps."
    k = max(1, len(losses) // 5)
    first, last = float(np.mean(losses[:k])), float(np.mean(losses[-k:]))
    assert np.isfinite(losses).all() and last < first, f"the loss went from {first} to {last}"
    return {"first_loss": round(first, 4), "last_loss": round(last, 4)}


@step(10)
def machine(s):
    import accelerate
    import transformers
    found = {"torch": torch.__version__, "transformers": transformers.__version__,
             "accelerate": accelerate.__version__, "python": platform.python_version(),
             "device": str(s.device), "precision": s.half}
    if s.gpu:
        properties = torch.cuda.get_device_properties(s.device)
        found |= {"card": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1),
                  "capability": ".".join(map(str, torch.cuda.get_device_capability(s.device)))}
    return found


def classify(s, precision):
    texts, y = s.texts(400)
    unseen, truth = s.texts(200, seed=1)
    trainer = s.trainer(ClassificationTask("abc"), s.rows(y, texts), precision=precision)
    trainer.fit()
    logits = predict_logits(trainer.model, s.rows(None, unseen), precision=precision)
    accuracy = float((logits.argmax(1) == truth).mean())
    assert accuracy > .9, f"accuracy {accuracy}"
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    scaler = trainer.accelerator.scaler
    return fell(trainer.state.losses) | {
        "accuracy": accuracy, "scale": scaler.get_scale() if scaler else None}


@step(25)
def classify_32_bits(s): return classify(s, "no")
@step(25)
def classify_bf16(s): return classify(s, "bf16")
@step(25)
def classify_fp16(s): return classify(s, "fp16" if s.gpu else "no")


@step(15)
def fp16_skips_a_broken_step(s):
    "A gradient that is not finite must not reach the weights, and the next step must."
    if not s.gpu:
        return {"skipped": "fp16 is trained on a GPU alone"}
    texts, y = s.texts(64)
    t = s.trainer(ClassificationTask("abc"), s.rows(y, texts), precision="fp16")
    t.setup()
    batches = iter(t.batches)
    t.train_step(next(batches))
    t.accelerator.scaler._scale.fill_(1e38)
    before = {k: v.clone() for k, v in t.model.state_dict().items()}
    t.train_step(next(batches))
    assert all(torch.equal(v, before[k]) for k, v in t.model.state_dict().items())
    t.accelerator.scaler._scale.fill_(1024.)
    t.batches.epoch, t.batches.step = 1, 0
    t.train_step(next(iter(t.batches)))
    changed = sum(not torch.equal(v, before[k]) for k, v in t.model.state_dict().items())
    assert changed and all(p.isfinite().all() for p in t.model.parameters())
    return {"changed_afterwards": changed}


@step(20)
def packed_tokens(s):
    "The encoder on the device, packed, against transformers on the CPU in 32 bits."
    texts, _ = s.texts(64)
    rows = s.rows(None, texts)
    plain = Model(load_backbone(s.backbone).eval(), ClassificationTask("abc")).eval()
    packed = optimize_for_inference(copy.deepcopy(plain)).to(s.device)
    want, found = predict_logits(plain, rows), {}
    for precision, most in (("no", 2e-3), (s.half, .05)):
        far = float(np.abs(predict_logits(packed, rows, precision=precision) - want).max())
        assert far < most, f"{precision}: {far}"
        found[f"far_{precision}"] = far
    return found


@step(15)
def no_step_waits(s):
    "Steps of training, with torch's own detector of waiting set to raise."
    texts, y = s.texts(400)
    t = s.trainer(ClassificationTask("abc", torch.ones(3)), s.rows(y, texts), batch_size=16)
    t.setup()
    t.model.train()
    batches = iter(t.batches)
    for _ in range(2):
        t.train_step(next(batches))
    t.fetch_losses()
    if s.gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(15):
            t.train_step(next(batches))
    finally:
        if s.gpu:
            torch.cuda.set_sync_debug_mode("default")
    return {"steps": 15}


@step(40)
def other_tasks(s):
    texts, y = s.texts(256)
    pairs = {"tag": (TaggingTask(["O", "B-x", "I-x"], casing=True),
                     lambda tokens: np.where(tokens.input_ids % 5 == 0, -100,
                                             tokens.input_ids % 3 % 2)),
             "regress": (RegressionTask(), (y - y.mean()).astype(np.float32)),
             "multilabel": (MultiLabelTask("abc"), np.eye(3, dtype=np.float32)[y]),
             "pair": (ClassificationTask("abc"), y)}
    found = {}
    for name, (task, labels) in pairs.items():
        rows = s.rows(labels, texts, features=name if name in ("tag", "pair") else None)
        t = s.trainer(task, rows)
        t.fit()
        found[name] = fell(t.state.losses)["last_loss"]
    return found


@step(50)
def adapters(s):
    texts, y = s.texts(256)
    found = {}
    for method in ("lora", "adalora", "bottleneck", "prefix", "bitfit", "frozen"):
        t = s.trainer(ClassificationTask("abc"), s.rows(y, texts), method)
        frozen = {n: p.clone() for n, p in t.model.named_parameters() if not p.requires_grad}
        t.fit()
        now = dict(t.model.named_parameters())
        assert all(torch.equal(p.to(s.device), now[n]) for n, p in frozen.items())
        found[method] = fell(t.state.losses)["last_loss"]
    return found


@step(20)
def a_bundle_opens_on_a_cpu(s):
    texts, y = s.texts(128)
    t = s.trainer(ClassificationTask("abc"), s.rows(y, texts), epochs=1)
    t.fit()
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(f"{folder}/bundle", t.model, 64)
        here = predict(load_bundle(f"{folder}/bundle", device=s.device), texts)
        there = predict(load_bundle(f"{folder}/bundle", device="cpu"), texts)
    far = float(np.abs(here[1] - there[1]).max())
    assert far < 2e-3, far
    return {"far": far}


@step(25)
def a_killed_run_goes_on(s):
    texts, y = s.texts(256)
    rows = s.rows(y, texts)

    class Cut:
        def on_step_end(self, trainer):
            if trainer.state.global_step == 11:
                trainer.save_checkpoint(file)
                raise SystemExit

    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/run.safetensors"
        whole, cut = (s.trainer(ClassificationTask("abc"), rows, callbacks=c)
                      for c in ([Checkpoint(f"{folder}/whole")], [Cut()]))
        whole.fit()
        with contextlib.suppress(SystemExit):
            cut.fit()
        on = s.trainer(ClassificationTask("abc"), rows)
        on.load_checkpoint(file)
        on.fit()
    far = max(float((a - b).abs().max())
              for a, b in zip(whole.model.parameters(), on.model.parameters()))
    assert on.state.global_step == whole.state.global_step and far < 5e-3, far
    return {"far": far, "same_bytes": far == 0}


@step(25)
def memory_runs_out(s):
    "Planted, and on a GPU a real one: 3 GB of its memory, and a batch that needs more."
    texts, y = s.texts(256)
    rows = s.rows(y, texts)
    t = s.trainer(ClassificationTask("abc"), rows, epochs=1)
    inside = t.model.forward

    def forward(batch):
        if batch.input_ids.numel() > 400:
            raise torch.OutOfMemoryError("planted")
        return inside(batch)
    t.model.forward = forward
    t.fit()
    found = fell(t.state.losses) | {"planted": t.model.memory_notes}
    if s.gpu:
        long = TokenDataset(TokenizedTexts(
            np.tile(np.arange(1000, 1128, dtype=np.int32), 4096), np.arange(0, 4097) * 128,
            np.zeros(4096, bool)), np.arange(4096) % 3)
        gc.collect()
        torch.cuda.empty_cache()
        big = s.trainer(ClassificationTask("abc"), long, epochs=1, batch_size=2048,
                        token_budget=2048 * 128, pass_tokens=2048 * 128)
        total = torch.cuda.get_device_properties(s.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1., 3e9 / total))
        try:
            big.fit()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.)
        assert big.model.memory_notes, "memory did not run out"
        found["real"] = big.model.memory_notes
    return found


@step(20)
def seeds(s):
    "The same seed twice and another seed."
    texts, y = s.texts(128)
    made = []
    for seed in (0, 0, 1):
        t = s.trainer(ClassificationTask("abc"), s.rows(y, texts), epochs=1, seed=seed)
        t.fit()
        made.append(torch.cat([p.detach().flatten() for p in t.model.parameters()]))
    same, other = (float((made[0] - m).abs().max()) for m in made[1:])
    assert other > same
    return {"same_seed_far": same, "other_seed_far": other}


# ---- speed: each against a peer at its best, in turn, on the same rows

def shape_of(s, name):
    "An encoder: the one that was given, or one of BERT-base's shape with random weights."
    if name == "given":
        return load_backbone(s.backbone)
    from transformers import BertConfig, BertModel
    set_seed(0)
    config = BertConfig(vocab_size=len(s.tokenizer))
    return Backbone(BertModel(config, add_pooling_layer=False), s.tokenizer, name)


def token_rows(kind, n):
    "Rows with the lengths of sentences, or of 128 tokens each."
    if kind == "real":
        return sentence_rows(n)
    ids = np.random.default_rng(1).integers(1000, 20_000, 128 * n).astype(np.int32)
    tokens = TokenizedTexts(ids, np.arange(n + 1) * 128, np.zeros(n, bool))
    return TokenDataset(tokens, np.arange(n) % 2)


def wait(s):
    if s.gpu:
        torch.cuda.synchronize()


def train_ours(s, shape, rows, size):
    model = Model(shape_of(s, shape), ClassificationTask("ab"))
    config = TrainConfig(epochs=1, batch_size=size, token_budget=max(4096, size * 128))
    return Trainer(model, rows, config=config, device=s.device).fit


def train_theirs(s, shape, rows, size, compiled=False):
    from transformers import BertForSequenceClassification, DataCollatorWithPadding
    from transformers import PrinterCallback, TrainingArguments
    from transformers import Trainer as Peer
    body = shape_of(s, shape).encoder
    config = copy.deepcopy(body.config)
    config.num_labels = 2
    model = BertForSequenceClassification(config)
    model.bert.load_state_dict(body.state_dict(), strict=False)
    data = [{"input_ids": rows.tokens[i].tolist(), "labels": int(rows.labels[i])}
            for i in range(len(rows))]
    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=size, num_train_epochs=1,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=not s.gpu,
        bf16=s.half == "bf16", fp16=s.half == "fp16", optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length", logging_strategy="no",
        logging_nan_inf_filter=False, dataloader_pin_memory=s.gpu, torch_compile=compiled)
    peer = Peer(model=model, args=arguments, train_dataset=data, processing_class=s.tokenizer,
                data_collator=DataCollatorWithPadding(s.tokenizer))
    peer.remove_callback(PrinterCallback)
    return peer.train


def seconds_of(s, made):
    "Seconds of a call and the memory it took, in MB."
    gc.collect()
    if s.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    wait(s)
    began = time.perf_counter()
    made()
    wait(s)
    spent = time.perf_counter() - began
    return spent, torch.cuda.max_memory_allocated() / 1e6 if s.gpu else None


@functools.cache
def measured_peak(s):
    "Measured operations per second of a product of two large matrices in 16 bits."
    n = 8192 if s.gpu else 512
    half = {"fp16": torch.float16}.get(s.half, torch.bfloat16)
    a = torch.randn(n, n, device=s.device, dtype=half)
    best = 0.
    for _ in range(5):
        wait(s)
        began = time.perf_counter()
        for _ in range(4):
            a @ a
        wait(s)
        best = max(best, 4 * 2 * n**3 / (time.perf_counter() - began))
    return best


def operations(model: nn.Module, lengths):
    "Of training on rows of these lengths: 6 for each weight of a layer and token, and attention."
    config = model.config
    layers, width = config.num_hidden_layers, config.hidden_size
    weights = layers * (4 * width**2 + 2 * width * config.intermediate_size)
    squares = (lengths.astype(float)**2).sum()
    return float(6 * weights * lengths.sum() + 12 * layers * width * squares)


def compare(s, shape, kind, size, n):
    rows = token_rows(kind, n)
    warm = token_rows(kind, 4 * size)
    for make in (train_ours, train_theirs):
        make(s, shape, warm, size)()
    spent = {"ours": [], "theirs": []}
    for _ in range(3):
        for name, make in (("ours", train_ours), ("theirs", train_theirs)):
            seconds, memory = seconds_of(s, make(s, shape, rows, size))
            spent[name].append(seconds)
            spent[f"{name}_mb"] = memory
    ours, theirs = (float(np.median(spent[k])) for k in ("ours", "theirs"))
    found = {"texts_per_second": round(n / ours), "peer": round(n / theirs),
             "ratio": round(theirs / ours, 2), "memory_mb": spent["ours_mb"],
             "peer_memory_mb": spent["theirs_mb"]}
    peak = measured_peak(s)
    used = operations(shape_of(s, shape).encoder, rows.lengths) / ours
    return found | {"peak_tflops_16_bits": round(peak / 1e12, 1),
                    "share_of_peak": round(used / peak, 3)}


@step(45)
def speed_given_16(s): return compare(s, "given", "real", 16, 4096 if s.gpu else 64)
@step(35)
def speed_given_64(s): return compare(s, "given", "real", 64, 8192 if s.gpu else 128)
@step(45)
def speed_base_128(s): return compare(s, "BERT-base", "128", 64, 2048 if s.gpu else 64)
@step(45)
def speed_base_real(s): return compare(s, "BERT-base", "real", 64, 4096 if s.gpu else 64)


@step(60)
def the_peer_compiled(s):
    "The peer with torch.compile, where that works: an epoch after one that compiles."
    if not s.gpu:
        return {"skipped": "compiled on a GPU alone"}
    rows = token_rows("128", 2048)
    train_theirs(s, "given", rows, 64, compiled=True)()
    seconds, memory = seconds_of(s, train_theirs(s, "given", rows, 64, compiled=True))
    plain, _ = seconds_of(s, train_theirs(s, "given", rows, 64))
    return {"texts_per_second": round(2048 / seconds), "not_compiled": round(2048 / plain),
            "memory_mb": memory}


@step(15)
def the_cpu_side(s):
    "How many texts a second the CPU can plan and collate, alone: it must feed the GPU."
    from insight_nb.data.batches import BatchLoader
    rows = token_rows("real", 20_000)
    found = {}
    for size in (16, 64):
        began = time.perf_counter()
        n = sum(batch.pack() is not None for batch in BatchLoader(rows, size, 4096))
        found[f"texts_per_second_{size}"] = round(len(rows) / (time.perf_counter() - began))
        found[f"batches_{size}"] = n
    texts, _ = s.texts(5000)
    began = time.perf_counter()
    tokenize(texts, s.tokenizer, 128)
    return found | {"tokenized_per_second": round(5000 / (time.perf_counter() - began))}


def plain_loop(s, texts, encoder):
    "What a careful user writes: sorted by length, batches of 64, 16 bits."
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(s.half)
    order = np.argsort([-len(t) for t in texts])
    with torch.inference_mode(), torch.autocast(s.device.type, half, enabled=bool(half)):
        for i in range(0, len(texts), 64):
            part = s.tokenizer([texts[j] for j in order[i:i + 64]], padding=True, truncation=True,
                               max_length=128, return_tensors="pt").to(s.device)
            hidden, mask = encoder(**part).last_hidden_state, part["attention_mask"][..., None]
            ((hidden * mask).sum(1) / mask.sum(1)).float().cpu()


@step(40)
def prediction(s):
    texts, _ = s.texts(8000 if s.gpu else 100)
    encoder = load_backbone(s.backbone)
    plain = load_backbone(s.backbone).encoder.to(s.device).eval()
    calls = {"ours": lambda: embed(texts, encoder, 128, precision=s.half, device=s.device),
             "loop": lambda: plain_loop(s, texts, plain)}
    with contextlib.suppress(ImportError):
        from sentence_transformers import SentenceTransformer, models
        parts = models.Transformer(s.backbone, max_seq_length=128), models.Pooling(encoder.width)
        peer = SentenceTransformer(modules=[*parts, models.Normalize()], device=str(s.device))
        if s.half != "no":
            peer.to({"bf16": torch.bfloat16, "fp16": torch.float16}[s.half])
        calls["sentence_transformers"] = lambda: peer.encode(texts, batch_size=64)
    for call in calls.values():
        call()
    spent = {name: [] for name in calls}
    for _ in range(3):
        for name, call in calls.items():
            spent[name].append(seconds_of(s, call)[0])
    median = {name: float(np.median(v)) for name, v in spent.items()}
    return {f"{name}_texts_per_second": round(len(texts) / v) for name, v in median.items()} | {
        f"ratio_to_{name}": round(v / median["ours"], 2)
        for name, v in median.items() if name != "ours"}


def run(s, names, minutes):
    ends, lines = time.monotonic() + 60 * minutes, []
    for name in names:
        function, usual = STEPS[name]
        began, line = time.perf_counter(), {"step": name}
        if time.monotonic() + usual > ends:
            line |= {"passed": None, "error": "there was no time left"}
        else:
            try:
                line |= {"passed": True, **function(s)}
            except Exception as e:
                where = traceback.extract_tb(e.__traceback__)[-1]
                line |= {"passed": False, "error": f"{type(e).__name__}: {e}"[:600],
                         "where": f"{Path(where.filename).name}:{where.lineno}"}
        line["seconds"] = round(time.perf_counter() - began, 1)
        print(json.dumps(line, default=str), flush=True)
        lines.append(line)
        gc.collect()
    return lines


def table(lines):
    "The lines as a table in Markdown."
    out = ["| step | passed | seconds | found |", "| --- | --- | --- | --- |"]
    for line in lines:
        rest = {k: v for k, v in line.items() if k not in ("step", "passed", "seconds")}
        found = "; ".join(f"{k} {v}" for k, v in rest.items()).replace("|", "/")
        out.append(f"| {line['step']} | {line['passed']} | {line['seconds']} | {found} |")
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", required=True, help="the folder of an encoder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", help="a file for the table")
    parser.add_argument("--only", help="names of some steps, separated by commas")
    parser.add_argument("--minutes", type=float, default=8.)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = args.only.split(",") if args.only else list(STEPS)
    lines = run(Setting(args.backbone, args.device), names, args.minutes)
    if args.out:
        Path(args.out).write_text(table(lines), encoding="utf-8")
    return 1 if any(line["passed"] is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
