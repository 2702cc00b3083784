"""AutoCircuit's own algorithms as discovery methods: a peer that is no part of the toolkit.

AutoCircuit (https://github.com/UFO-101/auto-circuit) patches edges of TransformerLens models. A compiled model is
rebuilt as a `HookedTransformer` from its weights, its edges are patched and scored by AutoCircuit alone, and the scores
are carried back node by node. Nothing but weights and inputs is looked at.
"""

import importlib
import io
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.model_utils.transformer_lens_utils import factorized_dest_nodes, factorized_src_nodes
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.prune_algos.subnetwork_probing import init_mask_val, subnetwork_probing_prune_scores
from auto_circuit.types import AblationType, DestNode, PruneScores, SrcNode
from auto_circuit.types import Edge as PeerEdge
from auto_circuit.utils.graph_utils import make_model_patchable
from auto_circuit.utils.patchable_model import PatchableModel
from compiled_transformer import CompiledTransformer, rebuild
from ordered_set import OrderedSet
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.graph import Ablation, Circuit, Graph, Node
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import edges_of
from edgeprune.methods import Discovery
from edgeprune.methods.method import keep_above
from tracr_bridge.compile.weights import Weights

THRESHOLD = 0.01
"""Score above which an edge is kept, and ACDC's tau: that of the toolkit's own `eap` and `acdc`."""

LOGIT_SCALE = 10.0
"""Logits are multiplied by this before a divergence, as in the toolkit's own `acdc`; compiled outputs are one-hot."""

TAUS = (-4, -3, -2, -1)
"""Powers of ten that ACDC is run at: THRESHOLD decides what is kept, all of them together rank the edges."""

PROMPTS = 2048
"""Prompts in the sample, or all where there are fewer; a prompt is an input and one position to answer at."""

BATCH = 512
"""Prompts in a batch, at the most. ACDC judges edges on one batch, and integrates gradients over one."""

PROBED = 128
"""Prompts in the batch that probing trains on, at the most."""

TOLERANCE = 1e-3
"""How far the rebuilt model may be from the original."""


# Its edges, as AutoCircuit's


def patchable(model: CompiledTransformer, *, seed: int, split_embedding: bool = True) -> PatchableModel:
    """`model`, in AutoCircuit's wrappers.

    AutoCircuit has one source for both embeddings, the residual stream at the start. Here the token and the position
    embedding are sources of their own, by the same wrappers, unless told otherwise. Edges, which AutoCircuit takes out
    of a set in an order that differs from process to process, are put into an order that the seed decides.
    """
    sources: set[SrcNode] = factorized_src_nodes(model)
    if split_embedding:
        start = next(node for node in sources if node.layer == 0)
        sources = {replace(node, src_idx=node.src_idx + 1) for node in sources - {start}}
        sources |= {SrcNode("tok", "hook_embed", 0, src_idx=0), SrcNode("pos", "hook_pos_embed", 0, src_idx=1)}
    destinations: set[DestNode] = factorized_dest_nodes(model, separate_qkv=True)
    edges = [PeerEdge(s, d) for s in sources for d in destinations if s.layer < d.layer]
    edges.sort(key=str)
    random.Random(seed).shuffle(edges)
    nodes = sources | destinations
    wrappers, source_wrappers, destination_wrappers = make_model_patchable(
        model, factorized=True, src_nodes=sources, nodes=nodes, device=torch.device("cpu")
    )
    return PatchableModel(
        nodes=nodes,
        srcs=sources,
        dests=destinations,
        edge_dict={None: edges},
        edges=OrderedSet(edges),
        seq_dim=1,
        seq_len=None,
        wrappers=wrappers,
        src_wrappers=source_wrappers,
        dest_wrappers=destination_wrappers,
        out_slice=(slice(None),),
        is_factorized=True,
        is_transformer=True,
        separate_qkv=True,
        kv_caches=(None,),
        wrapped_model=model,
    )


def cells(graph: Graph, edge: PeerEdge) -> list[tuple[int, int]]:
    """Row and column of the mask for an edge of AutoCircuit's; two of them where its source is both embeddings."""
    layer, port = (edge.dest.layer - 1) // 2, edge.dest.name[-1].lower()
    if edge.dest.name == "Resid End":
        destination = Node("logits")
    elif edge.dest.head_idx is None:
        destination = Node("m", layer)
    else:
        destination = Node("a", layer, edge.dest.head_idx, port)
    layer = (edge.src.layer - 1) // 2
    if edge.src.layer == 0:
        names = ("tok", "pos") if edge.src.name == "Resid Start" else (edge.src.name,)
        written = [Node(name) for name in names]
    elif edge.src.head_idx is None:
        written = [Node("m", layer)]
    else:
        written = [Node("a", layer, edge.src.head_idx)]
    return [(graph.source_index[source], graph.destination_index[destination]) for source in written]


def to_matrix(graph: Graph, model: PatchableModel, scores: PruneScores) -> Tensor:
    """Scores as `[source, destination]`."""
    matrix = torch.zeros(len(graph.sources), len(graph.destinations))
    for edge in model.edges:
        for cell in cells(graph, edge):
            matrix[cell] = float(edge.prune_score(scores))
    return matrix


# A run


@dataclass(frozen=True)
class Run:
    """What an algorithm of AutoCircuit's is given."""

    graph: Graph
    model: PatchableModel
    batches: PromptDataLoader
    logits: bool

    def matrix(self, scores: PruneScores) -> Tensor:
        """Scores as `[source, destination]`."""
        return to_matrix(self.graph, self.model, scores)


def prepare(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int,
    distance: bool = False,
    batches: int | None = None,
    batch: int = BATCH,
    split_embedding: bool = True,
) -> Run:
    """Rebuild the model, draw prompts, and check that it answers them as the original does.

    Args:
        model: the compiled model.
        dataset: its inputs.
        ablation: zero or resample. AutoCircuit's ACDC and probing know nothing but corrupted prompts; for zero these
            hold PAD alone, on which every node writes zero.
        seed: of the prompts, of their corrupted counterparts and of the order of edges.
        distance: whether the loss is a distance from the full model: logits are then scaled, and answers are values.
        batches: how many batches at the most; as many as there are prompts for unless given.
        batch: prompts in a batch, at the most.
        split_embedding: see `patchable`.
    """
    if ablation == "mean":
        raise ValueError("Expected zero or resample ablation: AutoCircuit's mean does not know inputs of one length")
    generator = torch.Generator().manual_seed(seed)
    outputs = dataset.target[dataset.scored]
    scale = LOGIT_SCALE if dataset.logits and distance else 1.0 if dataset.logits else 1 / float(outputs.std())
    rows, positions = torch.nonzero(dataset.scored, as_tuple=True)
    chosen = torch.randperm(len(rows), generator=generator)[:PROMPTS]
    rows, positions = rows[chosen], positions[chosen, None]
    if not isinstance(weights := getattr(model, "weights", None), Weights):
        raise TypeError(f"Expected a compiled program, whose weights can be carried over; got {type(model).__name__}")
    rebuilt = rebuild(weights, scale)
    clean = torch.cat([dataset.tokens[rows], positions], 1)
    corrupted = torch.cat([dataset.tokens[dataset.partners(rows, generator)], positions], 1)
    if ablation == "zero":
        corrupted[:, :-1] = rebuilt.pad_id
    target = scale * dataset.target[rows, positions[:, 0]]
    with torch.no_grad():
        error = float((rebuilt(clean) - target).abs().max()) / scale
    if error > TOLERANCE:
        raise AssertionError(f"Expected the rebuilt model to answer as the original; it is off by {error:.2g}")
    answers, wrong = _answers(target, as_values=distance and not dataset.logits)
    # AutoCircuit drops a last batch that is not full: batches are made as even as can be, and lose a few prompts.
    number = -(-len(clean) // batch)
    size = len(clean) // number
    kept = slice(0, size * min(number, batches or number))
    prompts = PromptDataset(clean[kept], corrupted[kept], list(answers[kept]), list(wrong[kept]))
    loader = PromptDataLoader(prompts, seq_len=None, diverge_idx=0, batch_size=size, shuffle=False)
    wrapped = patchable(rebuilt, seed=seed, split_embedding=split_embedding)
    return Run(model.graph, wrapped, loader, dataset.logits)


def _answers(target: Tensor, *, as_values: bool) -> tuple[Tensor, Tensor]:
    """The right answer of each prompt and all wrong ones, as indices of outputs; or the outputs themselves."""
    if as_values:
        return target, target
    if target.shape[1] == 1:
        index = torch.zeros(len(target), 1, dtype=torch.long)
        return index, index
    order = target.argsort(dim=1, descending=True, stable=True)
    return order[:, :1], order[:, 1:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without AutoCircuit's progress bars."""
    with redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _adam_by_its_module() -> Iterator[None]:
    """Have `torch.optim.adam.Adam`, which AutoCircuit asks for and recent versions of torch hide."""
    if hasattr(torch.optim, "adam"):
        yield
        return
    torch.optim.adam = importlib.import_module("torch.optim.adam")
    try:
        yield
    finally:
        del torch.optim.adam


# The methods


def edge_attribution_patching(model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int) -> Discovery:
    """Edge attribution patching: the gradient of the logit difference by each edge's mask, at the full model."""
    return _by_gradient(model, dataset, ablation, seed=seed, batches=None, mask_val=0.0)


def integrated_edge_gradients(model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int) -> Discovery:
    """The mean of that gradient at 51 masks, from the full model to the one with all edges ablated."""
    return _by_gradient(model, dataset, ablation, seed=seed, batches=1, integrated_grad_samples=50)


def _by_gradient(
    model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int, batches: int | None, **settings: Any
) -> Discovery:
    run = prepare(model, dataset, ablation, seed=seed, batches=batches)
    zero = ablation == "zero"
    with _quiet():
        scores = mask_gradient_prune_scores(
            run.model,
            run.batches,
            None,
            grad_function="logit",
            answer_function="avg_diff" if run.logits else "avg_val",
            ablation_type=AblationType.ZERO if zero else AblationType.RESAMPLE,
            clean_corrupt=None if zero else "corrupt",
            **settings,
        )
    passes = len(run.batches) * (settings.get("integrated_grad_samples", 0) + 1)  # it adds gradients up
    return keep_above(run.graph, ablation, run.matrix(scores).abs() / passes, THRESHOLD)


def acdc(model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int) -> Discovery:
    """ACDC; the circuit is that at tau = THRESHOLD, an edge's score the least tau at which it goes."""
    return _acdc(model, dataset, ablation, seed=seed, taus=TAUS)


def acdc_one_embedding(model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int) -> Discovery:
    """ACDC on AutoCircuit's own graph, where the embeddings are one source; both are kept, or neither."""
    return _acdc(model, dataset, ablation, seed=seed, taus=(-2,), split_embedding=False)


def _acdc(
    model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int, taus: Sequence[int], **settings: Any
) -> Discovery:
    run = prepare(model, dataset, ablation, seed=seed, distance=True, batches=1, **settings)
    went: list[Tensor] = []
    kept: Tensor | None = None
    for power in taus:
        with _quiet():
            scores = acdc_prune_scores(
                run.model,
                run.batches,
                None,
                tao_exps=[power],
                tao_bases=[1],
                faithfulness_target="kl_div" if run.logits else "mse",
            )
        went.append(run.matrix(scores))
        if 10.0**power == THRESHOLD:
            kept = went[-1].isinf()
    assert kept is not None, "THRESHOLD is one of TAUS"
    least = torch.stack(went).amin(0).clamp(max=10.0 ** (taus[-1] + 1))
    return Discovery(Circuit(run.graph, ablation, edges_of(run.graph, kept)), least, ())


def subnetwork_probing(model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int) -> Discovery:
    """Subnetwork probing of edges; one is kept where its mask ends on the side of the clean value.

    Masks start where AutoCircuit puts them, nine tenths of every edge ablated. Under resample, its implementation
    ablates with the mean over all corrupted prompts.
    """
    return _probe(model, dataset, ablation, seed=seed, init_val=init_mask_val)


def subnetwork_probing_from_full(model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int) -> Discovery:
    """The same with masks that start at the other end, nine tenths of every edge kept."""
    return _probe(model, dataset, ablation, seed=seed, init_val=-init_mask_val)


def _probe(model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int, init_val: float) -> Discovery:
    run = prepare(model, dataset, ablation, seed=seed, distance=True, batches=1, batch=PROBED)
    with _quiet(), _adam_by_its_module(), torch.random.fork_rng():
        torch.manual_seed(seed)
        subnetwork_probing_prune_scores(
            run.model,
            run.batches,
            None,
            learning_rate=0.1,
            epochs=200,
            regularize_lambda=0.5,
            mask_fn="hard_concrete",
            init_val=init_val,
            tree_optimisation=True,
            faithfulness_target="kl_div" if run.logits else "mse",
        )
    masks = {name: mask.detach() for name, mask in run.model.patch_masks.items()}
    return keep_above(run.graph, ablation, torch.sigmoid(-run.matrix(masks)), 0.5)


METHODS: tuple[Callable[..., Discovery], ...] = (
    edge_attribution_patching,
    integrated_edge_gradients,
    acdc,
    acdc_one_embedding,
    subnetwork_probing,
    subnetwork_probing_from_full,
)
