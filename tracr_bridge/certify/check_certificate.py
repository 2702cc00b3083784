"""Checks certificates of true circuits from their folders, with NumPy alone: `check_certificate.py DIR [DIR ...]`.

A destination reads the sum over earlier sources of z * clean + (1 - z) * ablated, in float64; z = 1 keeps an edge.
A set of edges is **faithful** if no output at a scored position of any input (pair) is off by more than the tolerance.
A faithful set is a **true circuit** if no proper subset is faithful. Searches leave out **dead** (no kept path to the
logits) and **inert** edges (same clean and ablated under any mask). Exit 0: all checked holds; 1: refused; 2: unusable.
"""

import argparse
import io
import json
from functools import reduce
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
FILES: Final = ("certificate.json", "circuit.json", "domain.npz", "weights.npz")
STATED: Final = ["edgeprune certificate 1", "largest absolute difference", "scored positions of all inputs or pairs"]
KINDS: Final = ("refused", "unusable", "holds", "unchecked")
LARGEST, ROOM = 2**26, 2**20  # bytes of a file and of all unpacked arrays; numbers of a source in one forward
PARTS: Final = {  # tokens, positions, last norm, logits; per layer: norm, q, k, v, output; norm, MLP, gated, output
    "tracr": "token position  unembed  a{0}.query a{0}.key a{0}.value a{0}.output  m{0}.hidden  m{0}.output",
    "gpt2": "wte wpe ln_f lm_head {1}ln_1 {1}attn.c_attn   {1}attn.c_proj {1}ln_2 {1}mlp.c_fc  {1}mlp.c_proj",
    "llama": "embed_tokens  norm lm_head {2}input_layernorm {2}self_attn.q_proj {2}self_attn.k_proj {2}self_attn.v_proj"
    " {2}self_attn.o_proj {2}post_attention_layernorm {2}mlp.gate_proj {2}mlp.up_proj {2}mlp.down_proj",
}


class Model:
    """A transformer. Tracr: no norms, no biases. GPT-2: LayerNorms. Llama: RMSNorms, rotary embeddings, gated MLPs."""

    def __init__(self, family: str, weights: dict[str, Array], config: dict[str, Any]) -> None:
        self.family, self.c, self.size, heads = family, config, config["head_dim"], range(config["heads"])
        self.w = {k.removeprefix("transformer.").removeprefix("model."): v.astype(float) for k, v in weights.items()}
        token, place, end, last = PARTS[family].split(" ")[:4]
        # Stages: sources that read the same stream, and the bias added after them, never ablated. Ports: their inputs.
        self.stages: list[tuple[list[str], Any]] = [(["tok", "pos"] if family == "tracr" else ["embed"], 0.0)]
        self.ports, self.edges = {name: list[str]() for name in self.stages[0][0]}, dict[str, tuple[str, str]]()
        self.writes, self.reads, before = dict[str, Any](), dict[str, tuple[str, Array, Array, bool]](), list[str]()
        token, place = self.w[token + ".weight"], self.w.get(place + ".weight", np.zeros((1, 1)))
        self.writes |= {"tok": (token, 0 * place), "pos": (place, 0 * place), "embed": (token, place)}
        for n in range(config["layers"]):
            parts = PARTS[family].format(n, f"h.{n}.", f"layers.{n}.").split(" ")[4:]
            ports, (rows, constant) = [self.linear(part) for part in parts[1:4] if part], self.linear(parts[4])
            if family == "gpt2":
                ports = [(ports[0][0][:, own], ports[0][1][own]) for own in np.split(np.arange(ports[0][1].size), 3)]
            for head, own in enumerate(np.split(rows, len(heads))):
                self.writes[name := f"a{n}.h{head}"], self.ports[name] = (own, 0.0), []
                for letter, (weight, bias) in zip("qkv", ports, strict=True):
                    shared = head * weight.shape[1] // (len(heads) * self.size)  # heads may share keys and values
                    own, to = slice(shared * self.size, (shared + 1) * self.size), f"a{n}.h{shared}.{letter}"
                    self.reads[to] = parts[0], weight[:, own], bias[own], family == "llama" and letter != "v"
                    self.ports[name].append(to)
            weight, bias = zip(*(self.linear(part) for part in parts[6:8] if part), strict=True)
            self.reads[f"m{n}"] = parts[5], np.concatenate(weight, -1), np.concatenate(bias), False
            self.ports[f"m{n}"], self.writes[f"m{n}"] = [f"m{n}"], self.linear(parts[8])
            self.stages += [([f"a{n}.h{head}" for head in heads], constant), ([f"m{n}"], 0.0)]
        self.reads["logits"], self.ports["logits"] = (end, *self.linear(last), False), ["logits"]
        self.stages.append((["logits"], 0.0))
        for names, _ in self.stages:  # edges into a source come before edges out of it
            self.edges |= {f"{s}->{to}": (s, to) for name in names for to in self.ports[name] for s in before}
            before += names

    def linear(self, name: str) -> tuple[Array, Array]:
        """Return weights `[in, out]` and biases."""
        weight = self.w[name + ".weight"].T if self.family == "llama" or name == "lm_head" else self.w[name + ".weight"]
        return weight, self.w.get(name + ".bias", np.zeros(weight.shape[1]))

    def read(self, to: str, x: Array) -> Array:
        """Return what a destination computes from the stream: norm, weights and, in Llama, the rotary embedding."""
        norm, weight, bias, turned = self.reads[to]
        if norm:
            x = x - x.mean(-1, keepdims=True) if self.family == "gpt2" else x
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c["epsilon"]) * self.w[norm + ".weight"]
        x = (x + self.w.get(norm + ".bias", 0.0)) @ weight + bias
        if turned:
            angle = np.arange(x.shape[-2])[:, None] * self.c["rope_theta"] ** (-np.arange(0, self.size, 2) / self.size)
            cos, sin, one, two = np.cos(angle), np.sin(angle), x[..., : self.size // 2], x[..., self.size // 2 :]
            x = np.concatenate([one * cos - two * sin, two * cos + one * sin], -1)
        return x

    def write(self, name: str, tokens: Array, x: list[Array]) -> Array:
        """Return what a source writes, `[mask, input, pos, number]`, from tokens or from what its ports read."""
        weight, bias = self.writes[name]
        if name in ("tok", "pos", "embed"):
            rows = 0 * tokens + np.arange(tokens.shape[1]) if name == "pos" else tokens
            return (weight[rows] + bias[: tokens.shape[1]])[None]
        if len(x) == 1:
            hidden, gated = x[0][..., : len(weight)], x[0][..., len(weight) :]
            hidden = np.maximum(hidden, 0) if self.c["activation"] == "relu" else hidden * (1 + np.tanh(hidden / 2)) / 2
            return (hidden * gated if gated.size else hidden) @ weight + bias
        seen = (tokens != self.c["pad"])[:, None] & (np.tri(tokens.shape[1], dtype=bool) | (not self.c["causal"]))
        scores = np.where(seen, x[0] @ x[1].swapaxes(-1, -2) / np.sqrt(self.size), -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return (scores / scores.sum(-1, keepdims=True)) @ x[2] @ weight


class Check:
    """Checks one certificate. A set of structural edges is coded as an integer: bit i keeps edge i."""

    def __init__(self, folder: Path, options: argparse.Namespace, found: dict[str, list[str]]) -> None:
        self.limit, self.most, (self.refused, *_, self.unchecked) = options, options.tolerance, found.values()
        self.rows, self.failed, self.clean, data = 0, list[int](), dict[str, Array](), dict[str, bytes]()
        self.refuse: Any = lambda wrong, text: self.refused.extend([text] * bool(wrong))
        for path in (folder / name for name in FILES):  # no other file is read
            if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
                raise ValueError(f"expected a file {path.name} of at most {LARGEST:,} bytes")
            data[path.name] = path.read_bytes()
        said, circuit = json.loads(data[FILES[0]]), json.loads(data[FILES[1]])
        digests = {**said["files"], FILES[0]: said.pop("digest")}
        data[FILES[0]] = json.dumps(said, sort_keys=True).encode()
        self.refused += [f"{name} was changed" for name in data if sha256(data[name]).hexdigest() != digests[name]]
        self.said, self.claims, self.ablation = said, said["claims"], said["ablation"]
        self.refuse(self.ablation not in ("zero", "mean", "resample"), f"ablation {self.ablation!r} is not known")
        same = [said["format"], *said["criterion"].values()] == [*STATED, self.most]
        self.refuse(not same, f"the format or the criterion is not known, or the tolerance is not {self.most:g}")
        own = {"ablation": self.ablation, "graph": said["graph"], "model": said["subject"]}
        self.refuse(circuit != circuit | own | {"edges": self.claims["circuits"][0]}, "circuit.json is not circuit 1")
        domain, weights = (np.load(io.BytesIO(data[name]), allow_pickle=False) for name in FILES[2:])
        if sum(part.file_size for packed in (domain, weights) for part in packed.zip.infolist()) > LARGEST:
            raise ValueError(f"expected arrays of at most {LARGEST:,} bytes")
        self.tokens, self.scored, self.group, self.stated = map(domain.get, ("tokens", "scored", "group", "outputs"))
        model, each = Model(said["family"], dict(weights), said["model"]), np.arange(len(self.tokens))
        self.room = max(1, ROOM // self.tokens.shape[1] // max(values.shape[-1] for values in model.w.values()))
        self.pairs = domain["pairs"] if self.ablation == "resample" else np.stack([each, each])
        self.order = np.random.default_rng(0).permutation(len(self.pairs[0])).tolist()
        self.model, self.names = model, [name for name in model.edges if name in said["structural"]]
        self.zero = np.zeros(1, object if len(self.names) > 62 else np.int64)
        edges = [(*model.edges[name], bit) for bit, name in enumerate(self.names)]
        self.into = {to: [(source, bit) for source, end, bit in edges if end == to] for to in model.reads}
        self.to = {to: sum(1 << bit for _, bit in inputs) for to, inputs in self.into.items()}
        self.of = {name: sum(1 << bit for source, _, bit in edges if source == name) for name in model.ports}
        self.circuits = [sum(1 << b for b, n in enumerate(self.names) if n in c) for c in self.claims["circuits"]]
        wrong = [n for each in self.claims["circuits"] for n in each if n not in self.names or each.count(n) > 1]
        self.refuse(wrong, f"a circuit has edges that are not structural, or that it has twice: {', '.join(wrong)}")
        self.target = self.run(self.zero, self.tokens, self.clean)[0]
        self.ablated = {name: values * (self.ablation == "resample") for name, values in self.clean.items()}
        for name, rows in ((n, self.group == g) for n in self.clean for g in {*self.group} if self.ablation == "mean"):
            self.ablated[name][rows] = self.clean[name][rows].mean(0)
        self.check_domain()
        self.check_circuits()
        found["holds"] += [self.claims["status"] + " in what was checked" * bool(self.unchecked)] * (not self.refused)

    def run(self, codes: Array, tokens: Array, ablated: dict[str, Array]) -> Array:
        """Return the outputs of each code. A source missing from `ablated` is added as it writes, so it stays clean."""
        kept = [(codes >> bit & 1).astype(float)[:, None, None, None] for bit in range(len(self.names))]
        base, written, reads = np.zeros((1, 1, 1, 1)), dict[str, Array](), dict[str, Array]()
        for (names, constant), (following, _) in zip(self.model.stages, self.model.stages[1:], strict=False):
            for name in names:
                value = self.model.write(name, tokens, [reads[to] for to in self.model.ports[name]])
                written[name] = value - ablated.setdefault(name, value[0])
            base = base + sum(ablated[name] for name in names) + constant
            for to in {to for name in following for to in self.model.ports[name]}:
                reads[to] = self.model.read(to, sum((kept[bit] * written[s] for s, bit in self.into[to]), base))
        return reads["logits"]

    def worst(self, codes: Array, pairs: Any) -> tuple[Array, Array]:
        """Return the largest difference from the full model that each code makes on `pairs`, and the pair it is on."""
        found, where, self.rows = np.zeros(len(codes)), np.zeros(len(codes), int), self.rows + len(codes) * len(pairs)
        for some in np.split(np.array(pairs), range(self.room, len(pairs), self.room)):
            clean, other = self.pairs[:, some]
            ablated = {name: values[other] for name, values in self.ablated.items()}
            for part in np.split(np.arange(len(codes)), range(n := max(1, self.room // len(some)), len(codes), n)):
                apart = np.abs(self.run(codes[part], self.tokens[clean], ablated) - self.target[clean]).max(-1)
                apart = np.where(self.scored[clean], np.nan_to_num(apart, nan=np.inf), 0).max(-1)
                larger = apart.max(1) >= found[part]
                found[part[larger]], where[part[larger]] = apart.max(1)[larger], some[apart.argmax(1)[larger]]
        return found, where

    def search(self, text: str, code: int, find: Any) -> bool:
        """Refuse, and return True, if `find` gives a faithful set. Name the edges by which it differs from `code`."""
        try:
            codes: Array = find()
            sizes = np.array([int(each).bit_count() for each in codes])
            for some in (codes[sizes == size] for size in np.unique(sizes)):
                pairs, count = self.failed + self.order, 1  # counterexamples first
                while pairs and len(some):
                    worst, where = self.worst(some, pairs[:count])
                    self.failed = [*dict.fromkeys(where[worst > self.most].tolist() + self.failed)][:64]
                    some, pairs, count = some[worst <= self.most], pairs[count:], 2 * count
                    if self.rows > self.limit.rows:
                        raise OverflowError(f"more than {self.limit.rows:,} masked inputs")
                if len(some):
                    edges = ", ".join(name for bit, name in enumerate(self.names) if (int(some[0]) ^ code) >> bit & 1)
                    self.refused.append(f"{text}: {edges} ({self.worst(some[:1], self.order)[0][0]:.4g} off)")
                    return True
        except OverflowError as error:
            self.unchecked.append(f"whether {text}: there are {error}")
        return False

    def live(self, allowed: int) -> Array:
        """Return all subsets of `allowed` that have no dead edge and hold no listed circuit, from the logits back."""
        codes = self.zero
        for to in reversed([*dict.fromkeys(to for ports in self.model.ports.values() for to in ports)]):
            out = sum(self.of[name] for name, ports in self.model.ports.items() if to in ports)
            alive = (codes & out).astype(bool) | (to == "logits")
            bits = [1 << bit for _, bit in self.into[to] if allowed >> bit & 1]
            if int((~alive).sum()) + (int(alive.sum()) << len(bits)) > self.limit.subsets:
                raise OverflowError(f"more than {self.limit.subsets:,} sets without dead edges")
            choices = reduce(lambda made, bit: np.concatenate([made, made | bit]), bits, self.zero)
            codes = np.concatenate([(codes[alive][:, None] | choices).ravel(), codes[~alive]])
        return codes[~np.any([(codes & code) == code for code in self.circuits], 0)]

    def varying(self) -> Array:
        """Return `live` of the edges that are not inert: their source's value varies, or depends on such edges."""
        varying, first = 0, [int(np.argmax(self.group == group)) for group in self.group]
        for bit, (source, to) in enumerate(self.model.edges[name] for name in self.names):
            x = (values := self.clean[source]) - values[first] * (self.ablation != "zero")
            varies = self.model.family != "tracr" or self.model.read(to, x * (abs(x) > 1e-13 * abs(values))).any()
            varying |= bool(varies or any(varying & self.to[port] for port in self.model.ports[source])) << bit
        return self.live(varying)

    def check_domain(self) -> None:
        """Refuse inputs, pairs, outputs, a graph or structural edges that are not as stated."""
        said, c, model, (clean, other) = self.said["domain"], self.said["model"], self.model, self.pairs
        tokens, (low, high), vocabulary = self.tokens, said["lengths"], sorted({*said["vocabulary"]})
        lengths, graph, listed = (tokens != c["pad"]).sum(1), self.said["graph"], self.said["structural"]
        fits = np.arange(tokens.shape[1]) < lengths[:, None]
        fits = np.where(fits, np.isin(tokens, vocabulary) & (tokens >= 0), (tokens == c["pad"]) & ~self.scored)
        fits[:, 0] = (tokens[:, 0] == c["bos"]) & ~self.scored[:, 0]
        self.refuse(not fits.all(), "an input is not BOS, vocabulary, PAD, or BOS or PAD is scored")
        self.refuse(not low < lengths.min() <= lengths.max() <= high + 1, f"an input is not {low} to {high} long")
        wrong = (self.group != np.unique(lengths, return_inverse=True)[1]).any() or self.pairs.min() < 0
        self.refuse(wrong or (lengths[clean] != lengths[other]).any(), "a group, or a pair, is not of one length")
        self.refuse(len(np.unique(tokens, axis=0)) < len(tokens), "an input is there twice")
        whole = sum(len(vocabulary) ** n for n in range(low, high + 1))
        whole = whole if said["exhaustive"] and not said["restricted"] else len(tokens)
        stated = (len(tokens), said["inputs"], whole)
        self.refuse(len({*stated}) > 1, "inputs are {}, {} are stated, {} are all".format(*stated))
        whole = int((np.bincount(lengths) ** 2).sum()) if self.ablation == "resample" else len(tokens)
        wrong = said["all_pairs"] and not len(np.unique(self.pairs, axis=1)[0]) == len(clean) == whole
        text = f"pairs are {len(clean)}, {said['pairs']} are stated, {whole} are all, each once"
        self.refuse(wrong or len(clean) != said["pairs"], text)
        apart, scale = (np.abs(x)[self.scored].max() for x in (self.target - self.stated, self.stated))
        self.refuse(not apart <= self.most / 10 + 1e-5 * scale, f"the full model's outputs differ by {apart:.4g}")
        self.unchecked += ["positions that are not scored"] * int(self.scored.sum() < (lengths - 1).sum())
        same = [*graph["sources"], "logits"] == [*model.ports] and {*graph["destinations"]} == {*model.reads}
        self.refuse(not same or sorted(self.names) != sorted(listed), "the graph, or an edge, is not the model's")
        self.unchecked += ["other inputs or pairs"] * (said["restricted"] or not said["exhaustive"] * said["all_pairs"])
        self.unchecked += ["sets with edges that are not structural: norms read them too"] * (model.family != "tracr")
        for name, (source, to) in model.edges.items() if model.family == "tracr" else ():
            rows = model.writes[source][0][[c["bos"], *vocabulary] if source == "tok" else slice(None)]
            self.refuse(name not in listed and model.read(to, rows).any(), f"{name} carries something, but is unlisted")

    def check_circuits(self) -> None:
        """Refuse circuits that are not true or are nested, a false gap or margin, and a complete list lacking one."""
        status, many, margin, stated = self.claims["status"], len(self.circuits), np.inf, self.claims["gap"]
        fits = {"unique": many == 1, "ambiguous": many > 1, "minimal": many, "locally-minimal": many}[status]
        self.refuse(not fits, f"a certificate {status!r} does not list {many} circuits")
        groups = {*self.of.values(), *self.to.values(), *(1 << bit for bit in range(len(self.names)))}
        groups |= {sum(self.to[to] for to in ports[:n]) for ports in self.model.ports.values() for n in (2, 3)}  # q, k
        self.unchecked += ["other sets than two edges or groups of a circuit"] * (status == "locally-minimal")
        for number, code in enumerate(self.circuits, 1):
            apart, where = self.worst(self.zero + code, self.order)
            fewer = np.array([code & ~(1 << bit) for bit in range(len(self.names)) if code >> bit & 1], self.zero.dtype)
            effects, whole = self.worst(fewer, self.order[:64])[0], set[int]()
            while (least := int(effects.argmin())) not in whole:  # others do more on 64 pairs
                effects[least], whole = self.worst(fewer[[least]], self.order)[0][0], whole | {least}
            on = " corrupted by ".join(map(str, self.tokens[self.pairs[:, where[0]]].tolist()))
            self.refuse(apart[0] > self.most, f"circuit {number} is not faithful: {apart[0]:.4g} off on {on}")
            gap, text = (effects.min(), apart[0]), f"circuit {number} is faithful without some edges"
            margin = min(margin, *np.abs(np.subtract(gap, self.most)))
            same = np.allclose(gap, (stated["kept"], stated["dropped"]), 1e-3, self.most / 10)
            self.refuse(number == 1 and not same, f"the gap is {gap[0]:.4g}, {gap[1]:.4g}, not as stated")
            self.refuse(sum(each & code == each for each in self.circuits) > 1, f"circuit {number} holds another one")
            left = {code & ~(one | other) for one in groups for other in groups} - {code}
            found = self.search(text, code, lambda left=left: np.array([*left], self.zero.dtype))
            if not found and status != "locally-minimal":
                self.search(text, code, lambda code=code: self.live(code))
        self.refuse(not 0 <= self.claims["margin"] <= margin / 0.999 + 1e-6, f"the margin is no more than {margin:.4g}")
        if "minimal" not in status:
            self.search("a true circuit is not listed", 0, self.varying)


def main(arguments: list[str] | None = None) -> int:
    """Check folders, print what is refused, unusable, holds or is unchecked, a line each. Return the exit code."""
    parser = argparse.ArgumentParser(description="Check certificates of true circuits, from their folders alone.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--subsets", type=int, default=2**20, help="sets in one search, at the most")
    parser.add_argument("--rows", type=int, default=10**8, help="masked inputs of one certificate, at the most")
    parser.add_argument("--tolerance", type=float, default=0.01, help="that certificates are to state")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    options = parser.parse_args(arguments)
    results, lines = {str(folder): {kind: list[str]() for kind in KINDS} for folder in options.folders}, list[str]()
    for folder, found in results.items():
        try:
            Check(Path(folder), options, found)
        except Exception as error:  # a damaged folder must not keep the next from being checked
            found["unusable"].append(f"{type(error).__name__}: {' '.join(str(error).split())}")
        lines += [f"{folder}: {kind}: {text}" for kind in KINDS for text in found[kind]]
    print(json.dumps({"certificates": results}) if options.json else "\n".join(lines))
    return 1 if any(f["refused"] for f in results.values()) else 2 * any(f["unusable"] for f in results.values())


if __name__ == "__main__":
    raise SystemExit(main())
