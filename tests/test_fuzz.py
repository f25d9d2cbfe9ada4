"""Files changed at random are read, or refused in one line; `tests/fuzz.py` tries more of them."""

import subprocess
import sys
from pathlib import Path

import fuzz
import numpy as np


def test_no_changed_file_ends_in_a_traceback_or_hangs(tmp_path):
    """In a process of its own, whose memory is that of these files alone."""
    command = [sys.executable, fuzz.__file__, "--count", "2000", "--seed", "16", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "2000 files, 0 failed\n"), done.stderr


def test_whole_files_are_read_and_changed_ones_often_refused():
    for kind in fuzz.make_kinds().values():
        assert fuzz.try_one(kind, kind.content) is None
    kinds = fuzz.make_kinds()
    rng = np.random.default_rng(0)
    assert fuzz.mutate(kinds["JPEG"].content, rng) != kinds["JPEG"].content


def test_what_fails_is_told_and_kept(monkeypatch, tmp_path, capsys):
    def raises(content, folder):
        raise KeyError("no such thing")

    monkeypatch.setattr(fuzz, "make_kinds", lambda: {"bad": fuzz.Kind(b"content", raises)})
    assert fuzz.main(["--count", "2", "--keep", str(tmp_path / "kept")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "2 files, 2 failed\n"
    assert captured.err.count("KeyError") == 2
    assert len(list(Path(tmp_path / "kept").iterdir())) == 2
