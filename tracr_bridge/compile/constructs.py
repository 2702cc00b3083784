"""Find the RASP constructs that a program uses, and the shape of the transformer that it compiles to."""

import inspect
from collections import Counter
from collections.abc import Hashable
from typing import Any, Final

from tracr.compiler import basis_inference, compiling, craft_graph_to_model, expr_to_craft_graph, rasp_to_graph
from tracr.craft import bases, transformers
from tracr.rasp import rasp

from tracr_bridge.compile.program import Domain, Program, expressions_of

CONSTRUCTS: Final = (
    "tokens alone",
    "positions",
    "Map",
    "Map to numbers",
    "Map from numbers",
    "Map of numbers",
    "Map of a Map",
    "Map that ignores its input",
    "SequenceMap",
    "SequenceMap that ignores an input",
    "LinearSequenceMap",
    "categorical Aggregate",
    "numerical Aggregate",
    "Aggregate of nothing: None",
    "Aggregate of nothing: 0",
    "SelectorWidth",
    "Select by ==",
    "Select by <",
    "Select by <=",
    "Select by >",
    "Select by >=",
    "Select by !=",
    "Select by True",
    "Select by a predicate of one's own",
    "selector & selector",
    "selector | selector",
    "~ selector",
    "selector on computed sequences",
    "selector that is always true",
    "selector on a constant",
    "expression used twice",
    "two expressions of one value",
    "categorical output",
    "numerical output",
    "undefined output",
    "causal",
    "bidirectional",
    "restricted domain",
    "1 head",
    "2 heads",
    "3 heads",
    "4 heads",
    "1 layer",
    "2 layers",
    "3 layers",
    "4 layers",
    "5 layers",
    "6 layers",
    "7 layers",
    "8 layers",
)
"""Every construct that the shipped programs must cover."""

_RUN: Final = 128
"""Maximum number of inputs on which values are inspected."""


def constructs(program: Program) -> frozenset[str]:
    """Return the names of the constructs of `program`: those in `CONSTRUCTS`, and larger counts of layers and heads.

    Raises:
        EdgePruneError: the program cannot be used.
    """
    program.check()
    domain = program.domain(budget=_RUN, seed=0)
    expressions = list(expressions_of(program.expression()))
    values = _Values(program, domain)
    found = {name for expression in expressions for name in _of_expression(expression, values)}
    output = program.expression()
    found.add("categorical output" if rasp.is_categorical(output) else "numerical output")
    if any(value is None for value in values.of(output)):
        found.add("undefined output")
    if not any(isinstance(e, rasp.IndicesType) for e in expressions):
        found.add("tokens alone")
    readers = Counter(id(child) for expression in expressions for child in expression.children)
    inner = [e for e in expressions if e.children and e is not output]
    if any(readers[id(e)] > 1 for e in inner):
        found.add("expression used twice")
    computed = [tuple(values.of(e)) for e in inner if isinstance(e, rasp.SOp)]
    if len(set(computed)) < len(computed):
        found.add("two expressions of one value")
    found.add("causal" if program.causal else "bidirectional")
    if program.valid is not None or program.min_seq_len > 1:
        found.add("restricted domain")
    layers, heads = shape(program)
    return frozenset(found | {_counted(layers, "layer"), _counted(heads, "head")})


def shape(program: Program) -> tuple[int, int]:
    """Return (layers, heads per layer) of the compiled transformer, from the passes that Tracr runs before weights."""
    extracted = rasp_to_graph.extract_rasp_graph(program.expression())
    graph = extracted.graph
    basis_inference.infer_bases(graph, extracted.sink, set(program.vocab), program.max_seq_len)
    start = bases.BasisDirection(rasp.tokens.label, compiling.COMPILER_BOS)
    expr_to_craft_graph.add_craft_components_to_rasp_graph(graph, bos_dir=start)
    layers, heads, last = 0, 1, "mlp"
    for block in craft_graph_to_model.craft_graph_to_model(graph, extracted.sources).blocks:
        kind = "mlp" if isinstance(block, transformers.MLP) else "attention"
        layers += kind == "attention" or last == "mlp"
        if isinstance(block, transformers.MultiAttentionHead):
            heads = max(heads, len(list(block.heads())))
        last = kind
    return layers, heads


class _Values:
    """Values of expressions on a program's inputs, from RASP's interpreter."""

    def __init__(self, program: Program, domain: Domain) -> None:
        self._runs = [(program.interpreter(), list(tokens)) for tokens in domain.inputs]

    def of(self, expression: rasp.RASPExpr) -> list[Any]:
        """Return the expression's values at every position of every input; for a selector, its rows."""
        return [value for interpreter, tokens in self._runs for value in interpreter.evaluate(expression, tokens)]


def _of_expression(expression: rasp.RASPExpr, values: _Values) -> set[str]:
    if isinstance(expression, rasp.IndicesType):
        return {"positions"}
    if isinstance(expression, rasp.Map):
        return _of_map(expression, values)
    if isinstance(expression, rasp.LinearSequenceMap):
        return {"LinearSequenceMap"}
    if isinstance(expression, rasp.SequenceMap):
        first, second, result = (values.of(e) for e in (expression.fst, expression.snd, expression))
        ignores = _determines(first, result) or _determines(second, result)
        return {"SequenceMap", "SequenceMap that ignores an input"} if ignores else {"SequenceMap"}
    if isinstance(expression, rasp.Aggregate):
        empty = not all(any(row) for row in values.of(expression.selector))
        if rasp.is_categorical(expression):
            return {"categorical Aggregate", *(["Aggregate of nothing: None"] if empty else [])}
        return {"numerical Aggregate", *(["Aggregate of nothing: 0"] if empty else [])}
    if isinstance(expression, rasp.SelectorWidth):
        return {"SelectorWidth"}
    return _of_selector(expression, values) if isinstance(expression, rasp.Select) else set()


def _of_map(expression: rasp.Map, values: _Values) -> set[str]:
    kinds = (rasp.is_categorical(expression.inner), rasp.is_categorical(expression))
    names = {
        (True, True): "Map",
        (True, False): "Map to numbers",
        (False, True): "Map from numbers",
        (False, False): "Map of numbers",
    }
    found = {names[kinds]}
    if "Map.__init__" in getattr(expression.f, "__qualname__", ""):  # RASP merges the two functions into one
        found.add("Map of a Map")
    if len(set(values.of(expression)) - {None}) == 1 and len(set(values.of(expression.inner)) - {None}) > 1:
        found.add("Map that ignores its input")
    return found


def _of_selector(expression: rasp.Select, values: _Values) -> set[str]:
    found: set[str] = set()
    predicate: Any = expression.predicate
    if isinstance(predicate, rasp.Comparison):
        found.add(f"Select by {predicate.value}")
    elif _is_rasps(predicate):
        found |= _of_combined(predicate)
    else:
        found.add("Select by a predicate of one's own")
    if any(e.children for e in (expression.keys, expression.queries)):
        found.add("selector on computed sequences")
    # Rows are compared, not predicates: under a causal mask, the rows of an always-true selector are not all true.
    if values.of(expression) == values.of(_EVERYWHERE):
        found.add("selector that is always true")
    if any(len(set(values.of(e))) == 1 for e in (expression.keys, expression.queries)):
        found.add("selector on a constant")
    return found


_EVERYWHERE: Final = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE)

_COMBINED: Final[dict[str, str]] = {
    rasp.selector_and.__name__: "selector & selector",
    rasp.selector_or.__name__: "selector | selector",
    rasp.selector_not.__name__: "~ selector",
}


def _is_rasps(predicate: Any) -> bool:
    """Return whether RASP itself, rather than the program's author, made a predicate."""
    return not isinstance(predicate, rasp.Comparison) and getattr(predicate, "__module__", "") == rasp.__name__


def _of_combined(predicate: Any) -> set[str]:
    """Return the operators with which RASP combined the predicates of several selectors into this one.

    An operator is recognised by the RASP function that made it, which starts its qualified name.
    """
    if not _is_rasps(predicate):
        return set()
    parts = dict(inspect.getclosurevars(predicate).nonlocals)
    combine = parts.pop("combine", predicate)
    inner = [getattr(part, "predicate", part) for part in parts.values()]
    return {_COMBINED[combine.__qualname__.partition(".")[0]]}.union(*map(_of_combined, inner))


def _determines(first: list[Hashable], second: list[Hashable]) -> bool:
    """Return whether each value of `first` occurs with only one value of `second`."""
    return len(set(zip(first, second, strict=True))) == len(set(first))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
