"""Folders that one process writes to at a time, and folders that appear when all of them is there."""

import json
import os
import subprocess
import sys
from hashlib import sha256

import pytest
from filelock import FileLock

from edgeprune.errors import RunError
from edgeprune.folders import LOCK, Busy, circuit_file, clear, is_unused, locked, new_folder
from edgeprune.store import UnwritableFile


def test_a_folder_is_made_locked_for_others_and_left_without_a_trace(tmp_path):
    with locked(tmp_path / "a" / "b", "the run"):
        assert os.listdir(tmp_path / "a" / "b") == [LOCK]
        with pytest.raises(Busy, match=r"another process has the run in .*: wait for it, or name another folder"):
            locked(tmp_path / "a" / "b", "the run").__enter__()
        with locked(tmp_path / "a" / "c"):
            pass
    assert os.listdir(tmp_path / "a" / "b") == []
    with locked(tmp_path / "a" / "b"):
        pass


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    code = "import os, sys; from pathlib import Path; from edgeprune.folders import locked\n"
    code += "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert os.listdir(tmp_path) == [LOCK] and is_unused(tmp_path)
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFile, match="Expected a folder for the run; got"):
        locked(tmp_path / "file", "the run").__enter__()
    (tmp_path / "odd" / LOCK).mkdir(parents=True)
    with pytest.raises(UnwritableFile, match="Expected a folder that can be written to"):
        locked(tmp_path / "odd").__enter__()


def test_only_what_was_left_unfinished_is_cleared(tmp_path):
    for name in ("run.json", ".hidden", f".{'g' * 32}", f".{'a' * 32}"):
        (tmp_path / name).write_text("")
    assert not is_unused(tmp_path) and is_unused(tmp_path / "none") and not is_unused(tmp_path / "run.json")
    clear(tmp_path, tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == sorted(["run.json", ".hidden", f".{'g' * 32}"])


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("whole")
        assert not (tmp_path / "new").exists()
    assert os.listdir(tmp_path) == ["new"] and (tmp_path / "new" / "a").read_text() == "whole"
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), new_folder(tmp_path / "other") as folder:
            (folder / "a").write_text("half")
            raise error
        assert os.listdir(tmp_path) == ["new"]
    with pytest.raises(UnwritableFile, match="Expected a folder that does not exist yet"):
        new_folder(tmp_path / "new").__enter__()
    with pytest.raises(UnwritableFile, match="existing, writable folder"):
        new_folder(tmp_path / "no" / "new").__enter__()
    with (
        pytest.raises(UnwritableFile, match=r"Expected a folder that can be made; .*No space"),
        new_folder(tmp_path / "o"),
    ):
        raise OSError(28, "No space left on device")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnwritableFile, match="does not exist yet"):
        new_folder(tmp_path / "link").__enter__()


def test_two_do_not_make_one_folder(tmp_path):
    with new_folder(tmp_path / "new") as folder:
        with pytest.raises(Busy, match=r"another process is at work on .*name another folder"):
            new_folder(tmp_path / "new").__enter__()
        with new_folder(tmp_path / "other"):
            assert folder.is_dir()  # another's, at work beside this one, is left alone
    assert sorted(os.listdir(tmp_path)) == ["new", "other"]


def test_what_a_killed_process_left_goes_with_the_next_folder(tmp_path):
    code = "import os, sys; from pathlib import Path; from edgeprune.folders import new_folder\n"
    code += "with new_folder(Path(sys.argv[1])) as folder: (folder / 'model').touch(); os.kill(os.getpid(), 9)"
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    (tmp_path / f".{'b' * 32}").mkdir()  # not known to be anybody's
    kept = f".{sha256(b'three').hexdigest()[:32]}"
    (tmp_path / kept).mkdir()
    with FileLock(tmp_path / f"{kept}.lock"), new_folder(tmp_path / "new"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([f".{'b' * 32}", kept, f"{kept}.lock", "new"])


def test_a_run_that_has_not_ended_says_where_it_stands(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"pruning": {"steps": 3000}}}))
    (tmp_path / "metrics.jsonl").write_text(60 * "{}\n" + '{"cut')
    with pytest.raises(RunError, match=r"stands at step 60 of 3,000: go on with .* --resume, from the beginning"):
        circuit_file(tmp_path)
    (tmp_path / "circuit.json").write_text("{}")
    assert circuit_file(tmp_path) == circuit_file(tmp_path / "circuit.json") == tmp_path / "circuit.json"


def test_what_another_is_making_in_a_folder_is_not_cleared_with_it(tmp_path):
    with new_folder(tmp_path / "toy") as hidden:
        (hidden / "half").touch()
        left = tmp_path / f".{'0' * 32}"  # of a process that was killed
        left.mkdir()
        left.with_name(f"{left.name}.lock").touch()
        with locked(tmp_path):
            clear(tmp_path)
        assert (hidden / "half").exists() and not left.exists()
        with pytest.raises(Busy), new_folder(tmp_path / "toy"):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["toy"]
