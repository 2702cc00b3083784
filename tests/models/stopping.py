"""A process that has loaded everything, and runs commands in children of its own, which it stops at given moments.

It reads a line of JSON for each, `{"arguments": [...], "signal": 9, "after": 0.5}`, and answers with one: the exit
status, or minus the signal that ended it, the seconds it took, and what it said on standard error.
"""

import json
import os
import signal
import sys
import tempfile
import time
import warnings

import torch

from tracr_bridge.cli import main


def run(arguments, number, after):
    """One command."""
    with tempfile.TemporaryFile("w+") as said:
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(said.fileno(), 2)
            status = 3
            try:
                status = main(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        if number is not None:
            time.sleep(after)
            os.kill(child, number)  # it is still ours, even if it has ended
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - begin,
            "said": said.read(),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # JAX's, of a fork: no thread of its has been started
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(run(asked["arguments"], asked.get("signal"), asked.get("after", 0.0))), flush=True)
