"""What is exported answers the same in the tools that it is for, in another process."""
import json
from importlib.metadata import version
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import tiny_encoder
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
from insight_nb.base.core import InputError
from insight_nb.base.tensors import set_seed
from insight_nb.cli import main
from insight_nb.models.adapters import add_adapter, method_options
from insight_nb.models.backbone import (
    Backbone, backbone_license, embedded_folder, load_tokenizer)
from insight_nb.models.tagging import TaggingTask
from insight_nb.models.tasks import ClassificationTask, Model, MultiLabelTask, RegressionTask
from insight_nb.ship import export
from insight_nb.ship.bundle import load_bundle, read_info, run_evidence, save_bundle
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


@pytest.fixture
def elsewhere(tmp_path, other_process):
    "What transformers' own pipeline says in another process."
    def ask(kind, folder, texts):
        (tmp_path / "texts.json").write_text(json.dumps(texts))
        said = other_process(PIPELINE, kind, folder, tmp_path / "texts.json")
        return json.loads(said.split("ANSWERS")[1])
    return ask


@pytest.mark.parametrize("task, kind", [
    (ClassificationTask(LABELS, **CLS), "bert"), (ClassificationTask(LABELS, **CLS), "roberta"),
    (ClassificationTask(LABELS, **CLS), "electra"), (MultiLabelTask(LABELS, **CLS), "bert"),
    (RegressionTask(mean=3., scale=2., **CLS), "bert")])
def test_a_pipeline_in_another_process_gives_the_same_answers(task, kind, tmp_path, elsewhere):
    folder = saved(tmp_path / "b", task, kind)
    export_bundle(folder, "transformers", tmp_path / "out")
    texts = example_texts(40)
    probs = predict(load_bundle(folder, device="cpu"), texts)[1]
    found = elsewhere("text-classification", tmp_path / "out", texts)
    for row, answers in zip(probs, found):
        for name, value in zip(task.names, row):
            got = [a["score"] for a in answers if a["label"] == name]
            assert abs(got[0] - value) < 1e-4


def test_spans_of_a_pipeline(tmp_path, elsewhere):
    folder = saved(tmp_path / "b", TaggingTask(("O", "B-X")), fine=True)
    assert export_bundle(folder, "transformers", tmp_path / "out").passed
    texts = [t for t in example_texts(60) if len(t) < 80]
    wanted = predict(load_bundle(folder, device="cpu"), texts)[0]
    found = elsewhere("token-classification", tmp_path / "out", texts)
    for text, spans, tokens in zip(texts, wanted, found):
        starts = {t["start"] for t in tokens if t["entity"] == "B-X"}
        assert {s["start"] for s in spans} <= starts, text


@pytest.mark.slow
def test_a_tagger_whose_rules_change_its_tags_is_refused(tmp_path):
    follow = np.random.default_rng(0).normal(0, 8, (4, 3)).tolist()
    folder = saved(tmp_path / "b", TaggingTask(("O", "B-X", "I-X"), follow=follow), fine=True)
    with pytest.raises(ExportRefused):
        export_bundle(folder, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_bundle(folder, "onnx", tmp_path / "onnx")  # whose user has the rules in export.json
    facts = json.loads((tmp_path / "onnx" / "export.json").read_text())
    assert facts["settings"]["follow"] == follow


@pytest.mark.parametrize("method, rank, target", [
    ("lora", 4, "transformers"), ("adalora", 4, "transformers"), ("bitfit", None, "transformers"),
    pytest.param("bottleneck", 4, "onnx", marks=pytest.mark.slow)])
def test_adapters_are_merged_or_traced(method, rank, target, tmp_path):
    set_seed(0)
    backbone = tiny_encoder(tmp_path / "tiny")
    for part in add_adapter(backbone, method, **method_options(method, rank)).modules.values():
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
                           device="cpu", options={"anyway": True})  # some know a few letters
    model.fit(texts, ["no", "yes"] * 20).save(tmp_path / "b")
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
    rows = rows_of(60)
    names = sorted({row["label"] for row in rows})
    folder = saved(tmp_path / "b", ClassificationTask(names, **CLS))
    table = write_csv(tmp_path / "t.csv", rows)
    out = str(tmp_path / "out")
    asked = ["export", str(folder), "--to", "onnx", "--out", out, "--table", table]
    assert main([*asked, "--text", "text", "--label", "label"]) == 0
    assert "share of rows right" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "model.onnx", "certificate.json", "README.md", "tokenizer.json", "export.json"}
    made_with = json.loads((tmp_path / "out" / "certificate.json").read_text())["versions"]
    assert made_with["onnxruntime"] == version("onnxruntime")
    assert made_with["torch"] == version("torch") and made_with["opset"]["ai.onnx"] >= 18
    for more, said, status in (
            ([], "exists already", 2), (["--force", "--label", "no"], "no column 'no'", 2)):
        assert main([*asked, *more]) == status
        assert said in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "tflite", "--out", out + "2"]) == 2
    other = saved(tmp_path / "o", ClassificationTask(("good", "bad")))
    assert main(["export", str(other), *asked[2:5], out + "4", *asked[6:], "--label", "label"]) == 2
    assert "not among the 2 labels" in capsys.readouterr().err and not (tmp_path / "out4").exists()
    mean = saved(tmp_path / "m", ClassificationTask("ab"))
    assert main(["export", str(mean), "--to", "transformers", "--out", out + "3"]) == 2
    assert "pool cls" in capsys.readouterr().err and not (tmp_path / "out3").exists()


ONNX = """
import json, re, sys
import numpy as np
folder, file = sys.argv[1:]
texts = json.load(open(file))
card = open(folder + "/README.md").read()
code = re.search("```python\\n(.*?)```", card, re.S)[1].replace("FOLDER", folder)
found = []
for text in texts: # the card's own lines, with another text
    sides = ", ".join(repr([t]) for t in ([text] if isinstance(text, str) else text))
    asked = code.replace('["a text"], ["another text"]', sides).replace('["a text"]', sides)
    exec(asked, room := {})
    found.append(room["logits"][0].tolist())
print("ANSWERS" + json.dumps(found))
"""
CARD = """
import json, re, sys
folder, file = sys.argv[1:]
card = open(folder + "/README.md").read()
code = re.search("```python\\n(.*?)```", card, re.S)[1].replace("FOLDER", folder)
found = []
for text in json.load(open(file)):
    if isinstance(text, str):
        asked = code.replace('"a text"', repr(text))
    else:
        asked = code.replace('"a text"', repr(text[0])).replace('"another text"', repr(text[1]))
    head, last = asked.rstrip().rsplit("\\n", 1)
    if "=" not in last.split("(")[0]:
        last = "given = " + last
    exec(head + "\\n" + last, room := {})
    found.append(room["given"])
print("ANSWERS" + json.dumps(found, default=float))
"""


@pytest.fixture
def by_card(tmp_path, other_process):
    "What the lines of a model card answer in another process."
    def ask(script, folder, texts):
        (tmp_path / "asked.json").write_text(json.dumps(texts))
        said = other_process(script, folder, tmp_path / "asked.json")
        return json.loads(said.split("ANSWERS")[1])
    return ask


def pairs_of(texts): return list(zip(texts, texts[::-1]))


ANSWERS = {"classify": lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True),
           "multilabel": lambda z: 1 / (1 + np.exp(-z)), "regress": lambda z: z}


# each graph takes torch some seconds
@pytest.mark.parametrize("task, facts", [
    *(pytest.param(task, {}, marks=pytest.mark.slow) for task in (
        ClassificationTask(LABELS), MultiLabelTask(LABELS, thresholds=[.2, .5, .8]),
        RegressionTask(mean=3., scale=2.))),
    (ClassificationTask("ab"), {"second": "second"})])
def test_an_onnx_graph_opened_by_its_card_gives_the_same_answers(task, facts, tmp_path, by_card):
    folder = saved(tmp_path / "b", task, **facts)
    proof = export_bundle(folder, "onnx", tmp_path / "out")
    assert proof.equal_answers == 1 and proof.opened_by == "onnxruntime"
    texts = example_texts(25, seed=1)
    texts = pairs_of(texts) if facts else texts
    want = predict(load_bundle(folder, device="cpu"), texts)[1]
    got = ANSWERS[task.name](np.array(by_card(ONNX, tmp_path / "out", texts)))
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-4
    if task.name == "multilabel":
        settings = json.loads((tmp_path / "out" / "export.json").read_text())["settings"]
        assert settings["thresholds"] == [.2, .5, .8]


def test_the_thresholds_of_several_labels_are_in_the_export_and_its_card_applies_them(
        tmp_path, by_card):
    names = tuple(f"topic {i}" for i in range(12))  # more than ten: "10" sorts before "2"
    texts = example_texts(40, seed=1)
    same = saved(tmp_path / "same", MultiLabelTask(names, **CLS))
    middle = np.median(predict(load_bundle(same, device="cpu"), texts)[1], axis=0)
    task = MultiLabelTask(names, thresholds=middle, **CLS)
    folder = saved(tmp_path / "b", task)
    export_bundle(folder, "transformers", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["thresholds"] == middle.tolist()
    want = predict(load_bundle(folder, device="cpu"), texts)[0]
    got = by_card(CARD, tmp_path / "out", texts)
    assert [set(g) for g in got] == [set(w) for w in want]
    assert len(set(want)) > 20
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"topic 11 {task.thresholds[11]:.4f}" in card and "reaches its threshold" in card


def test_pairs_are_read_as_pairs_by_the_pipeline_of_the_card(tmp_path, by_card):
    folder = saved(tmp_path / "b", ClassificationTask("ab", **CLS), second="second")
    export_bundle(folder, "transformers", tmp_path / "out")
    texts = pairs_of(example_texts(30, seed=1))
    answers, probs = predict(load_bundle(folder, device="cpu"), texts)
    found = [a[0] if isinstance(a, list) else a
             for a in by_card(CARD, tmp_path / "out", texts)]
    assert [a["label"] for a in found] == answers
    assert max(abs(a["score"] - p.max()) for a, p in zip(found, probs)) < 1e-4


@pytest.mark.parametrize("target", ["transformers", "onnx"])
def test_a_model_that_reads_in_windows_is_refused_with_what_to_do(target, tmp_path, capsys):
    folder = saved(tmp_path / "b", ClassificationTask("ab", **CLS), overlap=16)
    out = tmp_path / "out"
    with pytest.raises(InputError, match="in windows.*train it without windows"):
        export_bundle(folder, target, out)
    assert main(["export", str(folder), "--to", target, "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip()
    assert "train it without windows" in said and "\n" not in said and not out.exists()


@pytest.mark.slow
def test_8_bits_are_timed_against_32_and_refused_where_answers_change(tmp_path, capsys):
    folder, out = saved(tmp_path / "b", ClassificationTask(LABELS)), tmp_path / "out"
    words = ["export", str(folder), "--to", "onnx", "--int8", "--out", str(out)]
    assert main(words) == 0
    assert "in 32 bits:" in capsys.readouterr().out
    proof = json.loads((out / "certificate.json").read_text())
    assert set(proof["milliseconds"]) == {"bundle", "export", "32 bits"}
    assert all(0 < low <= high for low, high in proof["milliseconds"].values())
    assert proof["form"] in ("8 bits", "weights of 8 bits")
    assert .99 <= proof["equal_answers"] and proof["limits"]["equal_answers"] == .99
    assert {p.name for p in out.iterdir()} >= {"model.onnx", "certificate.json", "README.md"}
    assert len(list(out.glob("*.onnx"))) == 1  # the graph in 32 bits is not left there
    none = {"equal_answers": 1., "largest_difference": 0.}
    with mock.patch.object(export, "int8_limits", lambda task: none):
        assert main([*words[:-1], str(tmp_path / "never")]) == 1
    said = capsys.readouterr().err
    assert "Tried: int8, int8 weights" in said and not (tmp_path / "never").exists()


@pytest.mark.parametrize("target", ["transformers", "sentence-transformers"])
def test_the_certificate_names_what_it_was_made_with(target, tmp_path):
    folder = saved(tmp_path / "b", ClassificationTask("ab", **CLS))
    export_bundle(folder, target, tmp_path / "out", example_texts(20))
    found = json.loads((tmp_path / "out" / "certificate.json").read_text())["versions"]
    assert {"insight_nb", "torch", "transformers", "tokenizers"} <= set(found)
    assert found["torch"] == version("torch")
    if target == "sentence-transformers" and find_spec("sentence_transformers"):
        assert found["sentence-transformers"] == version("sentence-transformers")


def test_vectors_are_compared_by_the_tool_itself_or_the_certificate_says_otherwise(tmp_path):
    folder = saved(tmp_path / "b", ClassificationTask("ab"))
    by = "sentence-transformers" if find_spec("sentence_transformers") else "transformers"
    proof = export_bundle(folder, "sentence-transformers", tmp_path / "st", example_texts(20))
    assert proof.passed and proof.opened_by == by and f"by {by}" in proof.table().caption
    with mock.patch.object(export, "find_spec", lambda name: None):
        proof = export_bundle(folder, "sentence-transformers", tmp_path / "hf", example_texts(20))
    assert proof.passed and proof.opened_by == "transformers"
    assert "sentence-transformers" not in proof.versions


TRUTHS = [
    (ClassificationTask("ab"), ["a", "b", "c"], "row 2 has the label 'c'"),
    (ClassificationTask("ab"), ["a", "b"], "3 texts, but 2 labels"),
    (ClassificationTask("ab"), ["a", None, "b"], "row 1 has the label ''"),
    (ClassificationTask("ab"), [["a"], "b", "b"], "a label can't be"),
    (MultiLabelTask("abc"), ["a;b", "a;x", ""], "row 1 has the label 'x'"),
    (MultiLabelTask("abc"), ["[oops", "a", "b"], "not a list in JSON"),
    (RegressionTask(), ["1", "two", "3"], "row 1 of the labels is 'two'"),
    (RegressionTask(), [1, float("nan"), 3], "row 1 of the labels is 'nan'")]


@pytest.mark.parametrize("task, truth, said", TRUTHS)
def test_labels_that_are_not_known_end_in_one_line(task, truth, said, tmp_path):
    folder = saved(tmp_path / "b", task)
    with pytest.raises(InputError) as refused:
        export_bundle(folder, "onnx", tmp_path / "out", ["one", "two", "很好"], truth)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task, form", [
    (ClassificationTask(("1", "2", "3"), **CLS), lambda a: float(a)),
    (ClassificationTask(("1.0", "2.0"), **CLS), lambda a: float(a)),
    (ClassificationTask(LABELS[:1] + ("好",), **CLS), lambda a: f"  {a} "),
    (MultiLabelTask("abc", thresholds=[.4, .5, .6], **CLS), lambda a: " ; ".join(reversed(a))),
    (MultiLabelTask("abc", thresholds=[.4, .5, .6], **CLS), lambda a: json.dumps(list(a))),
    (MultiLabelTask("abc", thresholds=[.4, .5, .6], **CLS), set),
    (RegressionTask(mean=3., scale=2., **CLS), lambda a: f"{a:.12f}".replace("-", "\u2212"))])
def test_labels_are_read_as_the_recipes_read_them(task, form, tmp_path):
    folder, texts = saved(tmp_path / "b", task), example_texts(15, seed=1)
    own = predict(load_bundle(folder, device="cpu"), texts)[0]
    proof = export_bundle(folder, "transformers", tmp_path / "out", texts, [form(a) for a in own])
    right = 0 if task.name == "regress" else 1
    assert abs(proof.metric["before"] - right) < 1e-9
    assert abs(proof.metric["after"] - right) < 1e-4


def test_what_a_tagger_was_not_asked_is_said(tmp_path):
    folder = saved(tmp_path / "b", TaggingTask(("O", "B-X")), fine=True)
    texts = ["Anna sings in Rome 很好"] * 5 + ["word " * 200] * 2
    proof = export_bundle(folder, "transformers", tmp_path / "out", texts)
    assert (proof.rows, proof.rows_left_out) == (5, 2)
    caption = proof.table().caption
    assert "asked 5 rows" in caption and "2 rows left out: longer than 64 tokens" in caption
    facts = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert facts["rows_left_out"] == 2 and "in windows" in facts["left_out"]
    assert "2 rows left out" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="no row to ask: all are longer than 64 tokens"):
        export_bundle(folder, "transformers", tmp_path / "none", texts[5:])
    with pytest.raises(InputError, match="leave out the labels"):
        export_bundle(folder, "transformers", tmp_path / "none", texts, ["O"] * 7)


EVIL = ("# a\n\n## b", "[x](http://y)", "<script>", "a|b\r\n- c", "`code`", "好", "*bold*",
        "![i](z)", "tab\there")


def test_no_label_is_markup_in_the_card(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    folder = saved(run / "bundle", ClassificationTask(EVIL, **CLS))
    info = read_info(folder)
    evidence = {
        "task": "classify", "model": {"identity": "none", "max_length": 64},
        "data": {"labels": list(EVIL), "source": "my\n# table.csv", "sha256": "ab12",
                 "rows": {"train": 1200, "test": 60}, "dropped": {"empty\n# text": 3},
                 "notes": ["a <b>note</b>\n# x"]},
        "metrics": {"accuracy": {"value": .8, "low": .7, "high": .9, "n": 60}},
        "guard": [{"check": "loss\n# fell", "passed": False, "detail": ""}]}
    (run / "evidence.json").write_text(json.dumps(evidence))
    assert info["backbone"]["identity"] == "none"
    export_bundle(folder, "transformers", run / "out", example_texts(9))
    card = (run / "out" / "README.md").read_text()
    heads = [line for line in card.splitlines() if line.startswith("#")]
    assert heads == ["# A model for the task classify", "## Data", "## Measured", "## Use",
                     "## The same answers"]
    for markup in ("<script", "[x](", "![i](", "<b>", "`code`", "*bold*"):
        assert card.count(markup) == card.count("\\" + markup), markup
    assert "1,200 train, 60 test" in card and "ab12" in card and "3 rows" in card
    assert "License of the rows: not known here" in card 
    assert "0.800 \\[0.700, 0.900\\]" in card
    assert "fell failed" in card.replace("\\", "")
    evidence["data"]["labels"] = ["another", "run"]
    (run / "evidence.json").write_text(json.dumps(evidence))
    assert run_evidence(folder) == {}
    for odd in ("[]", "{", '{"task": 1}', '{"model": [], "data": []}'):
        (run / "evidence.json").write_text(odd)
        assert run_evidence(folder) == {}


def test_the_license_of_the_encoder_is_that_of_its_own_card():
    assert backbone_license(None) == backbone_license("all-MiniLM-L6-v2") == "apache-2.0"
    assert backbone_license("somewhere/never-fetched") is None
