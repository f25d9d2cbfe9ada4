"""Fixtures of the tests of evaluation."""

import contextlib
import os
import shutil

import pytest
from evaluation_helpers import (
    QUICK,
    draw,
)

import vlscore
from vlscore_lib.evaluation import workers


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The folder of 12 small scenes: two parts, of 8 and 4."""
    return draw(tmp_path_factory.mktemp("small") / "scenes", 12, 5, (96, 80))


@pytest.fixture(scope="session")
def photos(small):
    return vlscore.read_dataset(small)


@pytest.fixture(scope="session")
def finished(rn, photos, tmp_path_factory):
    """The folder of a finished run of the tiny CNN."""
    out = tmp_path_factory.mktemp("finished") / "run"
    vlscore.evaluate(rn, photos, out, **QUICK)
    return out


@pytest.fixture
def finished_copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture(scope="session")
def undisturbed(scenes_rn, drawn, tmp_path_factory):
    """The folder of a run of scenes-rn that nothing stopped, and its records."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return out, vlscore.evaluate(scenes_rn, vlscore.read_dataset(drawn), out, keep=16)


@pytest.fixture(scope="module")
def client():
    """Of the cluster that ``--workers 2`` starts: two processes of one thread."""
    before = dict(os.environ)
    with workers.start_cluster(2, None) as client:
        os.environ.clear()
        os.environ.update(before)  # see `same_environment`
        processes = set(client.run(os.getpid).values())
        assert len(processes - {os.getpid()}) == 2
        yield client


@pytest.fixture
def started(monkeypatch, client):
    """Notes how many workers are started, and takes those of `client`, started as these would be."""
    started, address = [], client.scheduler.address

    def start(n, **_):
        started.append(n)
        return contextlib.nullcontext(address)

    monkeypatch.setattr(workers, "open_local_cluster", start)
    return started


@pytest.fixture
def offline(monkeypatch, rn):
    """Take the tiny CNN, whichever is asked for."""
    monkeypatch.setattr(vlscore, "load_model", lambda *_: rn)
