"""Runs pytest on a copy of the code, in a child of a process that has imported what is not ours. POSIX only."""

import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from pathlib import Path
from unittest.mock import patch

import hypothesis
import pytest

OURS = ("edgeprune", "tracr_bridge", "programs", "_edgeprune_pytest")
"""What a child imports from its copy."""

PLUGINS = (
    "_pytest.pytester", "_hypothesis_pytestplugin", "anyio.pytest_plugin", "hypothesis", "jaxtyping",
    "platformdirs.pytest_plugin", "pytest_cov.plugin", "xdist.looponfail", "xdist.plugin",
)  # fmt: skip
"""What pytest itself imports."""

IMPORTED = (
    *PLUGINS, "haiku", "hypothesis.extra._patching", "hypothesis.extra.numpy", "jax", "jsonschema", "matplotlib.pyplot",
    "pydantic.dataclasses", "rich.progress", "safetensors.torch", "scipy.stats", "sklearn.metrics", "torch",
    "tracr.compiler.compiling", "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What is imported once, before any child is forked. None of it starts a thread when it is imported."""

FORKS = get_context("forkserver")


@dataclass(frozen=True)
class Ran:
    """What came of a run of pytest."""

    status: int
    """Its exit status."""

    failed: tuple[str, ...]
    """The tests that failed, or whose fixtures did."""

    said: str


class _Noted:
    """A plugin that notes which tests fail."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def start(imported: Sequence[str] = IMPORTED) -> None:
    """Have everything imported, unless that was done in this process before."""
    FORKS.set_forkserver_preload(list(imported))
    with patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # several children run at once
        forkserver.ensure_running()


def run_pytest(code: Path, arguments: Sequence[str], *, seconds: float) -> Ran:
    """Run pytest in a folder that holds the code.

    Raises:
        TimeoutError: it was still running after so many seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "said"
        output.touch()
        process = FORKS.Process(target=_child, args=(code, tuple(arguments), Path(folder)))
        process.start()
        process.join(seconds)
        late = process.is_alive()
        assert process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what its tests have started and left
        process.kill()  # it may not have come to have a group
        process.join()
        said = output.read_text(errors="replace")
        if late:
            raise TimeoutError(f"still running after {seconds} s: {arguments}\n{said}")
        result = Path(folder) / "result"
        assert result.exists(), f"the process died:\n{said}"
        status, failed = json.loads(result.read_text())
    return Ran(status, tuple(failed), said)


def _child(code: Path, arguments: Sequence[str], folder: Path) -> None:
    gc.freeze()  # what was imported before is not gone through again and again
    os.setsid()
    said = os.open(folder / "said", os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(code)
    sys.path.insert(0, str(code))
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ["PYTHONPATH"] = str(code)  # for what tests start
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(code / ".hypothesis")  # by default, of where it was imported
    assert not [name for name in OURS if name in sys.modules], "imported before the fork"
    # An example that fails is enough: nobody reads it, and making it smaller takes minutes. conftest.py adds to this.
    phases = set(hypothesis.Phase) - {hypothesis.Phase.shrink, hypothesis.Phase.explain}
    hypothesis.settings.register_profile("as it is", phases=phases)
    hypothesis.settings.load_profile("as it is")
    noted = _Noted()
    settled = ("-q", "-n", "0", "-p", "no:cacheprovider", "--basetemp", str(folder / "tests"))
    # Hypothesis and others were imported before pytest could rewrite their assertions.
    status = pytest.main([*settled, "-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments], plugins=[noted])
    elsewhere = [name for name in OURS if name in sys.modules and not _lies_in(sys.modules[name].__file__, code)]
    assert not elsewhere, f"{elsewhere} were not imported from the copy"
    (folder / "result").write_text(json.dumps([status, noted.failed]))


def _lies_in(file: str | None, folder: Path) -> bool:
    return file is not None and Path(file).resolve().is_relative_to(folder.resolve())
