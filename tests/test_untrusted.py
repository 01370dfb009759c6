"""Files as an attacker would make them: one line each, and nothing is done."""

import math
import shutil

import pytest
from conftest import refused
from insight_nb.apps.assistant.dialogue import read_flows
from insight_nb.base.core import InputError
from insight_nb.decide.launch.memo import read_json, read_yaml
from insight_nb.decide.launch.policy import reliability_from_evidence
from insight_nb.ship.bundle import read_info, write_manifest

DEEP = "[" * 100_000


@pytest.mark.parametrize("temperature", [0, -1., math.nan, math.inf, "1", None, True])
def test_a_temperature_that_turns_answers_round(ends, trained, tmp_path, temperature):
    shutil.copytree(trained / "bundle", tmp_path / "b")
    info = read_info(tmp_path / "b")
    write_manifest(tmp_path / "b", info | {"temperature": temperature})
    (tmp_path / "t.csv").write_text("text\nfine\n")
    refused(ends("predict", "b", "t.csv", "--out", "o.csv"), "bundle.json is damaged",
            "temperature")


@pytest.mark.parametrize("read", [read_json, read_flows, reliability_from_evidence, read_info])
def test_json_without_end(tmp_path, read):
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "bundle.json").write_text(DEEP)
    with pytest.raises(InputError):
        read(folder if read is read_info else folder / "bundle.json")


def test_a_recipe_without_end(ends, tmp_path):
    (tmp_path / "deep.ipynb").write_text(DEEP)
    refused(ends("run", "deep.ipynb"), "deep.ipynb is not a notebook")


def test_aliases_that_fill_the_memory(tmp_path):
    lines = ['a: &a ["x"]'] + [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
                               for a, b in zip("abcdefgh", "bcdefghi")]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="bomb.yaml has an alias"):
        read_yaml(tmp_path / "bomb.yaml")
