"""Mutation testing by mutmut: of small changes to the modules that decide a verdict or a circuit, which are noticed?

    python tests/mutants/mutation.py --out DIR                         all modules; hours. Goes on where it was stopped
    python tests/mutants/mutation.py --out DIR --only edgeprune/masks  with modules whose path begins so
    python tests/mutants/mutation.py --out DIR --survivors             and what nothing noticed, as it was changed
    python tests/mutants/mutation.py --equivalents                     what counts as equivalent, and why

Prints a row a module. `mutation.toml` says which tests are run on which modules: part of those that plain `pytest`
runs, so that what these notice, plain `pytest` does. Its rules say what is equivalent, and why. Where tests were
changed, survivors are run again; what was noticed stays so: take DIR away to run all again. Exit status 1 if a module
has less than nine tenths noticed, or was not run.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
COPIED = ("edgeprune", "tracr_bridge", "programs", "tests", "examples", "benchmarks", "docs", "README.md")
ALONE = ("_edgeprune_pytest.py", "pyproject.toml", "Makefile", "constraints.txt", "CHANGELOG.md")
SOURCES = ("edgeprune", "tracr_bridge", "programs", "_edgeprune_pytest.py")
NOTICED = {1, 3, 36, 24, -24, 152, 255, -9, -11}
"""Exit statuses of mutmut: a test failed, ran forever, or brought the process down."""

_CACHED = {"COMPILE_TIME_SECS": "0", "ENTRY_SIZE_BYTES": "-1"}
"""All that JAX compiles, however small."""

LEAST = 0.9
"""Share of the mutants that are not equivalent that is to be noticed."""


@dataclass(frozen=True)
class Group:
    """Modules, and the tests that are run on their mutants."""

    files: list[str]
    tests: list[str]
    unfit: tuple[str, ...] = ()
    """Tests that are left out: they fail on any copy of mutmut's, as of files that it writes, or take too long."""

    @property
    def name(self) -> str:
        """The first module's."""
        return self.files[0].removesuffix(".py").replace("/", ".")


@dataclass(frozen=True)
class Mutant:
    """A small change that nothing noticed."""

    name: str
    before: str
    after: str

    def reason(self, equivalents: Sequence[dict[str, str]], rules: Sequence[dict[str, str]]) -> str | None:
        """Why it changes nothing, if it does not."""
        for one in equivalents:
            if one["of"] in self.name and (one["before"], one["after"]) == (self.before, self.after):
                return one["reason"]
        for rule in rules:
            before, after = (re.sub(rule["ignored"], _braces, text) for text in (self.before, self.after))
            # An argument that is left out at the end leaves ", )", which our code nowhere has.
            if before == after.replace(", )", ")") and not self.name.startswith(rule.get("outside", "nowhere")):
                return rule["reason"]
        return None


def _braces(found: re.Match[str]) -> str:
    """What a text says in braces, which is no wording."""
    return "".join(re.findall(r"\{[^}]*\}", found[0]))


def prepare(group: Group, folder: Path) -> None:
    """A copy of the code as it is now, for mutmut to change; what it found before is kept."""
    (folder / "mutants").mkdir(parents=True, exist_ok=True)  # a folder that comes later is not imported from
    for name in COPIED:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    for name in ALONE:
        shutil.copy2(ROOT / name, folder / name)
    lists = {
        "source_paths": list(SOURCES),
        "only_mutate": group.files,
        "also_copy": [each for each in (*COPIED[4:], *ALONE) if each not in SOURCES],
        "pytest_add_cli_args": [
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            "-p",
            "quickest_first",
            *(f"--deselect={test}" for test in group.unfit),
        ],
        "pytest_add_cli_args_test_selection": group.tests,
    }
    # Forked from a process that has run JAX, a mutant would hang where it runs JAX, and count as noticed.
    run = {"process_isolation": "forkserver", "use_git_change_detection": False}
    times = {"timeout_constant": 10.0, "timeout_multiplier": 3.0}
    config = "".join(f"{name} = {json.dumps(value)}\n" for name, value in (run | times | lists).items())
    with (folder / "pyproject.toml").open("a") as file:
        file.write(f"\n[tool.mutmut]\n{config}")
    shutil.rmtree(folder / "mutants" / "tests", ignore_errors=True)


def forget_survivors(group: Group, folder: Path) -> None:
    """Where tests are others than those that were run, what survived is to be run again."""
    tests = sorted(file for file in (folder / "tests").rglob("*") if file.is_file())
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in tests)).hexdigest()
    stamp = folder / "tests.sha256"
    if stamp.exists() and stamp.read_text() != digest:
        (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
        for meta in metas(group, folder):
            found = json.loads(meta.read_text())
            verdicts = found["exit_code_by_key"]
            found["exit_code_by_key"] = {name: code if code in NOTICED else None for name, code in verdicts.items()}
            meta.write_text(json.dumps(found))
    stamp.write_text(digest)


def metas(group: Group, folder: Path) -> Iterator[Path]:
    """What mutmut wrote, a module each, where it has begun."""
    for file in group.files:
        if (meta := folder / "mutants" / f"{file}.meta").exists():
            yield meta


def _module(folder: Path, meta: Path) -> str:
    """The module that a file of mutmut's is about."""
    return str(meta.relative_to(folder / "mutants").with_suffix(""))


def mutmut(folder: Path, *arguments: str, quiet: bool = False) -> str:
    """Run mutmut; its progress goes to standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    imported = f"{folder / 'mutants'}{os.pathsep}{Path(__file__).parent}"
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": imported}
    # What JAX compiles is kept, as each mutant is run in a process of its own.
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "jax")}
    environment |= {f"JAX_PERSISTENT_CACHE_MIN_{name}": least for name, least in _CACHED.items()}
    output = subprocess.PIPE if quiet else sys.stderr if sys.stderr.isatty() else (folder / "mutmut.log").open("w")
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output, text=True, check=False)
    if done.returncode and not quiet:
        raise SystemExit(f"mutmut {' '.join(arguments)} failed in {folder}; its output is in mutmut.log there")
    return done.stdout or ""


def shown(folder: Path, name: str) -> Mutant:
    """A mutant with the lines that it changes."""
    lines = mutmut(folder, "show", name, quiet=True).splitlines()
    before, after = (
        "\n".join(line[1:].strip() for line in lines if line[:1] == sign and line[:3] != sign * 3) for sign in "-+"
    )
    return Mutant(name, before, after)


def survivors(folder: Path, verdicts: dict[str, int | None]) -> list[Mutant]:
    """Those that no test noticed."""
    names = [name for name, code in verdicts.items() if code not in NOTICED and code is not None]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(partial(shown, folder), names))


def equivalents(config: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    """All that counts as equivalent, with why, as Markdown: a line a rule, then a row a function and reason."""
    found = Counter((_plain(each["of"]), each["reason"]) for each in config["equivalent"])
    rules = [f"- {rule['reason']}" for rule in config["rule"]]
    rows = [f"| `{of}` | {count} | {reason} |" for (of, reason), count in found.items()]
    return "\n".join([*rules, "", "| function | changes | reason |", "|---|---|---|", *rows])


def _plain(name: str) -> str:
    """A function's name as mutmut has it, without what mutmut adds."""
    name = re.sub(r"xǁ(\w+)ǁ|x_", r"\1.", name, count=1).replace("..", ".")
    return name if re.search(r"\.__\w+__$", name) else name.removesuffix("__")


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equivalents", action="store_true", help="print what counts as equivalent, and no more")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where copies and verdicts are kept")
    parser.add_argument("--only", nargs="+", metavar="PATH", help="modules whose path begins so")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once (default: %(default)s)")
    parser.add_argument("--survivors", action="store_true", help="print what nothing noticed")
    parser.add_argument("--as-found", action="store_true", help="run nothing, print what was found before")
    options = parser.parse_args()
    config = tomllib.loads((Path(__file__).parent / "mutation.toml").read_text())
    if options.equivalents:
        print(equivalents(config))
        return 0
    if options.out is None:
        parser.error("Expected --out DIR, where copies and verdicts are kept")
    groups = [Group(**each) for each in config["group"]]
    groups = [each for each in groups if not options.only or any(f.startswith(tuple(options.only)) for f in each.files)]
    if not groups:
        parser.error(f"no module's path begins with {' or '.join(options.only)}")
    columns = ("module", "mutants", "noticed", "survived", "equivalent", "not run", "share noticed")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    enough, survived, excused = True, list[Mutant](), list[tuple[Mutant, str]]()
    for group in tqdm(groups, desc="modules", disable=None):
        folder = options.out.absolute() / group.name
        if not options.as_found:
            prepare(group, folder)
            forget_survivors(group, folder)
            mutmut(folder, "run", "--max-children", str(options.jobs))
        written = list(metas(group, folder))
        for file in sorted({*group.files} - {_module(folder, meta) for meta in written}):
            tqdm.write(f"| {file} | {' | '.join('?' * 6)} |")
            enough = False
        for meta in written:
            verdicts = json.loads(meta.read_text())["exit_code_by_key"]
            left = survivors(folder, verdicts)
            reasons = [each.reason(config.get("equivalent", ()), config["rule"]) for each in left]
            survived += [each for each, reason in zip(left, reasons, strict=True) if reason is None]
            excused += [(each, reason) for each, reason in zip(left, reasons, strict=True) if reason is not None]
            same, alive = len(reasons) - reasons.count(None), reasons.count(None)
            codes = Counter(verdicts.values())
            noticed = sum(codes[code] for code in NOTICED)
            share = noticed / (noticed + alive) if noticed + alive else 1.0  # a module of declarations alone has none
            enough &= share >= LEAST and not codes[None]
            row = (_module(folder, meta), len(verdicts), noticed, alive, same, codes[None], f"{share:.1%}")
            tqdm.write(f"| {' | '.join(map(str, row))} |")
            sys.stdout.flush()
    if options.survivors:
        for each in survived:
            print(f"\n# {each.name}\n- {each.before}\n+ {each.after}")
        for each, reason in excused:
            print(f"\n# {each.name}: equivalent, {reason}\n- {each.before}\n+ {each.after}")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
