"""What is exported answers the same in the tools that it is for, in another process."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_cli import rows_of, write_csv
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import (
    AutoConfig, AutoModel, AutoTokenizer, NomicBertConfig, NomicBertModel, PreTrainedTokenizerFast)
from transformers.models.auto import modeling_auto

from insight_nb import TextClassifier
from insight_nb.base.tensors import set_seed
from insight_nb.cli import main
from insight_nb.models.adapters import add_adapter
from insight_nb.models.backbone import (
    Backbone, embedded_folder, load_backbone, load_tokenizer)
from insight_nb.models.tagging import TaggingTask
from insight_nb.models.tasks import ClassificationTask, Model, MultiLabelTask, RegressionTask
from insight_nb.ship.bundle import load_bundle, save_bundle
from insight_nb.ship.export import ExportRefused, example_texts, export_bundle
from insight_nb.ship.predict import predict

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48}
LABELS = ("neg/ative", "好<b>\n", "x" * 99)
CLS = {"pool": "cls"}


def backbone_of(kind="bert", **more):
    set_seed(0)
    tokenizer = load_tokenizer(embedded_folder(), local_files_only=True)
    config = AutoConfig.for_model(kind, **SIZE, vocab_size=len(tokenizer), pad_token_id=0, **more)
    encoder = AutoModel.from_config(config)
    encoder.pooler = None
    return Backbone(encoder.eval(), tokenizer, "tiny", "none")


def saved(folder, task, kind="bert", method=None, **facts):
    backbone = backbone_of(kind)
    if method:
        add_adapter(backbone, method)
    model = Model(backbone, task).eval()
    torch.nn.init.normal_(model.head.linear.weight, std=.5)
    save_bundle(folder, model, 64, 1.3 if task.name == "classify" else 1., facts)
    return folder


PIPELINE = """
import json, sys
from transformers import pipeline
kind, folder, file = sys.argv[1:]
call = pipeline(kind, folder, **({"top_k": None} if kind.startswith("text") else {}))
more = {"truncation": True} if kind.startswith("text") else {}
found = [call([t], **more)[0] for t in json.load(open(file))]
print("ANSWERS" + json.dumps(found, default=float))
"""


def elsewhere(kind, folder, texts, tmp_path):
    "What transformers' own pipeline says in another process."
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts))
    done = subprocess.run([sys.executable, "-c", PIPELINE, kind, str(folder), str(file)],
                          capture_output=True, text=True)
    assert "ANSWERS" in done.stdout, done.stderr
    return json.loads(done.stdout.split("ANSWERS")[1])


@pytest.mark.parametrize("task, kind", [
    (ClassificationTask(LABELS, **CLS), "bert"), (ClassificationTask(LABELS, **CLS), "roberta"),
    (ClassificationTask(LABELS, **CLS), "electra"), (MultiLabelTask(LABELS, **CLS), "bert"),
    (RegressionTask(mean=3., scale=2., **CLS), "bert")])
def test_a_pipeline_in_another_process_gives_the_same_answers(task, kind, tmp_path):
    folder = saved(tmp_path / "b", task, kind)
    export_bundle(folder, "transformers", tmp_path / "out")
    texts = example_texts(100)
    probs = predict(load_bundle(folder, device="cpu"), texts)[1]
    found = elsewhere("text-classification", tmp_path / "out", texts, tmp_path)
    for row, answers in zip(probs, found):
        for name, value in zip(task.names, row):
            got = [a["score"] for a in answers if a["label"] == name]
            assert abs(got[0] - value) < 1e-4


def test_spans_of_a_pipeline(tmp_path):
    folder = saved(tmp_path / "b", TaggingTask(("O", "B-X")), fine=True)
    assert export_bundle(folder, "transformers", tmp_path / "out").passed
    texts = [t for t in example_texts(60) if len(t) < 80]
    wanted = predict(load_bundle(folder, device="cpu"), texts)[0]
    found = elsewhere("token-classification", tmp_path / "out", texts, tmp_path)
    for text, spans, tokens in zip(texts, wanted, found):
        starts = {t["start"] for t in tokens if t["entity"] == "B-X"}
        assert {s["start"] for s in spans} <= starts, text


def test_a_tagger_whose_rules_change_its_tags_is_refused(tmp_path):
    follow = np.random.default_rng(0).normal(0, 8, (4, 3)).tolist()
    folder = saved(tmp_path / "b", TaggingTask(("O", "B-X", "I-X"), follow=follow), fine=True)
    with pytest.raises(ExportRefused):
        export_bundle(folder, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_bundle(folder, "onnx", tmp_path / "onnx")  # whose user has the rules in export.json
    facts = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert facts["settings"]["follow"] == follow


@pytest.mark.parametrize("method, target", [
    ("lora", "transformers"), ("adalora", "onnx"), ("bitfit", "transformers"),
    ("bottleneck", "onnx")])
def test_adapters_are_merged_or_traced(method, target, tmp_path):
    set_seed(0)
    backbone = load_backbone()
    for part in add_adapter(backbone, method).modules.values():
        for weight in part.parameters():
            weight.data += .02 * torch.randn_like(weight)
    model = Model(backbone, ClassificationTask("ab", **CLS)).eval()
    torch.nn.init.normal_(model.head.linear.weight, std=.5)
    save_bundle(tmp_path / "b", model, 64)
    proof = export_bundle(tmp_path / "b", target, tmp_path / "out", example_texts(40))
    assert proof.passed and proof.equal_answers == 1


def test_weights_that_share_memory_are_saved(tmp_path):
    tokenizer = load_tokenizer(embedded_folder(), local_files_only=True)
    encoder = NomicBertModel(NomicBertConfig(**SIZE, vocab_size=len(tokenizer)))
    model = Model(Backbone(encoder.eval(), tokenizer, "nomic"), ClassificationTask("ab"))
    save_bundle(tmp_path / "b", model.eval(), 32)
    texts = example_texts(5)
    assert len(predict(load_bundle(tmp_path / "b", device="cpu"), texts)[0]) == 5


def test_no_well_known_call_answers_with_fresh_weights(tmp_path):
    "Every AutoModelFor... on every folder that we write loads exactly or raises."
    folder = saved(tmp_path / "b", ClassificationTask(LABELS, **CLS))
    adapter = saved(tmp_path / "a", ClassificationTask(LABELS), method="lora")
    export_bundle(folder, "sentence-transformers", tmp_path / "st")
    export_bundle(folder, "transformers", tmp_path / "hf")
    names = [n for n in modeling_auto.__all__ if n.startswith("AutoModel")]
    assert len(names) > 20
    places = [folder, folder / "encoder", adapter, adapter / "encoder", tmp_path / "st",
              tmp_path / "hf"]
    loaded = {}
    for place in places:
        for name in names:
            try:
                model, info = getattr(modeling_auto, name).from_pretrained(
                    place, output_loading_info=True, local_files_only=True)
            except (OSError, ValueError, RuntimeError, AttributeError, KeyError):
                continue
            loaded.setdefault(place.name, []).append(name)
            assert not info["missing_keys"] and not info["mismatched_keys"], (place, name)
    bare = {"AutoModel", "AutoModelForTextEncoding"}  # the encoder alone
    assert set(loaded) == {"encoder", "st", "hf"}
    assert bare >= set(loaded["encoder"]) >= {"AutoModel"} and bare >= set(loaded["st"])
    assert "AutoModelForSequenceClassification" in loaded["hf"]
    own = load_bundle(folder, device="cpu").model.backbone.encoder.state_dict()
    wrote = load_file(folder / "encoder" / "model.safetensors")
    assert all(torch.equal(v, wrote[k]) for k, v in own.items())


LETTERS = {"bpe": BpeTrainer, "unigram": UnigramTrainer}


def own_tokenizer(kind):
    "A tokenizer as RoBERTa has one (bytes, BPE), or as ALBERT and XLM-R have one (Unigram)."
    core = Tokenizer(BPE() if kind == "bpe" else Unigram())
    core.pre_tokenizer = ByteLevel() if kind == "bpe" else Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.train_from_iterator(example_texts(100), LETTERS[kind](
        vocab_size=400, special_tokens=special, show_progress=False,
        **{"unk_token": "<unk>"} if kind == "unigram" else {}))
    ends = [("<s>", 0), ("</s>", 2)]
    core.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", cls_token="<s>", eos_token="</s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
        model_max_length=100)


ENCODERS = {"roberta": ("bpe", SIZE), "xlm-roberta": ("unigram", SIZE), "electra": (None, SIZE),
            "albert": ("unigram", SIZE | {"embedding_size": 16}),
            "distilbert": (None, {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48})}


@pytest.mark.parametrize("kind", ENCODERS)
def test_other_encoders_load_exactly_or_raise(kind, tmp_path):
    letters, size = ENCODERS[kind]
    tokenizer = own_tokenizer(letters) if letters else load_tokenizer(
        embedded_folder(), local_files_only=True)
    set_seed(0)
    config = AutoConfig.for_model(kind, **size, vocab_size=len(tokenizer),
                                  pad_token_id=tokenizer.pad_token_id, max_position_embeddings=110)
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    texts = example_texts(40)
    model = TextClassifier(str(tmp_path / "encoder"), max_length=32, epochs=1, batch_size=8,
                           device="cpu").fit(texts, ["no", "yes"] * 20)
    model.save(tmp_path / "b")
    opened = load_bundle(tmp_path / "b", device="cpu")
    assert np.array_equal(predict(opened, texts)[1], model.predict_proba(texts))
    theirs = AutoModel.from_pretrained(tmp_path / "b" / "encoder").eval()
    read = AutoTokenizer.from_pretrained(tmp_path / "b" / "encoder")
    batch = read(texts[0], truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        want = opened.model.backbone(batch["input_ids"], batch["attention_mask"].bool())
        got = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert torch.allclose(want, got.last_hidden_state, atol=1e-6)
    names = [n for n in modeling_auto.__all__ if n.startswith("AutoModelFor")]
    raised = 0
    for name in names:
        try:
            _, info = getattr(modeling_auto, name).from_pretrained(
                tmp_path / "b" / "encoder", output_loading_info=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError, AttributeError, KeyError):
            raised += 1
        else:
            assert not info["missing_keys"] and not info["mismatched_keys"], name
    assert raised > len(names) - 3


def test_sentence_transformers_gives_the_same_vectors(tmp_path):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    from insight_nb.train.inference import embed
    folder, texts = saved(tmp_path / "b", ClassificationTask(LABELS)), example_texts(50)
    want = embed(texts, load_bundle(folder, device="cpu").model.backbone, 64, device="cpu")
    got = SentenceTransformer(str(folder / "encoder"), device="cpu").encode(texts)
    assert np.abs(want - got).max() < 1e-4


def test_the_command(tmp_path, capsys):
    folder = saved(tmp_path / "b", ClassificationTask(("good", "bad"), **CLS))
    table = write_csv(tmp_path / "t.csv", rows_of(60))
    out = str(tmp_path / "out")
    asked = ["export", str(folder), "--to", "onnx", "--out", out, "--table", table]
    assert main([*asked, "--text", "text", "--label", "label"]) == 0
    assert "share of rows right" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "model.onnx", "certificate.json", "README.md", "tokenizer.json", "export.json"}
    for more, said, status in (
            ([], "exists already", 2), (["--force", "--label", "no"], "no column 'no'", 2)):
        assert main([*asked, *more]) == status
        assert said in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "tflite", "--out", out + "2"]) == 2
    mean = saved(tmp_path / "m", ClassificationTask("ab"))
    assert main(["export", str(mean), "--to", "transformers", "--out", out + "3"]) == 2
    assert "pool cls" in capsys.readouterr().err and not (tmp_path / "out3").exists()
