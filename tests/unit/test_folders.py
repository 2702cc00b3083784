"""Folders that one process writes to at a time, and folders that appear when all of them is there."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save_file

from edgeprune.errors import RunError
from edgeprune.files import folders
from edgeprune.files.folders import LOCK, Busy, circuit_file, clear, is_unused, locked, new_folder, unfinished
from edgeprune.files.store import UnwritableFile


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
    code = "import os, sys; from pathlib import Path; from edgeprune.files.folders import locked\n"
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
    code = "import os, sys; from pathlib import Path; from edgeprune.files.folders import new_folder\n"
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


def run_folder(tmp_path, **config):
    (tmp_path / "run.json").write_text(json.dumps(config))
    return tmp_path


def test_a_run_goes_on_from_its_checkpoint_and_says_at_which_step(tmp_path):
    run_folder(tmp_path, config={"pruning": {"steps": 12345}})
    with pytest.raises(RunError) as error:
        circuit_file(tmp_path)
    assert str(error.value) == (
        f"Expected a run that has ended; the one in {str(tmp_path)!r} stands at step 0 of 12,345: go on with the "
        "command that began it, and --resume, from the beginning, as it has no checkpoint yet"
    )
    (tmp_path / "metrics.jsonl").write_text(2000 * "{}\n")
    save_file({"place": np.array([1234, 5])}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(RunError, match=r"at step 2,000 of .* and --resume, from its checkpoint at step 1,234$"):
        circuit_file(tmp_path)
    for odd in ({"other": np.array([1])}, {"place": np.array([], dtype=np.int64)}, {"place": np.array(3)}):
        save_file(odd, tmp_path / "checkpoint.safetensors")
        with pytest.raises(RunError, match=r"the command that began it, and --resume$"):
            circuit_file(tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"none")
    with pytest.raises(RunError, match=r"the command that began it, and --resume$"):
        circuit_file(tmp_path)


@pytest.mark.parametrize("config", [{}, {"config": []}, {"config": {"pruning": {"steps": "many"}}}])
def test_a_run_whose_settings_are_none_is_refused(tmp_path, config):
    with pytest.raises(
        RunError, match=rf"^Expected a run of `edgeprune prune` in {str(tmp_path)!r}; its run\.json is none$"
    ):
        circuit_file(run_folder(tmp_path, **config))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"^Expected a run in .*run\.json'; it is none"):
        circuit_file(tmp_path)
    run_folder(tmp_path, config={"pruning": {"steps": 1}})
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff")
    with pytest.raises(RunError, match=r"^Expected metrics; cannot read .*metrics\.jsonl'"):
        circuit_file(tmp_path)


def test_a_folder_that_holds_no_run_is_asked_for_its_circuit_and_a_link_to_nowhere_is_one(tmp_path):
    assert circuit_file(tmp_path) == tmp_path / "circuit.json"
    assert circuit_file(tmp_path / "none") == tmp_path / "none"
    run_folder(tmp_path)
    (tmp_path / "circuit.json").symlink_to(tmp_path / "nowhere")
    assert circuit_file(tmp_path) == tmp_path / "circuit.json"


def test_what_is_unfinished_is_told_by_its_name(tmp_path):
    ours = [LOCK, f".{'a' * 32}", f".{'0123456789abcdef' * 2}.lock"]
    others = [f".{'a' * 31}", f".{'a' * 33}", f".{'A' * 32}", f"{'a' * 32}", f".{'a' * 32}.lock.lock", ".lock"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    assert sorted(file.name for file in unfinished(tmp_path)) == sorted(ours)
    assert not is_unused(tmp_path)
    for name in others:
        (tmp_path / name).unlink()
    assert is_unused(tmp_path)
    clear(tmp_path)
    assert os.listdir(tmp_path) == [LOCK]  # which may be held


def test_folders_beside_one_that_is_not_there_are_cleared_all_the_same(tmp_path):
    given = [tmp_path / name for name in ("one", "none", "two")]
    for folder in (given[0], given[2]):
        folder.mkdir()
        (folder / f".{'c' * 32}").touch()
        abandoned = folder / f".{'d' * 32}"
        abandoned.mkdir()
        (abandoned / "half").touch()
        (folder / f"{abandoned.name}.lock").touch()
    clear(*given)
    assert [os.listdir(folder) for folder in (given[0], given[2])] == [[], []] and not given[1].exists()


def test_a_file_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    left = tmp_path / f".{'e' * 32}"
    left.touch()

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(UnwritableFile, match=rf"^Expected a file that can be removed; got {str(left)!r}: .*denied"):
        clear(tmp_path)


def test_messages_name_the_folder_and_what_is_in_it(tmp_path):
    with locked(tmp_path / "a"):
        with pytest.raises(Busy) as error:
            locked(tmp_path / "a").__enter__()
        assert str(error.value) == (
            f"Expected a folder that nobody else writes to; another process has a run in {str(tmp_path / 'a')!r}: "
            "wait for it, or name another folder"
        )
    (tmp_path / "file").touch()
    with pytest.raises(
        UnwritableFile, match=rf"^Expected a folder for a run; got {str(tmp_path / 'file')!r}: File exi"
    ):
        locked(tmp_path / "file").__enter__()
    (tmp_path / "odd" / LOCK).mkdir(parents=True)
    with pytest.raises(UnwritableFile, match=rf"written to; got {str(tmp_path / 'odd')!r}: "):
        locked(tmp_path / "odd").__enter__()
    with new_folder(tmp_path / "new"), pytest.raises(Busy, match=rf"at work on {str(tmp_path / 'new')!r}: name"):
        new_folder(tmp_path / "new").__enter__()
    with pytest.raises(UnwritableFile, match=rf"exist yet; got {str(tmp_path / 'new')!r}: take it away, or name"):
        new_folder(tmp_path / "new").__enter__()
    with (
        pytest.raises(UnwritableFile, match=rf"can be made; got {str(tmp_path / 'o')!r}: \[Errno 28\] {'x' * 180}"),
        new_folder(tmp_path / "o"),
    ):
        raise OSError(28, "x" * 1000)


def test_a_new_folder_is_written_to_in_one_that_is_hidden_beside_it_and_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hidden = tmp_path / f".{sha256(b'new').hexdigest()[:32]}"
    hidden.mkdir()
    (hidden / "left").touch()  # by a process that was killed
    with new_folder(Path("new")) as folder:
        assert folder == hidden and os.listdir(folder) == [] and (tmp_path / f"{hidden.name}.lock").is_file()
    assert os.listdir(tmp_path) == ["new"]


def test_what_another_has_removed_by_now_is_cleared(tmp_path, monkeypatch):
    gone = [tmp_path / f".{'e' * 32}"]
    monkeypatch.setattr(folders, "unfinished", lambda folder: gone)
    clear(tmp_path)
