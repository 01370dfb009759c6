"""Every planted fault is seen, by the product or by the fixed questions that follow each run; a
sound run of each kind has nothing red. All of it is on demand (`make faults`), a few are not."""
import functools
import random

import pytest
from harness import findings, judge
from service_faults import SERVICE_FAULTS
from service_runs import SERVICE_RUNS
from table_faults import TABLE_FAULTS
from table_runs import TABLE_RUNS
from text_faults import TEXT_FAULTS
from text_runs import TEXT_RUNS

RUNS = TEXT_RUNS | TABLE_RUNS | SERVICE_RUNS
FAULTS = TEXT_FAULTS + TABLE_FAULTS + SERVICE_FAULTS
QUICK = (  # kinds of about a second
    "frozen", "tag", "risk", "recommend", "decide", "forecast", "feedback", "update")
FEW = random.Random(0).sample([f for f in FAULTS if f.kind in QUICK], 6)


@functools.cache
def sound(kind): return findings(RUNS[kind])


def check(fault):
    assert sound(fault.kind) == [], f"a sound run of {fault.kind} has something red"
    judge(fault, findings(RUNS[fault.kind], fault.plant))


@pytest.mark.parametrize("fault", FEW, ids=[f.name for f in FEW])
def test_a_few_planted_faults_are_seen(fault): check(fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=[f.name for f in FAULTS])
def test_planted_faults_are_seen(fault): check(fault)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_a_sound_run_has_nothing_red(kind): assert sound(kind) == []


def test_the_table_of_faults_is_sound():
    "Each has its own name and one sentence; no check is written for one fault alone by name."
    assert len({f.name for f in FAULTS}) == len(FAULTS) >= 60
    assert all(f.kind in RUNS and f.what and f.words for f in FAULTS)
    assert {f.kind for f in FAULTS} == set(RUNS)
