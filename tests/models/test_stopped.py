"""Commands stopped at random moments: what is there is whole, the next run goes on, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from safetensors.numpy import load_file
from test_pruning_run import save_model

SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
QUICK = {"prune": 3}
"""Moments of the default run, by command: one a signal, in the middle, where a command surely runs."""

EACH = int(os.environ.get("EDGEPRUNE_MOMENTS", "8"))
"""Moments of each command in the sweep; twenty take a quarter of an hour."""


class Stopper:
    """Runs commands in children of a process that has loaded everything, and stops them."""

    def __init__(self):
        command = [sys.executable, str(Path(__file__).with_name("stopping.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, arguments, **asked):
        self.process.stdin.write(json.dumps({"arguments": list(map(str, arguments)), **asked}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def stopper():
    found = Stopper()
    with found.process:  # which closes its pipes, and waits for it
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def about(model, out):
    sizes = ("--train", 8, "--validation", 4, "--test", 6)
    return ("--model", model, "--task", "gp", "--out", out, *sizes, "--steps", 8, "--batch-size", 4)


COMMANDS = {
    "prune": lambda model, out: ["prune", *about(model, out), "--target-sparsity", 0.5, "--save-every", 3],
    "sweep": lambda model, out: [
        "sweep",
        *about(model, out),
        "--target-sparsity",
        0.3,
        "--target-sparsity",
        0.5,
        "--seeds",
        1,
    ],
    "compare": lambda model, out: [
        *("compare", "--model", model, "--task", "gp", "--out", out, "--examples", 8, "--test", 6),
        *("--target-sparsity", 0.5, "--steps", 8, "--batch-size", 4, "--method", "edge-pruning", "--method", "eap"),
    ],
    "bench": lambda model, out: ["bench", "length", "--method", "eap", "--jobs", 1, "--seeds", 2, "--out", out],
    "export": lambda model, out: ["export", "any_x", "--as", "gpt2", "--out", out],
    "train-toy": lambda model, out: ["train-toy", "ioi", "--steps", 3, "--batch-size", 4, "--out", out],
}


@dataclass(frozen=True)
class Whole:
    """A command that nobody stopped."""

    status: int
    seconds: float
    files: dict[str, object]


@pytest.fixture(scope="module")
def whole(stopper, model, tmp_path_factory):
    """`whole(command)`: what it does and leaves where it is not stopped."""
    found = {}

    def whole(command):
        if command not in found:
            out = tmp_path_factory.mktemp(command) / "out"
            ended = stopper.run(COMMANDS[command](model, out))
            assert ended["status"] in (0, 1), ended["said"]
            found[command] = Whole(ended["status"], ended["seconds"], contents(out))
        return found[command]

    return whole


def contents(out):
    """All that lies beside `out` and in it, hidden or not; without what differs from run to run."""
    found = {}
    for path in sorted(out.parent.rglob("*")):
        if path.is_file() or path.name.startswith("."):
            name = str(path.relative_to(out.parent))
            found[name] = _what_stays(path, out) if path.is_file() else "folder"
    return found


def _what_stays(path, out):
    if path.suffix in (".md", ".svg", ".html"):
        return "drawn anew"
    if path.name == "compare.json":
        return [row | {"seconds": 0} for row in json.loads(path.read_text())["rows"]]
    if path.name == "results.jsonl":
        return sorted(json.dumps(json.loads(line) | {"seconds": 0}) for line in path.read_text().splitlines())
    return path.read_bytes().replace(str(out).encode(), b"OUT")


def check_whole(out):
    """Whatever has its name is whole: only what is hidden, and a last line, may be cut off."""
    for path in out.rglob("*"):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".jsonl":
            for line in path.read_text().split("\n")[:-1]:
                json.loads(line)


def moments():
    random = Random(20)
    for command in COMMANDS:
        for number in range(EACH):
            quick = number < QUICK.get(command, 0)
            stop, share = SIGNALS[number % 3], 0.4 if quick else random.random()
            marks = [] if quick else pytest.mark.sweep
            yield pytest.param(command, stop, share, id=f"{command}-{stop.name}-{share:.2f}", marks=marks)


@pytest.mark.parametrize(("command", "stop", "share"), list(moments()))
def test_a_command_stopped_at_any_moment_leaves_all_whole_and_goes_on(
    stopper, model, whole, tmp_path, command, stop, share
):
    wanted = whole(command)
    for sooner in (1, 3, 9):  # where the machine is quicker now than it was
        out = tmp_path / str(sooner) / "out"
        out.parent.mkdir()
        arguments = COMMANDS[command](model, out)
        ended = stopper.run(arguments, signal=int(stop), after=share * wanted.seconds / sooner)
        stopped = ended["status"] not in (0, 1)
        if stopped or share != 0.4:
            break
    assert stopped or share != 0.4, ended["said"]
    if stop != signal.SIGKILL and stopped:
        assert ended["status"] in ({signal.SIGINT: 130, signal.SIGTERM: 143}[stop], -stop), ended["said"]
        told = "edgeprune: stopped: " in ended["said"]
        assert "Traceback" not in ended["said"] and (told or share < 0.1), ended["said"]  # unless it had hardly begun
        assert not any(path.name.startswith(".") for path in out.parent.rglob("*"))
    check_whole(out)
    again = stopper.run([*arguments, *(["--resume"] if command == "prune" else [])])
    if out.exists() and command in ("export", "train-toy") and again["status"] == 2:
        assert "Expected a folder that " in again["said"] and "name another one" in again["said"]
    else:
        assert again["status"] == wanted.status, again["said"]
    assert contents(out) == wanted.files


@pytest.mark.parametrize(
    "command", [name if name in QUICK else pytest.param(name, marks=pytest.mark.sweep) for name in COMMANDS]
)
def test_a_second_command_is_refused_while_the_first_writes(stopper, model, tmp_path, command):
    out = tmp_path / "folder" / "out"
    out.parent.mkdir()
    first = stopper.run(COMMANDS[command](model, out), twice_in=str(out.parent))
    # One of them has made the lock's file, and either may have locked it.
    done, refused = sorted([first, first["second"]], key=lambda ended: ended["status"])
    assert done["status"] in (0, 1), done["said"]
    assert refused["status"] == 2 and refused["said"].count("\n") == 1
    assert refused["said"].startswith("edgeprune: Expected a folder that nobody else ")
    assert not any(path.name.startswith(".") for path in out.parent.rglob("*"))
