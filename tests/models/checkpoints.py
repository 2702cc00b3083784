"""The catalogue's causal programs as checkpoints, each written once for all modules and processes of a session."""

import os

import pytest
from filelock import FileLock

from tracr_bridge.checkpoints.export import export
from tracr_bridge.checkpoints.read_back import Exported, load_exported
from tracr_bridge.compile.catalogue import catalogue, load_program

FAMILIES = ("gpt2", "llama")


def checkpoints(quick):
    """Parameters of a fixture, (program, family); those of a program that is not quick are for the sweep."""
    return [
        pytest.param((name, family), id=f"{name}-{family}", marks=[] if name in quick else pytest.mark.sweep)
        for name, program in catalogue().items()
        if program.causal
        for family in FAMILIES
    ]


def checkpoint(name, family, tmp_path_factory) -> Exported:
    """A checkpoint that several tests read, and none changes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / f"{name}-{family}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            return export(load_program(name), family, folder)
    return load_exported(folder)
