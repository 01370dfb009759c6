"""The recipe diagnose on folders and tables of pictures: what it leaves, and what becomes of
pictures and parameters that are at fault."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import in_process, refused
from insight_nb.apps.diagnose.diagnose import (
    ImageTrainer,
    digits,
    group_folds,
    leakage_difference,
    make_plan,
)
from insight_nb.apps.diagnose.imaging import load_imaging, predict_images
from insight_nb.apps.diagnose.patients import measure_sites
from insight_nb.models.vision import ImagePreprocessor, small_vision
from insight_nb.cli import recipes
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification

CLASSES = ["健康", "<b>sick"]


def scan(i, size=(12, 12), mode="L"):
    "Bright above or below, with noise: class i % 2."
    a = np.random.default_rng(i).integers(0, 60, size[::-1])
    a[: size[1] // 2] += 150 * (i % 2)
    a[size[1] // 2 :] += 150 * (1 - i % 2)
    return Image.fromarray(a.astype(np.uint8)).convert(mode)


def clinic(root="clinic", patients=12, each=4):
    "CLASS/PATIENT/IMAGE.png."
    for p in range(patients):
        folder = Path(root) / CLASSES[p % 2] / f"病人{p}"
        folder.mkdir(parents=True)
        for j in range(each):
            scan(2 * (p * each + j) + p % 2).save(folder / f"片{j}.png")
    return root


def spoil(root):
    "Bad files among the good, and good ones that need care."
    good = Path(root) / CLASSES[0] / "病人0"
    (good / "cut.png").write_bytes((good / "片0.png").read_bytes()[:70])
    with zipfile.ZipFile(good / "archive.png", "w") as z:
        z.writestr("a", "b")
    (good / "empty.jpg").touch()
    Image.new("1", (20_000, 20_000)).save(good / "bomb.png")
    Image.fromarray(np.arange(0, 14400, 100, dtype=np.uint16).reshape(12, 12)).save(
        good / "deep.png"
    )
    scan(0, (30, 9), "RGBA").save(good / "alpha.png")
    scan(2, mode="P").save(good / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    scan(4, mode="RGB").save(good / "phone.jpg", exif=exif)
    (good / "notes.txt").write_text("left")


def words(**p):
    return [w for k, v in p.items() for w in ("-p", k, str(v))]


QUICK = dict(epochs=6, folds=2)


def run(table, **p):
    "The recipe in this process; what it wrote as evidence."
    in_process(recipes()["diagnose"], "run.ipynb", dict(table=table, out="out", **QUICK | p))
    return json.loads(Path("out/evidence.json").read_text(encoding="utf-8"))


def test_a_folder_with_bad_files_among_the_good():
    spoil(clinic())
    e = run("clinic", group="folder")
    assert e["task"] == "diagnose" and e["schema"] == 1
    assert e["data"]["dropped"] == {
        "is damaged": 1,
        "is a zip archive, not an image": 1,
        "is an empty file": 1,
        "has far more than 64,000,000 pixels": 1,
    }
    assert (
        sum(e["data"]["rows"].values()) == 48 + 4
        and any("stretched" in n for n in e["data"]["notes"])
        and any("upright" in n for n in e["data"]["notes"])
    )
    assert not any("at_threshold" in name for name in e["metrics"])  # too few rows to promise it
    for kind in ("sensitivity", "specificity", "auroc"):
        for name in CLASSES:
            assert (
                e["metrics"][f"{kind}[{name}]"]["low"]
                <= e["metrics"][f"{kind}[{name}]"]["value"]
                <= e["metrics"][f"{kind}[{name}]"]["high"]
            )
    assert {
        "accuracy",
        "auroc",
        "accuracy_grouped",
        "accuracy_shuffled",
        "leak_gap",
        "accuracy_over_groups",
    } <= set(e["metrics"])
    assert e["metrics"]["accuracy"]["value"] > 0.8 and {"value", "low", "high", "n"} <= set(
        e["metrics"]["accuracy"]
    )
    checks = {c["check"]: c["passed"] for c in e["guard"]}
    assert (
        checks["group_leak"] is True
        and checks["reload_equal"] is True
        and checks["threshold_unseen"] is True
        and checks["adapters_changed"] is None
    )
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert (
        "<b>sick" not in page
        and "健康" in page
        and "cut.png" in page
        and "http://" not in page.replace("http://www.w3.org", "")
    )
    asked = pd.DataFrame({"path": [f"clinic/{CLASSES[1]}/病人1/片0.png", "gone.png"]})
    answers = predict_images(load_imaging("out/bundle"), asked)
    assert answers["prediction"].tolist() == [CLASSES[1], None] and answers["error"].tolist() == [
        None,
        "is not there",
    ]


def table_of(**change):
    files = sorted(Path(clinic()).rglob("*.png"))
    frame = pd.DataFrame(
        {
            "path": [str(f) for f in files],
            "label": [f.parts[1] for f in files],
            "patient": [f.parts[2] for f in files],
        }
    ).assign(**change)
    frame.to_csv("scans.csv", index=False)
    return "scans.csv"


@pytest.mark.parametrize(
    "kind, options",
    {
        "vit": dict(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=4,
        ),
        "convnext": dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    }.items(),
    ids=["vit", "convnext"],
)
@pytest.mark.parametrize("method", ["full", "frozen"])
def test_any_image_classifier_by_path(kind, options, method):
    AutoModelForImageClassification.from_config(
        AutoConfig.for_model(kind, **options)
    ).save_pretrained("net")
    Path("net/preprocessor_config.json").write_text(
        '{"size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, '
        "0.5, 0.5]}"
    )
    e = run(table_of(), group="patient", model="net", method=method, folds=0, epochs=2)
    assert (
        e["model"]["backbone"] == "net"
        and len(e["model"]["identity"]) == 64
        and e["model"]["method"] == method
    )
    assert (e["model"]["trainable"] == e["model"]["parameters"]) == (method == "full")
    assert all(
        c["passed"] is not False
        for c in e["guard"]
        if c["check"]
        in ("reload_equal", "group_leak", "weights_finite", "row_order", "label_order")
    )


def test_without_patients_the_report_says_what_is_not_known():
    e = run(table_of())
    assert (
        "accuracy_grouped" not in e["metrics"]
        and [c for c in e["guard"] if c["check"] == "group_leak"][0]["passed"] is None
    )


def patients(n):
    return table_of(patient=[f"p{i % n}" for i in range(48)])


FAULTS = {  # what is wrong -> (a maker of the table's name, parameters, words of the message)
    "a path that is not there": (lambda: "gone/", {}, ["gone"]),
    "a folder without images": (
        lambda: Path("bare/a").mkdir(parents=True) or "bare",
        {},
        ["bare", "'a'"],
    ),
    "a wrong column": (table_of, dict(path="file"), ["'file'"]),
    "a wrong group": (table_of, dict(group="patiant"), ["'patient'"]),
    "one class": (lambda: table_of(label="a"), {}, ["'a'", "two classes"]),
    "one patient": (lambda: patients(1), dict(group="patient"), ["group"]),
    "two patients": (lambda: patients(2), dict(group="patient"), ["group"]),
    "a class with one image": (
        lambda: table_of(label=["rare"] + ["a", "b"] * 23 + ["a"]),
        {},
        ["rare"],
    ),
    "no file is there": (lambda: table_of(path="x.png"), {}, ["none of the 48 files", "x.png"]),
    "too many folds": (table_of, dict(group="patient", folds=40, epochs=1), ["40"]),
    "one fold": (table_of, dict(folds=1), ["folds is 1"]),
    "a wrong method": (table_of, dict(method="ful"), ["ful"]),
    "a model that is not there": (table_of, dict(model="./gone"), ["./gone"]),
    "frozen without a model": (table_of, dict(method="frozen"), ["model"]),
    "a specificity of 1": (table_of, dict(specificity=1.0), ["specificity"]),
    "no epochs": (table_of, dict(epochs=0), ["epochs"]),
    "a tiny size": (table_of, dict(image_size=2), ["size is 2"]),
    "odd weights": (table_of, dict(class_weights="some"), ["some"]),
}


@pytest.mark.parametrize("make, parameters, said", FAULTS.values(), ids=FAULTS)
def test_refused(ends, make, parameters, said):
    refused(ends("run", "diagnose", *words(table=make(), **parameters), "--out", "out"), *said)


def test_a_bundle_of_pictures_is_not_taken_for_one_of_texts(ends):
    run(table_of(), group="patient", folds=0, epochs=1)
    pd.DataFrame({"text": ["a"]}).to_csv("t.csv", index=False)
    refused(ends("predict", "out/bundle", "t.csv"), "no column 'path'")


def test_the_leak_is_found_where_it_was_planted():
    """Each patient has one label and a mark of their own; the finding itself is invisible. Only a
    shuffled split makes it look good."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(24), 6)
    y = rng.permutation(np.arange(24) % 2)[patient]
    marks = rng.integers(0, 256, (24, 1, 8, 8))
    pixels = np.clip(marks[patient] + rng.normal(scale=10, size=(144, 1, 8, 8)), 0, 255).astype(
        np.uint8
    )
    learner = ImageTrainer(pixels, y, ["no", "yes"], make_plan(96, epochs=12, augment=False))
    right = [learner.cross_fit(group_folds(y, g, 3)).argmax(1) == y for g in (patient, None)]
    gap = leakage_difference(*right)
    assert right[0].mean() < 0.7 and right[1].mean() > 0.9 and gap.low > 0.2


def test_unseen_writers_are_read():
    """A fold of the acceptance protocol: digits by writer, one fold of five, a third of the
    training."""
    images = digits()
    y = np.array(list(map(int, images.labels)))
    test = group_folds(y, images.groups)[0]
    learner = ImageTrainer(images.pixels, y, list("0123456789"), make_plan(1437, epochs=6))
    found = learner.logits(learner.fit(np.setdiff1d(np.arange(1797), test)).model, test).argmax(1)
    assert (found == y[test]).mean() > 0.95


def test_patients_devices_crops_and_second_looks(ends):
    "A table of files: the corner tells the device, and a crop takes the corner away."
    folder, rows = Path("files"), []
    folder.mkdir()
    for p in range(16):
        for j in range(4):
            site = "甲" if p < 8 else "乙"
            image = scan(2 * (4 * p + j) + p % 2)
            if site == "乙":
                image.paste(255, (0, 0, 2, 2))
            image.save(folder / f"{p}-{j}.png")
            rows.append([f"files/{p}-{j}.png", CLASSES[p % 2], f"病人{p}", site])
    frame = pd.DataFrame(rows, columns=["path", "label", "patient", "site"])
    frame.to_csv("files.csv", index=False)
    e = run("files.csv", group="patient", site="site", crop="0.2,0.2,1,1")
    assert {"accuracy_by_group", "accuracy_on_unseen_sites"} <= set(e["metrics"])
    assert e["second_look"]["look"] and e["model"]["shown"]["crop"] == [0.2, 0.2, 1, 1]
    assert any(g["check"] == "site_leak" for g in e["guard"])
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "By patient" in page and "Devices" in page and "A second look" in page
    bundle = load_imaging("out/bundle")
    assert bundle.preprocessor.crop == (0.2, 0.2, 1, 1)
    answered = predict_images(bundle, frame)
    assert answered.error.isna().all() and (answered.prediction == frame.label).mean() > 0.8
    given = words(table="files.csv", crop="0.9,0,0.1,1")
    refused(ends("run", "diagnose", *given, "--out", "x"), "crop is '0.9,0,0.1,1'")
    given = words(table="files.csv", site="sites")
    refused(ends("run", "diagnose", *given, "--out", "x"), "no column 'sites'", "'site'")


def test_telling_the_device_leaves_the_learner_as_it_is():
    vision = small_vision(ImagePreprocessor(1, (12, 12), (0.0,), (1.0,)))
    pixels = np.stack([np.asarray(scan(i))[None] for i in range(40)])
    plan = make_plan(40, vision, "full", epochs=1)
    learner = ImageTrainer(pixels, np.arange(40) % 2, CLASSES, plan, vision, (0.2, 0.2, 1, 1))
    measure_sites(learner, ["a", "a", "b", "b"] * 10, folds=2)
    assert learner.names == CLASSES and learner.y.tolist() == [0, 1] * 20
    assert vision.preprocessor.crop == learner.preprocessor.crop == (0.2, 0.2, 1, 1)
