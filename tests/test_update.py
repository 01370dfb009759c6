"""A bundle that is updated: what is promised of it, and what is refused with one line."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS, in_process, refused, rows_of, run_here, write_csv
from insight_nb.base.core import InputError
from insight_nb.cli import main, recipes
from insight_nb.data.sources import open_table
from insight_nb.jobs.text_estimators import TextClassifier
from insight_nb.jobs.update import (
    BundleUpdate, UpdateOptions, load_replay, open_classifier, parse_strategy)
from insight_nb.jobs.update_rows import mark_rows, plan_update
from insight_nb.models.backbone import embedded_folder, load_tokenizer
from insight_nb.ship.bundle import load_bundle, read_info, write_manifest
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

HOW = {"epochs": 8, "batch_size": 16, "learning_rate": 3e-3}
ROWS = pd.DataFrame(rows_of(240))
OLD = ROWS[ROWS.label != LABELS[2]]
NEW = ROWS[ROWS.label == LABELS[2]] # 很好: a label that arrives later


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A bundle of two labels, on an encoder of one layer."
    folder = tmp_path_factory.mktemp("update")
    torch.manual_seed(0)
    tiny = AutoConfig.for_model("bert", hidden_size=48, num_hidden_layers=1,
                                num_attention_heads=2, intermediate_size=96)
    AutoModel.from_config(tiny).save_pretrained(folder / "tiny")
    load_tokenizer(embedded_folder(), local_files_only=True).save_pretrained(folder / "tiny")
    model = TextClassifier(str(folder / "tiny"), max_length=32, device="cpu", **HOW)
    model.fit(OLD.text[:90], OLD.label[:90]).save(folder / "first")
    return folder


def plan(path, old=OLD[:90], new=NEW[:50]):
    tables = [(old, "old", ""), (new, "new", ""), (OLD[90:], "old", "test")]
    if len(new) > 10:
        tables.append((NEW[50:], "new", "test"))
    marked = [mark_rows(open_table(t), period, side, f"{period} {side}")
              for t, period, side in tables if t is not None]
    return plan_update(read_info(path)["labels"], pd.concat(marked, ignore_index=True))


def updated(folder, strategy="replay", **options):
    job = BundleUpdate(folder / "first", plan(folder / "first"), UpdateOptions(**HOW | options),
                       device="cpu")
    job.run(strategy)
    return job


def test_old_rows_of_the_head_begin_as_they_were(folder):
    job = BundleUpdate(folder / "first", plan(folder / "first"), device="cpu")
    saved = load_file(folder / "first" / "head.safetensors")
    for strategy in ("replay", "distill", "plain", "l2sp", "ewc", "adapter"):
        _, model, _ = job.start(strategy)
        state = model.head.state_dict()
        for name, value in saved.items():
            assert torch.equal(state[name][:2], value) and len(state[name]) == 3


def test_replay_forgets_less_than_plain(folder):
    kept, lost = updated(folder), updated(folder, "plain")
    def old_test(job): return job.correct(*job.runs)[job.old_tests()].mean()
    assert old_test(kept) > .8 and old_test(kept) > old_test(lost) + .2
    assert kept.difference("replay").low <= kept.difference("replay").value <= 0.1


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    for name in ("a", "b"):
        updated(folder).save("replay", tmp_path / name, keep_rows=20)
    for file in read_info(tmp_path / "a")["files"]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert read_info(tmp_path / "a")["seal"] == read_info(tmp_path / "b")["seal"]


def test_texts_are_only_kept_when_asked(folder, tmp_path):
    job = updated(folder)
    job.save("replay", tmp_path / "without")
    job.save("replay", tmp_path / "with", keep_rows=20)
    def holds(name, text):
        files = [p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()]
        return any(text.encode() in content for content in files)
    assert load_replay(tmp_path / "without") is None
    kept = load_replay(tmp_path / "with")
    assert set(kept.labels) == set(LABELS) and set(kept.texts) <= {*OLD.text[:90], *NEW.text}
    assert holds("with", "stay number") and not holds("without", "stay number")
    assert load_bundle(tmp_path / "with").info["updates"][0]["from"] == job.info["seal"]


def test_penalties_hold_the_weights(folder):
    def way(job):
        now = job.runs[next(iter(job.runs))].trainer.model.backbone.state_dict()
        was = open_classifier(folder / "first", "cpu").model.backbone.state_dict()
        name = next(k for k in was if k.endswith("query.weight"))
        return (now[name] - was[name]).norm().item()
    assert way(updated(folder, "l2sp", penalty=10.)) < .5 * way(updated(folder, "plain"))
    assert way(updated(folder, "replay+ewc", penalty=10.)) < way(updated(folder))


def test_an_adapter_is_merged_into_a_whole_bundle(folder, tmp_path):
    job = updated(folder, "replay+adapter", rank=4)
    job.save("replay+adapter", tmp_path / "b")
    info = read_info(tmp_path / "b")
    assert not info["adapter"] and "encoder/model.safetensors" in info["files"]
    report = job.report("replay+adapter", tmp_path / "b")
    assert {"reload_equal", "adapters_changed"}.isdisjoint(report.failed())


def test_a_bundle_of_an_adapter_stays_one(folder, tmp_path):
    model = TextClassifier(str(folder / "tiny"), method="lora", rank=4, max_length=32, epochs=1,
                           device="cpu")
    model.fit(OLD.text[:60], OLD.label[:60]).save(tmp_path / "lora")
    job = BundleUpdate(tmp_path / "lora", plan(tmp_path / "lora"), UpdateOptions(epochs=1),
                       device="cpu")
    job.run("replay")
    job.save("replay", tmp_path / "again")
    assert read_info(tmp_path / "again")["adapter"] == read_info(tmp_path / "lora")["adapter"]
    report = job.report("replay", tmp_path / "again")
    assert {"reload_equal", "adapters_changed", "weights_finite"}.isdisjoint(report.failed())


def table(name, frame): return write_csv(name, frame.to_dict("records"))


BAD = {
    "two rows of a new label": (NEW[:2], OLD[:60], "is new to the bundle and has 2 rows"),
    "labels all unknown": (NEW[:30], None, "everything old would be forgotten"),
    "old rows of other labels": (NEW[:30], NEW[30:], "does not know): give the rows that it"),
    "no old rows to replay": (ROWS[:60], None, "strategy replay needs old rows"),
    "no label column": (NEW[["text"]][:30], OLD[:60], "no column 'label'"),
    "only texts that are missing": (NEW[:9].assign(text=""), OLD[:60], "can be used")}


def words_of(**given): return [w for k, v in given.items() for w in ("-p", k, v)]


def update(ends, **given): return ends("run", "update", *words_of(**given), "--out", "b")


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused(case, folder, ends):
    new, old, said = BAD[case]
    given = {} if old is None else {"old": table("old.csv", old)}
    refused(update(ends, bundle=folder / "first", table=table("new.csv", new), **given), said)


def test_an_empty_table_is_refused(folder, ends):
    for name, content in (("empty.csv", ""), ("header.csv", "text,label\n")):
        with open(name, "w") as file:
            file.write(content)
        refused(update(ends, bundle=folder / "first", table=name), name)


def test_bundles_that_are_none_are_refused(folder, ends, tmp_path):
    new = table("both.csv", ROWS[:90])
    def run(bundle): return update(ends, bundle=bundle, table=new, old=table("o.csv", OLD[:60]))
    copy = tmp_path / "copy"
    shutil.copytree(folder / "first", copy)
    for task in ("tag", "risk"):
        changed(copy, task=task)
        refused(run(copy), f"is for the task '{task}': only a classification")
    changed(copy, schema=99)
    refused(run(copy), "of schema 99")
    changed(copy, seal=False, schema=2)
    refused(run(copy), "seal does not match")
    changed(copy, task="classify")
    data = bytearray((copy / "head.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "head.safetensors").write_bytes(data)
    refused(run(copy), "head.safetensors is damaged or was changed")
    refused(run("nowhere"), "no such folder")


def changed(folder, seal=True, **new):
    info = json.loads((folder / "bundle.json").read_text()) | new
    (folder / "bundle.json").unlink()
    if seal:
        write_manifest(folder, info)
    else:
        (folder / "bundle.json").write_text(json.dumps(info))


@pytest.mark.parametrize("words, said", [
    (("strategy", "repaly"), "Did you mean 'replay'?"), (("replay", "0"), "replay is 0"),
    (("replay_share", "1.5"), "share of replayed rows is 1.5"), (("penalty", "0"), "penalty is 0"),
    (("rows", "0"), "rows is 0"),
    (("keep_rows", "0"), "keep_rows is 0"), (("seed", "-1"), "seed is -1")])
def test_bad_parameters_are_refused_first(words, said, ends):
    refused(update(ends, bundle="nowhere", table="none.csv", **{words[0]: words[1]}), said)


def test_bundle_and_table_go_together(ends):
    refused(update(ends, table="new.csv"), "bundle goes together with table or feedback")


def test_a_run_leaves_what_it_promises(folder, tmp_path):
    given = {"bundle": folder / "first", "table": table("new.csv", NEW[:50]),
             "old": table("old.csv", OLD[:90]), "old_test": table("test.csv", OLD[90:]),
             "keep_rows": 20, **HOW}
    words = map(str, words_of(**given))
    assert run_here("update", *words, "--out", "b") == 0
    evidence = json.loads((tmp_path / "b" / "evidence.json").read_text(encoding="utf-8"))
    found = evidence["update"]["strategies"]
    assert set(found) == {"before", "replay+distill", "plain", "anew"}
    assert {"value", "low", "high"} <= set(found["plain"]["backward_transfer"])
    assert {g["check"] for g in evidence["guard"]} >= {"old_head_rows", "old_test_unseen",
                                                      "forgetting"}
    page = (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "很好" in page
    info = read_info(tmp_path / "b" / "bundle")
    assert info["labels"] == [*read_info(folder / "first")["labels"], LABELS[2]]
    assert main(["predict", "b/bundle", given["table"], "--out", "answers.csv"]) == 0
    assert len(pd.read_csv("answers.csv")) == 50


def test_the_next_update_finds_its_old_rows_in_the_bundle(folder, tmp_path):
    updated(folder).save("replay", "b", keep_rows=20)
    given = {"bundle": "b", "table": table("old.csv", OLD[:90]), "out": "c", "compare": False,
             "old_test": table("test.csv", OLD[90:]), "epochs": 1}
    in_process(recipes()["update"], "run.ipynb", given)
    rows = [u["rows"] for u in read_info(tmp_path / "c" / "bundle")["updates"]]
    assert len(rows) == 2 and rows[1]["old"] > 0


def renamed(folder, name, identity=None):
    "A copy of the bundle whose encoder has another name."
    shutil.copytree(folder / "first", "copy", dirs_exist_ok=True)
    info = read_info("copy")
    info["backbone"] |= {"name": name} | ({"identity": identity} if identity else {})
    write_manifest("copy", {k: v for k, v in info.items() if k not in ("files", "seal")})
    return BundleUpdate("copy", plan("copy"), UpdateOptions(**HOW), device="cpu")


def test_anew_takes_the_commit_of_the_bundle(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place, then, now = tmp_path / "models--a--b", "1" * 40, "2" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(now)
    for commit, rate in ((then, 1), (now, 2)):
        shutil.copytree(folder / "tiny", place / "snapshots" / commit)
        tiny = AutoModel.from_pretrained(folder / "tiny")
        tiny.embeddings.word_embeddings.weight.data *= rate
        tiny.save_pretrained(place / "snapshots" / commit)
    job = renamed(folder, "a/b", then)
    assert job.comparisons("replay") == ["plain", "anew"]
    begun = job.start("anew")[1].backbone
    assert begun.identity == then
    first = load_file(place / "snapshots" / then / "model.safetensors")
    assert torch.equal(begun.encoder.embeddings.word_embeddings.weight.detach().cpu(),
                       first["embeddings.word_embeddings.weight"])


def test_an_encoder_that_has_gone_is_said_before_training(folder, tmp_path, capsys):
    job = renamed(folder, "./moved")
    assert job.comparisons("replay") == ["plain"]
    said = capsys.readouterr().out
    assert said.startswith("Training anew is left out: backbone ./moved is not there")
    with pytest.raises(InputError, match="backbone ./moved is not there"):
        job.start("anew")
    shutil.copytree(folder / "tiny", "other")
    other = AutoModel.from_pretrained("other")
    other.embeddings.word_embeddings.weight.data += 1
    other.save_pretrained("other")
    assert renamed(folder, "other").comparisons("replay") == ["plain"]
    assert "was trained on another other" in capsys.readouterr().out


def test_strategies_are_read():
    assert parse_strategy("l2sp+replay") == ("l2sp", "replay")
    with pytest.raises(InputError):
        parse_strategy("")
    assert np.isfinite(UpdateOptions().penalty)
