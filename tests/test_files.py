"""Files that are written whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

import vlscore


def test_a_file_is_written_over_an_old_one(tmp_path):
    path = tmp_path / "file.bin"
    for content in (b"old and long", b"new\0"):
        vlscore.write_whole(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_name_without_a_folder_is_written_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vlscore.write_whole("file.bin", b"new")
    assert Path("file.bin").read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        vlscore.write_whole(tmp_path / "file.bin", b"new")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.bin").stat().st_mode) == mode


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    def fail(*_):
        raise error

    (tmp_path / "file.bin").write_bytes(b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        vlscore.write_whole(tmp_path / "file.bin", b"new")
    assert os.listdir(tmp_path) == ["file.bin"]
    assert (tmp_path / "file.bin").read_bytes() == b"old"


@pytest.mark.parametrize("folder", ["missing", "/proc"])
def test_a_folder_that_cannot_be_written_raises(tmp_path, folder):
    with pytest.raises(OSError, match=r"No such file|Permission denied"):
        vlscore.write_whole(tmp_path / folder / "file.bin", b"new")
