"""Encoders to choose from, without torch or network; and what `pull` brings, refuses and leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import refused, tiny_encoder
from hub_server import COMMIT, Handler, HubServer
from insight_nb import cli
from insight_nb.base.core import InputError, hash_file
from insight_nb.models.backbone import load_backbone
from insight_nb.models.catalog import (
    ENCODERS, TWINS, estimate_training, find_twin, list_encoders, pull_command, suggest_encoders)
from insight_nb.models.pull import check_pulled, pull_encoder
from safetensors.torch import save_file
from transformers import (
    BertConfig, BertModel, EuroBertConfig, EuroBertModel, ModernBertConfig, ModernBertModel,
    Qwen3Config, Qwen3Model)
from transformers.models.embedding_gemma2 import (
    EmbeddingGemma2TextConfig, EmbeddingGemma2TextModel)
from transformers.models.gte import GteConfig, GteModel

PROGRAM = Path(sys.executable).parent / "insight-nb"

# The catalog

INNER = {"granite": 1536, "ModernBERT": 1152, "mmBERT": 1152, "modernbert": 1152}
WORDS = {  # that the tokenizer of each knows
    "sentence-transformers/all-MiniLM-L6-v2": 30522, "BAAI/bge-small-en-v1.5": 30522,
    "BAAI/bge-small-zh-v1.5": 21128, "BAAI/bge-base-zh-v1.5": 21128,
    "google-bert/bert-base-chinese": 21128, "intfloat/multilingual-e5-small": 250037,
    "Alibaba-NLP/gte-modernbert-base": 50368, "answerdotai/ModernBERT-base": 50368,
    "agentlans/mmBERT-small-safetensors": 256000, "datalama/mmBERT-base": 256000,
    "ibm-granite/granite-embedding-97m-multilingual-r2": 180000,
    "Qwen/Qwen3-Embedding-0.6B": 151669}


def built(e):
    "An encoder of its shape, without memory."
    size = {"hidden_size": e.width, "num_hidden_layers": e.layers}
    if e.hub_id in WORDS:
        size["vocab_size"] = WORDS[e.hub_id]
    if e.model_type == "bert":
        size |= {"intermediate_size": 4 * e.width, "num_attention_heads": e.width // 64}
    if e.model_type == "modernbert":
        inner = next(n for name, n in INNER.items() if name in e.hub_id)
        size |= {"intermediate_size": inner, "num_attention_heads": e.width // 64}
    if e.model_type == "qwen3":
        size |= {"num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 3072}
    make, config = {
        "bert": (BertModel, BertConfig), "modernbert": (ModernBertModel, ModernBertConfig),
        "gte": (GteModel, GteConfig), "eurobert": (EuroBertModel, EuroBertConfig),
        "qwen3": (Qwen3Model, Qwen3Config),
        "embedding_gemma2": (EmbeddingGemma2TextModel, EmbeddingGemma2TextConfig)}[e.model_type]
    with torch.device("meta"):
        return make(config(**size))


@pytest.mark.parametrize("e", ENCODERS, ids=lambda e: e.hub_id.split("/")[1])
def test_sizes_are_those_of_the_architecture(e):
    model = built(e)
    table = model.get_input_embeddings().weight.numel()
    whole = sum(p.numel() for p in model.parameters())
    assert whole / 1e6 == pytest.approx(e.parameters, rel=0.01)
    assert (whole - table) / 1e6 == pytest.approx(e.layer_parameters, rel=0.01)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size) == (e.layers, e.width)
    if e.megabytes: # 16 or 32 bits for each, or with parts that are not for texts
        assert e.megabytes > 1.9 * e.parameters


def test_twins_lead_to_encoders_that_can_be_had():
    refused_ids = {t.hub_id for t in TWINS}
    assert all(t.twin not in refused_ids and t.source.startswith("https://") for t in TWINS)
    assert find_twin("ALIBABA-NLP/gte-multilingual-base").same
    for language in ("en", "zh", "many"):
        three = suggest_encoders(language)
        assert len(three) == 3 and all(e in list_encoders(language) for e in three)
        assert all(re.fullmatch(r"insight-nb pull \S+ --out \S+", pull_command(e)) for e in three)
    with pytest.raises(InputError, match="say en, zh, or many"):
        suggest_encoders("Chinese")


def test_estimates_grow_with_the_work():
    by_work = [estimate_training(e) for e in ENCODERS]
    t4 = [c.t4_hours for c in by_work]
    assert t4 == sorted(t4) and all(c.cpu_hours > 20 * c.t4_hours for c in by_work)


LIGHT = """
import socket, sys, time
def no(*_): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = no
from insight_nb.cli import main
status = main(["backbones", *sys.argv[1:]])
heavy = {"torch", "transformers", "huggingface_hub", "pandas", "numpy"} & set(sys.modules)
print("heavy:", *sorted(heavy))
sys.exit(status)
"""


def test_backbones_answers_at_once_without_torch_or_network():
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", LIGHT, "--language", "zh"],
                              capture_output=True, text=True, encoding="utf-8")
        took.append(time.perf_counter() - start)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[-1] == "heavy:" and min(took) < 1
    ids = [e.hub_id for e in list_encoders("zh")]
    assert len(ids) >= 10 and all(any(i in line for line in lines) for i in ids)
    assert sum("https://" in line for line in lines) == len(ids) # each line has its source
    assert max(map(len, lines[:4])) <= 130


def test_backbones_refuses_another_language(ends):
    refused(ends("backbones", "--language", "klingon"), "say en, zh, or many")
    for rows in ("0", "-5", "9" * 30, "1" + "0" * 400):
        refused(ends("backbones", "--rows", rows), "rows is ", "give a number from 1 to")
    assert ends("backbones").status == 0


# Pulling


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A page of the hub: a whole tiny encoder, and much that nobody should take."
    folder = tmp_path_factory.mktemp("page")
    tiny_encoder(folder)
    library = "sentence_transformers.models"
    steps = [{"idx": i, "name": str(i), "path": path, "type": f"{library}.{kind}"}
             for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n很好", encoding="utf-8")
    for name in ("pytorch_model.bin", "modeling_own.py", "training_args.bin", "tf_model.h5"):
        (folder / name).write_bytes(b"a program")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"twice the same")
    return folder


@pytest.fixture
def online(monkeypatch):
    "The hub may be asked: the one on this machine."
    from huggingface_hub import constants
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    @contextmanager
    def at(server):
        with server:
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            yield server

    return at


def variant(page, to, **files):
    "The page with some files changed; None takes one away."
    shutil.copytree(page, to)
    for name, content in files.items():
        path = to / name.replace("__", "/")
        path = path if path.exists() else to / name
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return to


def test_pull_brings_what_is_needed_and_nothing_else(page, online, tmp_path, monkeypatch, capsys):
    with online(HubServer({"a/tiny": page})) as hub:
        assert cli.main(["pull", "a/tiny", "--out", "new/tiny", "--revision", "main"]) == 0
        asked = hub.given()
    said = capsys.readouterr()
    assert said.err == "" and f"a/tiny at {COMMIT[:12]}" in said.out and "license mit" in said.out
    have = sorted(p.relative_to("new/tiny").as_posix() for p in Path("new/tiny").rglob("*")
                  if p.is_file())
    assert have == sorted([*asked, "pulled.json"]) and len(asked) == len(set(asked))
    assert "1_Pooling/config.json" in have and "model.safetensors" in have
    assert not [n for n in have if n.endswith((".py", ".bin", ".h5", ".onnx"))]
    assert all(p == f"a/tiny/resolve/{COMMIT}/" + p.split(COMMIT + "/")[1]
               for _, p in hub.requests if "resolve" in p) # all of one commit
    told = json.loads(Path("new/tiny/pulled.json").read_text())
    assert told["commit"] == COMMIT and told["hub_id"] == "a/tiny" and told["revision"] == "main"
    assert told["files"] == {n: hash_file(page / n) for n in asked}
    assert os.listdir("new") == ["tiny"]
    # the hub has gone
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    backbone = load_backbone("new/tiny")
    with torch.no_grad():
        weights = backbone.encoder.get_input_embeddings().weight
        original = load_backbone(str(page)).encoder.get_input_embeddings().weight
    assert torch.equal(weights, original)
    assert cli.main(["pull", "new/tiny", "--check"]) == 0
    assert "as it came" in capsys.readouterr().out
    Path("new/tiny/tokenizer.json").write_text("changed")
    assert cli.main(["pull", "new/tiny", "--check"]) == 2
    assert "tokenizer.json in new/tiny is missing, or not as it came" in capsys.readouterr().err


def test_weights_in_parts_and_a_dense_step(page, online, tmp_path):
    part = "model-00001-of-00001.safetensors"
    steps = [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]
    linear = {"activation_function": "torch.nn.modules.linear.Identity"}
    own = variant(page, tmp_path / "own", **{
        "model.safetensors.index.json": {"weight_map": {"a": part}}, "modules.json": steps})
    (own / "model.safetensors").rename(own / part)
    (own / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, own / "2_Dense" / "model.safetensors")
    (own / "2_Dense" / "config.json").write_text(json.dumps(linear))
    with online(HubServer({"a/own": own})):
        found = pull_encoder("a/own", tmp_path / "out")
    assert {part, "2_Dense/model.safetensors", "2_Dense/config.json"} < set(found.files)
    load_backbone_parts = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert load_backbone_parts == [part]


NO_WEIGHTS = {"model.safetensors": None}
OWN = {"auto_map": {"AutoModel": "modeling_own.Own"}, "model_type": "new",
       "architectures": ["NewModel"]}
REFUSED = {
    "pickle": ("a/tiny", NO_WEIGHTS, ("no safetensors, only pytorch_model.bin", "convert")),
    "pickle with a twin": ("jhu-clsp/mmBERT-small", NO_WEIGHTS,
                           ("no safetensors", "Take agentlans/mmBERT-small-safetensors")),
    "pickle, another instead": ("jhu-clsp/ettin-encoder-68m", NO_WEIGHTS,
                                ("no safetensors", "Take BAAI/bge-small-en-v1.5, of about")),
    "in a pull request": ("BAAI/bge-base-zh-v1.5", NO_WEIGHTS, ("--revision refs/pr/1",)),
    "program": ("a/tiny", {"config.json": OWN}, ("program of its own", "insight-nb backbones")),
    "program with a twin": ("Alibaba-NLP/gte-multilingual-base", {"config.json": OWN},
                            ("Take alibaba-nlp-community/gte-multilingual-base",)),
    "program, known kind": ("LiquidAI/LFM2.5-Encoder-350M", {}, ("program of its own", "Take")),
    "step with a program": ("a/tiny", {"modules.json": [{"type": "custom_st.X", "path": ""}]},
                            ("its step 'custom_st.X' is a program",)),
    "step elsewhere": ("a/tiny", {"modules.json": [
        {"type": "sentence_transformers.models.Dense", "path": "../../x"}]}, ("no usual folder",)),
    "pickled step": ("a/tiny", {"2_Dense/pytorch_model.bin": "x", "modules.json": [
        {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]},
        ("its step 2_Dense has no safetensors",)),
    "step without weights": ("a/tiny", {"2_Dense/config.json": {}, "modules.json": [
        {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]},
        ("its step 2_Dense has no safetensors",)),
    "step with another activation": ("a/tiny", {
        "2_Dense/config.json": {"activation_function": "torch.nn.modules.activation.GELU"},
        "2_Dense/model.safetensors": "x", "modules.json": [
            {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]},
        ("it has a layer 2_Dense with more than a matrix and tanh", "insight-nb backbones")),
    "step of another kind": ("a/tiny", {"modules.json": [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.CNN", "path": "1_CNN"}]},
        ("it goes by the steps Transformer, CNN",)),
    "another pooling": ("a/tiny", {"1_Pooling/config.json": {"pooling_mode_max_tokens": True}},
                        ("it pools by max_tokens",)),
    "pooling unsaid": ("a/tiny", {"1_Pooling/config.json": None},
                       ("its step 1_Pooling has no config.json",)),
    "no weights": ("a/tiny", NO_WEIGHTS | {"pytorch_model.bin": None, "tf_model.h5": None},
                   ("it has no model.safetensors. Choose",)),
    "an adapter": ("a/tiny", NO_WEIGHTS | {"pytorch_model.bin": None, "tf_model.h5": None,
                                           "adapter_model.safetensors": "x"},
                   ("only adapter_model.safetensors, which is not a whole encoder",)),
    "no tokenizer": ("a/tiny", {"tokenizer.json": None}, ("it has no tokenizer (tokenizer.json)",)),
    "encoder-decoder": ("a/tiny", {
        "config.json": {"model_type": "bart", "is_encoder_decoder": True}},
        ("an encoder-decoder, whose encoder can't be had alone",)),
    "in a folder": ("a/tiny", {"config.json": None, "0_Transformer/config.json": {},
                               "0_Transformer/model.safetensors": "x"},
                    ("its encoder lies in its folder 0_Transformer", "hf download a/tiny")),
    "no config": ("a/tiny", {"config.json": None}, ("no config.json",)),
    "damaged config": ("a/tiny", {"config.json": "{"}, ("its config.json is not JSON",)),
    "a list": ("a/tiny", {"config.json": []}, ("names no model_type",)),
    "quantized": ("a/tiny", {"config.json": {"model_type": "bert", "quantization_config": {
        "quant_method": "awq"}}}, ("quantized",)),
    "unknown kind": ("a/tiny", {"config.json": {"model_type": "bert9"}}, ("Update transformers",))}


@pytest.mark.parametrize("name, changed, words", REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_used_is_refused(name, changed, words, page, online, tmp_path, ends):
    own = variant(page, tmp_path / "own", **changed)
    with online(HubServer({name: own})) as hub:
        refused(ends("pull", name, "--out", "deep/new/tiny"), *words)
        assert not [f for f in hub.given() if f.endswith((".safetensors", ".bin", ".py"))]
    assert not Path("deep").exists()


@pytest.mark.parametrize("content", ["<html>", "version https://git-lfs.github.com/spec/v1", ""])
def test_what_came_as_weights_holds_tensors(content, page, online, tmp_path, ends):
    own = variant(page, tmp_path / "own", **{"model.safetensors": content})
    with online(HubServer({"a/tiny": own})):
        refused(ends("pull", "a/tiny", "--out", "x"), "its model.safetensors holds no tensors")
    assert not Path("x").exists()


class Portal(HubServer):
    "A page to sign in at, in place of every answer."

    def handler(self): return type("Bound", (SignIn,), {"hub": self})


class SignIn(Handler):
    def do_HEAD(self): self.say(200, b"<html>sign in</html>", Content_Type="text/html")

    do_GET = do_HEAD


def test_the_hub_says_no(page, online, ends):
    with online(HubServer({"a/tiny": page, "a/g": page, "a/p": page}, {"a/g"}, {"a/p"})) as hub:
        refused(ends("pull", "a/g", "--out", "x"), "needs a login", "hf auth login")
        refused(ends("pull", "a/p", "--out", "x"), "private", "hf auth login")
        refused(ends("pull", "a/none", "--out", "x"), "no model of that name")
        refused(ends("pull", "a/tiny", "--out", "x", "--revision", "v9"), "no revision 'v9'")
        for name in ("../../etc", "https://hub/a/tiny", "模型/中文", "a/tiny/", ""):
            refused(ends("pull", name, "--out", "x"), "no hub id: write OWNER/NAME")
        refused(ends("pull", "x", "--check", "--out", "y"), "leave --out out")
        refused(ends("pull", "a/tiny"), "--out names the folder")
        hub.fail = 418
        refused(ends("pull", "a/tiny", "--out", "x"), "the hub did not give it")
    with online(Portal({"a/tiny": page})):
        refused(ends("pull", "a/tiny", "--out", "x"), "what answered is not the hub: a proxy")
    refused(ends("pull", "a/tiny", "--out", "x"), "can't be reached")
    os.environ["HF_HUB_OFFLINE"] = "1"
    refused(ends("pull", "a/tiny", "--out", "x"), "HF_HUB_OFFLINE forbids")


def test_a_folder_that_is_there_stays(page, online, ends):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("empty").mkdir()
    Path("link").symlink_to("empty", target_is_directory=True)
    with online(HubServer({"a/tiny": page})) as hub:
        for place in ("full", "link", ".", "full/mine.txt"):
            refused(ends("pull", "a/tiny", "--out", place), "exists already", "--force")
        assert not hub.requests
        refused(ends("pull", "a/none", "--out", "empty"), "no model of that name")
        assert Path("empty").is_dir()
        assert ends("pull", "a/tiny", "--out", "empty").status == 0
        assert check_pulled("empty").hub_id == "a/tiny"
        assert ends("pull", "a/tiny", "--out", "full", "--force").status == 0
        assert not Path("full/mine.txt").exists()


def test_what_is_not_what_the_hub_says_is_not_kept(page, online, ends):
    whole = (page / "model.safetensors").read_bytes()
    other = whole[:-1] + bytes([whole[-1] ^ 1])
    config = (page / "config.json").read_bytes()
    for file, content in (("model.safetensors", other), ("model.safetensors", whole[:-9]),
                          ("config.json", config.replace(b"8", b"9", 1))):
        with online(HubServer({"a/tiny": page}, forged={file: content})):
            refused(ends("pull", "a/tiny", "--out", "x"), f"{file} is not what the hub says")
    with online(HubServer({"a/tiny": page}, endless={"model.safetensors"})):
        start = time.perf_counter()
        refused(ends("pull", "a/tiny", "--out", "x"), "goes on after the")
        assert time.perf_counter() - start < 5
    with online(HubServer({"a/tiny": page}, large={"model.safetensors"})):
        refused(ends("pull", "a/tiny", "--out", "x"), "60 GB, which is no encoder")
    with online(HubServer({"a/tiny": page}, large={"config.json"})):
        refused(ends("pull", "a/tiny", "--out", "x"), "config.json has 60,000 MB")


def test_a_full_disk(page, online, ends):
    with online(HubServer({"a/tiny": page})):
        room = mock.Mock(free=1000)
        with mock.patch("insight_nb.models.pull.shutil.disk_usage", return_value=room):
            refused(ends("pull", "a/tiny", "--out", "x"), "make room")
        full = OSError(28, "No space left on device")
        with mock.patch("huggingface_hub.file_download.http_get", side_effect=full):
            refused(ends("pull", "a/tiny", "--out", "x"), "No space left on device")


def hear_interrupts(): # a job in the background of a script starts with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupted_pull_leaves_nothing(page, online):
    assert (page / "model.safetensors").stat().st_size > 20_000
    numbers = {"int": signal.SIGINT, "term": signal.SIGTERM, "kill": signal.SIGKILL}
    with online(HubServer({"a/tiny": page}, slow={"model.safetensors": 0.2})) as hub:
        started = {name: subprocess.Popen(
            [PROGRAM, "pull", "a/tiny", "--out", f"{name}/tiny"], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear_interrupts)
            for name in numbers}
        until = time.monotonic() + 30
        while hub.given().count("model.safetensors") < 3 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3)
        assert all(len(os.listdir(name)) == 2 for name in numbers) # the lock, and what has come
        for name, process in started.items():
            process.send_signal(numbers[name])
        said = {name: process.communicate(timeout=60) for name, process in started.items()}
        assert [p.returncode for p in started.values()] == [130, 143, -9]
        assert not any("Traceback" in line for both in said.values() for line in both)
        assert not Path("int").exists() and not Path("term").exists()
        left = os.listdir("kill")
        assert len(left) == 2 and all(n.startswith(".tiny.insight_nb_") for n in left)
        hub.slow.clear()
        pull_encoder("a/tiny", "kill/tiny") # the next one tidies up
        assert os.listdir("kill") == ["tiny"]


def test_a_record_of_another_kind_is_not_sound(tmp_path):
    told = {"hub_id": "a/b", "revision": "main", "commit": "0" * 40, "license": "mit",
            "megabytes": 1., "files": {"config.json": "x"}}
    for changed in ({"commit": 5}, {"megabytes": "x"}, {"license": None}, {"files": {}},
                    {"files": {"config.json": "x", "../x": "x"}}, {"hub_id": ["a"]}):
        (tmp_path / "pulled.json").write_text(json.dumps(told | changed))
        with pytest.raises(InputError, match="no sound pulled.json"):
            check_pulled(tmp_path)
    (tmp_path / "pulled.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="config.json in .* is missing"):
        check_pulled(tmp_path)
