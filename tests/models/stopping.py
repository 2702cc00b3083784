"""A process that has loaded everything, and runs commands in children of its own, which it stops at given moments.

It reads a line of JSON for each, `{"arguments": [...], "signal": 9, "after": 0.5}`, and answers with one: the exit
status, or minus the signal that ended it, the seconds it took, and what it said on standard error. With `twice_in`, the
folder of a lock, the same command is run a second time while the first one holds it.
"""

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from edgeprune.cli.main import main

LOADED = (
    "edgeprune.runs.compare",
    "edgeprune.runs.sweep",
    "edgeprune.toys.train",
    "tracr_bridge.bench.leaderboard",
    "tracr_bridge.bench.run",
    "tracr_bridge.checkpoints.export",
    "tracr_bridge.random_programs.draw",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
"""What takes long to import, and would take most of a command's time in each child."""


def begin(arguments, said):
    """A command in a child, which says what it says to a file."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said.fileno(), 2)
        status = 3
        try:
            status = main(arguments)
        except KeyboardInterrupt:  # it had hardly begun
            status = 130
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def end(child, said):
    """What came of it."""
    _, status = os.waitpid(child, 0)
    said.seek(0)
    return {"status": os.waitstatus_to_exitcode(status), "said": said.read()}


def run(asked):
    """One command, stopped or not; or the same twice at once, the second as soon as the first has locked something."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as also_said:
        child = begin(asked["arguments"], said)
        if "twice_in" in asked:
            while not any(path.name.endswith(".lock") for path in Path(asked["twice_in"]).rglob(".*")):
                time.sleep(0.002)
            os.kill(child, signal.SIGSTOP)  # or it might be done before the other begins
            second = end(begin(asked["arguments"], also_said), also_said)
            os.kill(child, signal.SIGCONT)
            return {"second": second, **end(child, said)}
        if asked.get("signal") is not None:
            time.sleep(asked["after"])
            os.kill(child, asked["signal"])  # it is still ours, even if it has ended
        return {**end(child, said), "seconds": time.monotonic() - start}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # JAX's, of a fork: no thread of its has been started
    for name in LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
