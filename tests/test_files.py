"""Files and folders that are written whole or not at all, and by one at a time."""

import signal
import subprocess
import sys

import pytest

from sctrt.files import folder_replaced_when_whole, locked

HOLD = "import sys, time; from pathlib import Path; from sctrt.files import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_locked_folder_is_nobody_elses(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(ValueError, match=r"that no other run writes to, got .*run; wait for it to end"):
            locked(tmp_path / "run")
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_lock_dies_with_its_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="no other run"):
            locked(tmp_path)
        other.send_signal(signal.SIGKILL)
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_done_without(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("no locks available")

    monkeypatch.setattr("sctrt.files.fcntl.flock", refused)
    with locked(tmp_path):
        pass


def test_a_link_to_a_folder_is_replaced_and_what_it_names_stays(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "a").touch()
    (tmp_path / "current").symlink_to("v1")
    with folder_replaced_when_whole(tmp_path / "current") as new:
        (new / "b").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v1"]
    assert not (tmp_path / "current").is_symlink() and (tmp_path / "current" / "b").exists()
    assert (tmp_path / "v1" / "a").exists()
