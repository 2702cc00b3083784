"""Schema of an exported checkpoint's `circuit.json`."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeprune.graph import Ablation
from tracr_bridge.certify.truth import Criterion, Status

NEEDED: Final = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Files that a checkpoint must have: without one, `transformers` would look elsewhere or load other weights."""

Value = bool | int | float | str | None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Program(_Strict):
    name: str
    doc: str
    vocabulary: dict[str, Value]


class _Graph(_Strict):
    sources: list[str]
    destinations: list[str]
    edges: list[str]


class _Outputs(_Strict):
    kind: Literal["categorical", "numerical"]
    columns: list[Value] = Field(min_length=1)


class _Domain(_Strict):
    exhaustive: bool
    inputs: list[str] = Field(min_length=1)
    expected: list[list[Value]]

    @model_validator(mode="after")
    def _outputs_are_those_of_inputs(self) -> "_Domain":
        if [len(text.split()) for text in self.inputs] != list(map(len, self.expected)):
            raise ValueError("an output for each token of each input")
        return self


class _Gap(_Strict):
    kept: float | None
    dropped: float


class _Certificate(_Strict):
    status: Status
    inputs: int = Field(ge=1)
    pairs: int = Field(ge=1)
    exhaustive: bool
    criterion: Criterion
    atol: float = Field(gt=0)
    gap: _Gap
    margin: float
    choices: int = Field(ge=0)
    circuits: list[list[str]] = Field(min_length=1)


class _Circuit(_Strict):
    """The true circuit under one ablation and its certificate, or the reason why there is none."""

    edges: list[str]
    certificate: _Certificate | None = None
    refused: str | None = None

    @model_validator(mode="after")
    def _is_either(self) -> "_Circuit":
        if (self.certificate is None) == (self.refused is None):
            raise ValueError("either a certificate or why there is none")
        return self


class ExportContent(_Strict):
    """The content of `circuit.json` as `export` writes it."""

    format: str
    program: _Program
    family: Literal["gpt2", "llama"]
    seed: int = Field(ge=0, lt=2**32)
    files: dict[str, str]
    graph: _Graph
    structural: list[str]
    outputs: _Outputs
    domain: _Domain
    max_abs_diff: float
    circuits: dict[Ablation, _Circuit]
    versions: dict[str, str]
    digest: str

    @model_validator(mode="after")
    def _is_whole(self) -> "ExportContent":
        if lacking := [name for name in NEEDED if name not in self.files]:
            raise ValueError(f"files with {', '.join(lacking)}")
        if far := [name for name in self.files if name in ("", ".", "..") or set(name) & set("/\\\0")]:
            raise ValueError(f"files of the folder itself, and not {far[0]!r:.60}")
        if len(self.circuits) < 3:
            raise ValueError("circuits under every ablation")
        return self
