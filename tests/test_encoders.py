"""Twenty kinds of encoders, tiny and random: each is used as its maker meant, gets every adapter or
refuses it in one line, and says the same after it was saved and opened again."""

import json
import shutil

import numpy as np
import pytest
import torch
from insight_nb import SpanTagger, TextClassifier, TextRegressor
from insight_nb.base.core import InputError
from insight_nb.base.tensors import set_seed
from insight_nb.data.dataset import TokenDataset
from insight_nb.data.tokens import tokenize
from insight_nb.models.adapters import add_adapter
from insight_nb.models.backbone import embedded_folder, load_backbone, probe_encoder
from insight_nb.models.heads import POOLS
from insight_nb.models.tasks import ClassificationTask, Model
from insight_nb.ship.bundle import load_bundle, save_bundle
from insight_nb.ship.export import export_bundle
from insight_nb.ship.predict import bundle_logits
from insight_nb.train.inference import embed, predict_logits
from insight_nb.train.optim import TrainConfig
from insight_nb.train.trainer import Trainer
from tiny_encoders import KINDS, WIDTH, write_encoder

TEXTS = ["a good day", "room with a view, and a very friendly cat", "好 day 😀", "late again " * 9]
PREFIX = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "eurobert", "qwen3",
          "llama", "gemma3_text"}
CAUSAL = {"qwen3", "llama"}
OPTIONS = {"full": {}, "lora": {"rank": 4}, "bottleneck": {"size": 8}, "prefix": {"length": 4}}
PROMPTS = {"query": "query: ", "Classification": "task: classification | query: "}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A folder for each kind, written when it is asked for."
    base, made = tmp_path_factory.mktemp("encoders"), {}

    def folder(kind):
        if kind not in made:
            made[kind] = write_encoder(kind, base / kind)
        return made[kind]

    return folder


def train(folder, method):
    "A few steps; the model, and how far its weights moved."
    set_seed(0)
    backbone = load_backbone(folder)
    adapter = add_adapter(backbone, method, **OPTIONS[method])
    model = Model(backbone, ClassificationTask(("no", "yes")))
    before = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    rows = TokenDataset(tokenize(TEXTS * 4, backbone.tokenizer, 32), np.array([0, 1, 1, 0] * 4))
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2, warmup_ratio=0)
    Trainer(model, rows, config=config, device="cpu").fit()
    own = dict(adapter.modules) if adapter else {}
    moved = {k: float((p - before[k]).abs().max()) for k, p in model.named_parameters()
             if k in before}
    return model.eval(), moved, own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", OPTIONS)
def test_trained_saved_and_opened_again(kind, method, folders, tmp_path):
    if method == "prefix" and kind not in PREFIX:
        with pytest.raises(InputError, match="does not support the attention of"):
            train(folders(kind), method)
        return
    model, moved, own = train(folders(kind), method)
    # the attention to chosen tokens of a Longformer is not used by a plain encoder
    still = [k for k, by in moved.items() if not by > 0 and "_global" not in k]
    unused = ("pooler", "token_type", "task_type", "position_embeddings", "relative_attention")
    assert not [k for k in still if not any(u in k for u in unused)], still
    assert bool(own) == (method != "full")
    save_bundle(tmp_path / "b", model, 32)
    texts = [*TEXTS, "another"]
    again = load_bundle(tmp_path / "b", device="cpu")
    torch.testing.assert_close(bundle_logits(again, texts),
                               bundle_logits_of(model, texts), rtol=0, atol=1e-6)
    assert again.model.task.pool == model.task.pool == model.backbone.pool
    assert again.model.backbone.causal == (kind in CAUSAL)


def bundle_logits_of(model, texts):
    "What the model itself says."
    return predict_logits(model, TokenDataset(tokenize(texts, model.backbone.tokenizer, 32)))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batch_change_nothing(kind, folders):
    backbone = load_backbone(folders(kind))
    assert (backbone.width, backbone.causal) == (WIDTH, kind in CAUSAL)
    assert probe_encoder(backbone.encoder) == (WIDTH, kind in CAUSAL)
    texts = [f"{t} {i}" for i in range(4) for t in TEXTS]
    together = embed(texts, backbone, 48)
    alone = np.concatenate([embed([t], backbone, 48) for t in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["qwen3", "llama", "eurobert", "gemma3_text", "modernbert"])
def test_padding_on_the_left(kind, folders):
    backbone, tokens = load_backbone(folders(kind)), []
    for side in ("right", "left"):
        backbone.tokenizer.padding_side = side
        x = backbone.tokenizer(TEXTS, padding=True, return_tensors="pt")
        ids, mask = x["input_ids"], x["attention_mask"].bool()
        with torch.no_grad():
            hidden = backbone(ids, mask)
        tokens.append([pool(hidden, mask) for pool in POOLS.values()])
    for right, left in zip(*tokens):
        torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-5)


KIND, POOL = ["bert", "modernbert", "qwen3"], ["mean", "cls", "lasttoken"]
ASKED = [None, "query", "Classification"]


# each pooling with each prompt, and each of both with each kind
@pytest.mark.parametrize("kind, pool, asked", [
    (KIND[(i + j) % 3], pool, asked) for i, pool in enumerate(POOL) for j, asked in
    enumerate(ASKED)])
def test_vectors_of_sentence_transformers(kind, pool, asked, folders, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = write_encoder(kind, tmp_path / "e", pool, PROMPTS, default=None)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    how = {"prompt_name": asked} if asked else {}
    want = theirs.encode(TEXTS, show_progress_bar=False, **how)
    backbone = load_backbone(folder, prompt=asked or "")
    assert backbone.pool == pool.removesuffix("token")
    np.testing.assert_allclose(embed(TEXTS, backbone, 64), want, atol=1e-5)
    # and what a trained one writes is read by others in the same way
    model = Model(backbone, ClassificationTask(("no", "yes")))
    save_bundle(tmp_path / "b", model, 64)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "b/encoder"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS, show_progress_bar=False), want, atol=1e-5)
    np.testing.assert_allclose(
        embed(TEXTS, load_bundle(tmp_path / "b", device="cpu").model.backbone, 64), want, atol=1e-5)


@pytest.mark.parametrize("dense", [("activation.Tanh",), ("activation.Tanh", "linear.Identity")])
def test_layers_after_the_pooling(dense, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = write_encoder("bert", tmp_path / "e", "cls", dense=dense)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    want = theirs.encode(TEXTS, show_progress_bar=False)
    backbone, size = load_backbone(folder), 48 if len(dense) == 1 else 24
    assert want.shape == (4, size) and embed([], backbone).shape == (0, size)
    np.testing.assert_allclose(embed(TEXTS, backbone, 64), want, atol=1e-5)
    assert backbone.width == WIDTH and not any("proj" in k for k in backbone.state_dict())
    TextClassifier(folder, epochs=1).fit(TEXTS * 5, ["a", "b", "b", "a"] * 5).save(tmp_path / "b")
    own = load_bundle(tmp_path / "b", device="cpu").model.backbone
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "b/encoder"), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS, show_progress_bar=False),
                               embed(TEXTS, own, 64), atol=1e-5)
    (folder / "2_Dense/model.safetensors").unlink()
    with pytest.raises(InputError, match="has a layer 2_Dense without safetensors"):
        load_backbone(folder)


def test_prompts(tmp_path):
    folder = write_encoder("bert", tmp_path / "e", "cls", PROMPTS, default="query")
    prompts = [load_backbone(folder, prompt=p).tokenizer.prompt for p in (None, "", "so: ")]
    assert prompts == ["query: ", "", "so: "]
    model = TextClassifier(folder, epochs=1, options={"prompt": "Classification"})
    texts, y = TEXTS * 5, ["no", "yes", "yes", "no"] * 5
    model.fit(texts, y).save(tmp_path / "b")
    info = json.loads((tmp_path / "b/bundle.json").read_text(encoding="utf-8"))
    assert info["backbone"]["prompt"] == PROMPTS["Classification"]
    assert info["settings"]["pool"] == "cls"
    assert "the first token's vector stands for the text, 'task: " in model.setup_.rule
    own = load_bundle(tmp_path / "b", device="cpu")
    np.testing.assert_array_equal(bundle_logits(own, texts),
                                  bundle_logits(model.bundle_, texts))
    assert own.model.backbone.tokenizer.prompt == PROMPTS["Classification"]


def test_an_adapter_keeps_its_prompt(tmp_path):
    folder = write_encoder("qwen3", tmp_path / "e", "lasttoken", PROMPTS, default="query")
    model = TextClassifier(folder, "lora", epochs=1, options={"prompt": "about: "})
    model.fit(TEXTS * 5, ["no", "yes", "yes", "no"] * 5).save(tmp_path / "b")
    own = load_bundle(tmp_path / "b", device="cpu")
    assert own.model.backbone.tokenizer.prompt == "about: "
    np.testing.assert_array_equal(bundle_logits(own, TEXTS), bundle_logits(model.bundle_, TEXTS))
    with pytest.raises(InputError, match="was trained with 'about: ' before each text"):
        load_bundle(tmp_path / "b", backbone=load_backbone(folder), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "sentence-transformers"])
@pytest.mark.parametrize("kind", ["qwen3", "modernbert", "t5", "eurobert"])
def test_exports(kind, target, tmp_path):
    folder = write_encoder(kind, tmp_path / "e", "mean", PROMPTS, default="query")
    model = TextClassifier(folder, epochs=1, max_length=32)
    model.fit(TEXTS * 5, ["no", "yes", "yes", "no"] * 5).save(tmp_path / "b")
    assert export_bundle(tmp_path / "b", target, tmp_path / "x").passed
    card = (tmp_path / "x/README.md").read_text(encoding="utf-8")
    assert ("Put 'query: ' before each text." in card) == (target == "onnx")


def test_names_that_say_a_prompt(tmp_path):
    folder = write_encoder("bert", tmp_path / "multilingual-e5-small", "mean")
    assert load_backbone(folder).tokenizer.prompt == "query: "


def test_a_folder_that_was_pulled_is_known_by_its_hub_id(tmp_path):
    folder, found = write_encoder("bert", tmp_path / "e"), []
    for hub_id in ("intfloat/multilingual-e5-small", "BAAI/bge-small-zh-v1.5", "nobody/nothing"):
        (folder / "pulled.json").write_text(json.dumps({"hub_id": hub_id}), encoding="utf-8")
        backbone = load_backbone(folder)
        found.append((backbone.pool, backbone.tokenizer.prompt))
    assert found == [("mean", "query: "), ("cls", ""), ("mean", "")]


def test_a_model_of_several_senses_reads_texts(tmp_path):
    from transformers import AutoConfig, AutoModel
    text = {"vocab_size": 30522, "hidden_size": 32, "embedding_dim": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
            "intermediate_size": 64, "hidden_size_per_layer_input": 8}
    config = AutoConfig.for_model("embedding_gemma2", text_config=text)
    config.vision_config = config.audio_config = None
    AutoModel.from_config(config).save_pretrained(tmp_path / "e")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_folder() / name, tmp_path / "e")
    backbone = load_backbone(tmp_path / "e")
    assert (backbone.width, backbone.pool, backbone.causal) == (48, "mean", False)
    model = TextClassifier(tmp_path / "e", epochs=1).fit(TEXTS * 5, ["a", "b", "b", "a"] * 5)
    model.save(tmp_path / "b")
    again = load_bundle(tmp_path / "b", device="cpu")
    assert again.model.backbone.encoder.config.model_type == "embedding_gemma2_text"
    np.testing.assert_array_equal(bundle_logits(again, TEXTS), bundle_logits(model.bundle_, TEXTS))


def test_a_tagger_wants_both_sides(folders):
    with pytest.raises(InputError, match="qwen3 reads from left to right"):
        SpanTagger(folders("qwen3")).prepare()


def test_what_is_refused(tmp_path):
    folder = write_encoder("bert", tmp_path / "e", ["cls", "mean"], {})
    with pytest.raises(InputError, match=r"pools by \['cls', 'mean'\]"):
        load_backbone(folder)
    config = json.loads((folder / "config.json").read_text())
    for model_type, more in (("own_bert", {"auto_map": {"AutoModel": "modeling.OwnBert"}}),
                             ("bart", {"is_encoder_decoder": True})):
        other = shutil.copytree(folder, tmp_path / model_type)
        (other / "modules.json").unlink()
        (other / "config.json").write_text(json.dumps(config | {"model_type": model_type} | more))
        with pytest.raises(InputError) as said:
            load_backbone(other)
        assert "\n" not in str(said.value) and str(other) in str(said.value)


def test_a_hub_id_of_which_only_the_weights_were_brought_is_looked_up(tmp_path, monkeypatch):
    from huggingface_hub import constants

    from insight_nb.models import backbone
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    answers = iter([True, False, InputError("nobody answers")])

    def looked(*_):
        answer = next(answers)
        if isinstance(answer, InputError):
            raise answer
        return answer

    monkeypatch.setattr(backbone, "hub_access", looked)
    place, commit = tmp_path / "models--a--b", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (place / "snapshots" / commit / name).write_text("{}")
    # what the hub has beside them is not known: ask it, if it answers
    assert [backbone._from_hub("a/b", None)["local_files_only"] for _ in range(3)] == [
        False, True, True]
    (place / ".no_exist" / commit).mkdir(parents=True)
    (place / ".no_exist" / commit / "modules.json").touch()
    assert backbone._from_hub("a/b", None)["local_files_only"]
    assert next(answers, None) is None


STRANGE = {
    "modules.json": ("5", "{}", '"x"', "[1]", '[{"type": 5}]', '[{"type": "a.Pooling"}]',
                     "[" * 5000, '[{"type": "a.Pooling", "path": "../x"}]', "none",
                     '[{"type": "a.Pooling", "path": "3_Gone"}]'),
    "1_Pooling/config.json": ("[]", "5", "null", '{"pooling_mode": "%s"}' % ("z" * 5000)),
    "config_sentence_transformers.json": (
        "5", '{"prompts": 5}', '{"prompts": ["a"]}', '{"default_prompt_name": ["a"]}',
        '{"default_prompt_name": "%s"}' % ("n" * 5000),
        '{"prompts": {"a": "\\ud800"}, "default_prompt_name": "a"}')}


def test_strange_files_end_in_one_short_line(tmp_path):
    folder = write_encoder("bert", tmp_path / "e", "cls", {})
    for file, contents in STRANGE.items():
        before = (folder / file).read_text()
        for content in contents:
            (folder / file).write_text(content)
            with pytest.raises(InputError) as said:
                load_backbone(folder)
            message = str(said.value).replace(str(tmp_path), "")
            assert len(message) < 250 and "object" not in message and "\n" not in message, message
        (folder / file).write_text(before)
    for content in ("x", "[]", '{"hub_id": 5}'):
        (folder / "pulled.json").write_text(content)
        assert load_backbone(folder).pool == "cls"


def test_a_pooling_that_is_missing_is_not_taken_for_a_mean(tmp_path):
    folder = write_encoder("bert", tmp_path / "e", "cls", {})
    (folder / "1_Pooling/config.json").unlink()
    with pytest.raises(InputError, match="1_Pooling/config.json of .* or not there"):
        load_backbone(folder)


def test_prompts_that_can_not_be_used(tmp_path):
    folder = write_encoder("bert", tmp_path / "e", "mean", {})
    for prompt, words in (("long " * 100, "tokens are taken by the prompt 'long long"),
                          ("\ud800", "the prompt holds half a character")):
        model = TextClassifier(folder, epochs=1, max_length=64, options={"prompt": prompt})
        with pytest.raises(InputError, match=words):
            model.fit(TEXTS * 5, ["a", "b", "b", "a"] * 5)


def test_a_window_has_the_tokens_of_a_text_behind_its_prompt():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from insight_nb.data.tokens import tokenize
    from insight_nb.data.windows import window_dataset
    words = ["<s>", "</s>", "<unk>", "▁", "▁query:", "▁good", "▁day", "good", "day", "好", "▁好"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<s>",
                                        bos_token="<s>", eos_token="</s>", model_max_length=64)
    texts = ["good day", "好", ""]
    for prompt in ("query: ", "query:", ""):
        tokenizer.prompt = prompt
        rows, plain = window_dataset(texts, tokenizer, 16, 4), tokenize(texts, tokenizer, 16)
        for i in range(2):
            if prompt != "query:":  # where word and prompt are one token, they are kept apart
                assert rows.tokens[i].tolist() == plain[i].tolist()
    assert len(window_dataset(["good day " * 30], tokenizer, 16, 4).tokens) > 4


@pytest.mark.parametrize("method", ["full", "lora"])
def test_vectors_are_exported_with_the_pooling_of_training(method, tmp_path):
    folder = write_encoder("bert", tmp_path / "e", "cls", {})
    model = TextClassifier(folder, method, epochs=1, options={"pool": "mean"})
    model.fit(TEXTS * 5, ["no", "yes", "yes", "no"] * 5).save(tmp_path / "b")
    assert load_bundle(tmp_path / "b", device="cpu").model.backbone.pool == "mean"
    assert export_bundle(tmp_path / "b", "sentence-transformers", tmp_path / "x").passed
    told = json.loads((tmp_path / "x/1_Pooling/config.json").read_text())
    assert told["pooling_mode_mean_tokens"] is True


def test_results_are_kept_apart_by_how_an_encoder_reads(tmp_path):
    from insight_nb.jobs.labeling import cached_vectors
    from insight_nb.methods.frozen import LinearProbe
    folder, kept = write_encoder("bert", tmp_path / "e", "cls", {}), tmp_path / "v.npz"
    probes = [LinearProbe(load_backbone(folder, prompt=p)).settings() for p in ("", "", "q: ")]
    assert probes[0] == probes[1] != probes[2]
    first = cached_vectors(TEXTS, kept, str(folder))
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "mean"}')
    assert LinearProbe(load_backbone(folder)).settings() != probes[0]
    assert np.abs(cached_vectors(TEXTS, kept, str(folder)) - first).max() > 0.01


def test_a_tagging_rung_has_no_prompt(tmp_path):
    from insight_nb.data.tags import TaggedTexts
    from insight_nb.jobs.rungs import save_rung
    from insight_nb.methods.taggers import FineTunedTagger
    folder = write_encoder("bert", tmp_path / "multilingual-e5-small")
    assert load_backbone(folder).tokenizer.prompt == "query: "
    rows = TaggedTexts(["Ann met Bob", "they sat"] * 6,
                       [[(0, 3), (4, 7), (8, 11)], [(0, 4), (5, 8)]] * 6,
                       [["B-P", "O", "B-P"], ["O", "O"]] * 6)
    rung = FineTunedTagger("full", str(folder), given={"epochs": 1})
    rung.fit(rows, ("O", "B-P", "I-P"), 0)
    assert "prompt" not in save_rung(tmp_path / "b", rung)["backbone"]
    assert not (tmp_path / "b/encoder/config_sentence_transformers.json").exists()


def test_a_question_gets_the_prompt_of_the_stored_ones(tmp_path):
    from insight_nb.apps.assistant.retrieval import AnswerIndex
    folder = write_encoder("bert", tmp_path / "e", "mean",
                           {"query": "query: ", "document": "passage: "}, default="query")
    backbone = load_backbone(folder)

    def embed_all(texts):
        vectors = embed(texts, backbone, 64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    index = AnswerIndex(TEXTS, ["a", "b", "c", "d"], embed_all)
    assert [index.search(text)[0].similarity for text in TEXTS] == pytest.approx([1] * 4, abs=1e-5)


def test_the_rule_says_layers_and_width(tmp_path):
    folder = write_encoder("bert", tmp_path / "e", "mean")
    layers = load_backbone(folder).encoder.config.num_hidden_layers
    said, classes = [], ["a", "b", "b", "a"]
    for kind, y in ((TextClassifier, classes * 5), (TextRegressor, [1., 2., 3., 4.] * 5)):
        said.append(kind(folder, epochs=1).fit(TEXTS * 5, y).setup_.rule)
    shape = f", a backbone of {layers} layers, {WIDTH} wide, method full: 1 epoch"
    assert f" rows in 2 classes{shape}" in said[0]
    assert f" rows{shape}" in said[1] # numbers have no classes
