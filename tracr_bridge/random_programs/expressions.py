"""Write a random program, expression by expression, using only what Tracr compiles."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from typing import Any, Final

from hypothesis import strategies as st
from tracr.rasp import rasp

from tracr_bridge.compile.program import CausalInterpreter, Interpreter, TokenSequence

CATEGORICAL: Final = ("_map", "_sequence_map", "_width", "_aggregate", "_threshold", "_from_end", "_with_length")
NUMERICAL: Final = ("_to_number", "_fraction", "_linear", "_rescaled", "_parallel")
"""Names of the `Writer` methods that write a categorical or numerical expression, simplest first."""

Draw = Callable[..., Any]
"""Hypothesis's `draw` function; Hypothesis's own type for it cannot be checked at run time."""

_MOST_VALUES: Final = 6
"""Maximum number of values of a drawn sequence map; each is a dimension of the compiled model."""

_LARGEST: Final = 10
"""Largest magnitude that is squared; single precision keeps too few digits of larger squares."""


@dataclass(frozen=True)
class _Expression:
    """A named expression that later expressions can read."""

    name: str
    sop: rasp.SOp
    values: tuple[Any, ...]
    """Every value that Tracr tabulates, sorted. Values that occur are among them or, if numerical, between them."""

    occurring: frozenset[Any]
    undefined: bool
    """Whether it is None at any position of any input."""

    at_bos: bool
    """Whether Tracr's model also gives it a value at BOS, where a selector finds it although RASP has nothing there.
    For example, maps from numbers have one: numbers are 0 at BOS."""

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers, so that arithmetic on them is possible."""
        return all(isinstance(value, int) for value in self.values)


@dataclass
class Writer:
    """Writes a program line by line; each line is drawn at random."""

    draw: Draw
    vocab: TokenSequence
    shortest: int
    length: int
    causal: bool
    left: int
    """Number of expressions that may still be written."""

    lines: list[str] = field(default_factory=list)
    written: list[_Expression] = field(default_factory=list)
    lengths: list[_Expression] = field(default_factory=list)
    """Widths of always-true selectors that have been written."""

    constants: list[_Expression] = field(default_factory=list)

    def __post_init__(self) -> None:
        kind = CausalInterpreter if self.causal else Interpreter
        domain = [tokens for n in range(self.shortest, self.length + 1) for tokens in product(self.vocab, repeat=n)]
        self._runs = [(kind(), list(tokens)) for tokens in domain]
        self._tokens = self._expression("rasp.tokens", rasp.tokens, self.vocab)
        self._indices = self._expression("rasp.indices", rasp.indices, tuple(range(self.length)))

    # What an expression may read

    def categorical(self, depth: int, *, defined: bool = False, attended: bool = False) -> _Expression:
        """Return a categorical expression: the tokens, the positions, an earlier expression, or a new one.

        Args:
            depth: maximum depth of nesting.
            defined: whether it must have a value at every position.
            attended: whether it is a selector's keys or is moved by one, and so must have no value at BOS.
        """
        # A separate strategy, so that Hypothesis can shrink an expression to one of those that it reads.
        fits = partial(_fits, defined=defined, attended=attended)
        return self.draw(st.builds(self._categorical, st.just(depth), st.just(fits)))

    def output(self, depth: int) -> _Expression:
        """Return a new expression, categorical or numerical."""
        return self.draw(_new(self, depth, CATEGORICAL + NUMERICAL))

    def computed(self, depth: int) -> _Expression:
        """Return a new categorical expression."""
        return self.draw(_new(self, depth, CATEGORICAL))

    def numerical(self, depth: int) -> _Expression:
        """Return a new numerical expression."""
        return self.draw(_new(self, depth, NUMERICAL if depth > 0 and self.left > 1 else NUMERICAL[:1]))

    def _categorical(self, depth: int, fits: Callable[[_Expression], bool]) -> _Expression:
        known = [e for e in self.written if rasp.is_categorical(e.sop) and fits(e)]
        leaf = self.draw(st.integers(0, 11 if depth > 0 and self.left > 0 else 2))
        if leaf > 2:
            new = self._constant() if leaf == 11 else self._length() if leaf > 6 else self.computed(depth)
            return new if fits(new) else self._tokens
        if leaf == 2 and known:
            return self.draw(st.sampled_from(known))
        return self._indices if leaf == 1 else self._tokens

    # Categorical expressions

    def _map(self, depth: int) -> _Expression:
        read = self.categorical(depth)
        one = self.draw(st.sampled_from(read.values))
        table = dict.fromkeys(read.values, 0) | self.draw(_tables(read.values))
        function = self.draw(st.sampled_from([f"lambda x: x == {one!r}", f"lambda x: {table!r}[x]"]))
        values = _image(function, read.values)
        return self._write(f"rasp.Map({function}, {read.name})", values=values, at_bos=read.at_bos)

    def _sequence_map(self, depth: int) -> _Expression:
        first = self.categorical(depth)
        second = self.categorical(depth)
        if second.sop is first.sop:
            second = self._indices if first.sop is self._tokens.sop else self._tokens
        pairs = self.draw(st.sets(st.tuples(st.sampled_from(first.values), st.sampled_from(second.values))))
        choices = ["lambda x, y: x == y", f"lambda x, y: (x, y) in {_listed(pairs)}", "lambda x, y: x"]
        if first.whole and second.whole:
            choices += ["lambda x, y: max(x, y)", "lambda x, y: (x - y) % 3", "lambda x, y: x + y"]
        function = self.draw(st.sampled_from(choices))
        few = len(_image(function, first.values, second.values)) <= _MOST_VALUES
        return self._of_two(function if few else choices[0], first, second)

    def _width(self, depth: int) -> _Expression:
        return self._width_of(self._selector(depth))

    def _width_of(self, selector: tuple[str, bool]) -> _Expression:
        code, at_bos = selector
        return self._write(f"rasp.SelectorWidth({code})", values=tuple(range(self.length + 1)), at_bos=at_bos)

    def _aggregate(self, depth: int) -> _Expression:
        """Write a categorical aggregate: all positions that a query selects have the same value."""
        moved = self._movable(depth)
        # RASP takes the mean of several equal values, which is not possible for strings or None.
        mean = moved.whole and not moved.undefined and self.draw(st.booleans())
        selector, at_bos = self._of_one_value(depth, moved) if mean else self._at_one_position(depth)
        return self._write(f"rasp.Aggregate({selector}, {moved.name})", values=moved.values, at_bos=at_bos)

    def _movable(self, depth: int) -> _Expression:
        # A Tracr head has room for only as many values as it has keys.
        moved = self.categorical(depth, attended=True)
        return moved if len(moved.values) <= self.length + 1 else self._indices

    def _threshold(self, depth: int) -> _Expression:
        read = self.numerical(depth)
        bounds = [b for b in (0, 0.5, 1) if _agrees(lambda x, b=b: x > b, read)]
        if not bounds:
            return self._map(depth)
        bound = self.draw(st.sampled_from(bounds))
        return self._write(f"rasp.Map(lambda x: x > {bound}, {read.name})", values=(False, True), at_bos=True)

    def _from_end(self, depth: int) -> _Expression:
        """Write an aggregate of the value at a position counted from the end."""
        moved = self._movable(depth)
        selector, at_bos = self._last()
        return self._write(f"rasp.Aggregate({selector}, {moved.name})", values=moved.values, at_bos=at_bos)

    def _with_length(self, depth: int) -> _Expression:
        """Write a function of an expression and the length."""
        read, length = self.categorical(depth), self._length()
        read = self._tokens if read.sop is length.sop else read
        one = self.draw(st.sampled_from(read.values))
        pairs = self.draw(st.sets(st.tuples(st.sampled_from(read.values), st.sampled_from(length.values)), min_size=1))
        choices = [f"lambda x, n: x if n % 2 else {one!r}", f"lambda x, n: (x, n) in {_listed(pairs)}"]
        if read.whole:
            choices += ["lambda x, n: x == n", "lambda x, n: 2 * x > n", "lambda x, n: (n - x) % 3"]
        function = self.draw(st.sampled_from(choices))
        return self._of_two(function, read, length)

    def _of_two(self, function: str, first: _Expression, second: _Expression) -> _Expression:
        values = _image(function, first.values, second.values)
        code = f"rasp.SequenceMap({function}, {first.name}, {second.name})"
        return self._write(code, values=values, at_bos=first.at_bos and second.at_bos)

    def _length(self) -> _Expression:
        """Return the width of an always-true selector; under a causal mask, the number of positions so far."""
        if self.lengths and self.draw(st.booleans()):
            return self.draw(st.sampled_from(self.lengths))
        self.lengths.append(self._width_of(self._everywhere()))
        return self.lengths[-1]

    def _constant(self) -> _Expression:
        """Return a map that gives one value, whatever it reads."""
        if self.constants and self.draw(st.booleans()):
            return self.draw(st.sampled_from(self.constants))
        read = self.draw(st.sampled_from((self._tokens, self._indices, *self.constants)))
        value = self.draw(st.sampled_from(read.values))
        self.constants.append(self._write(f"rasp.Map(lambda x: {value!r}, {read.name})", values=(value,)))
        return self.constants[-1]

    # Selectors

    # Each comes with whether its queries have a value at BOS; if so, what is computed with it has one there too.

    def _selector(self, depth: int) -> tuple[str, bool]:
        """Return any selector."""
        form = self.draw(st.sampled_from((*["plain"] * 5, "&", "|", "~", *["everywhere"] * 2)))
        if form == "everywhere" and depth > 0:
            return self._everywhere()
        keys, queries = self.categorical(depth, attended=True), self.categorical(depth)
        selector = self._select(keys, queries)
        if form in ("&", "|"):
            selector = f"({selector} {form} {self._select(keys, queries)})"
        if form == "~" and not keys.undefined and not queries.undefined:
            selector = f"~{selector}"
        rests = self._rests_on_bos(selector, keys, queries)
        return (selector, queries.at_bos) if rests else self._at_one_position(depth)

    def _select(self, keys: _Expression, queries: _Expression) -> str:
        """Return a selector with any predicate. Its constants are drawn last, so that simple ones take fewer draws."""
        choices = ["in"]
        if not keys.undefined and not queries.undefined:
            choices = ["==", "rasp.Comparison.TRUE", "in"]
            if {type(v) for v in keys.values} == {type(v) for v in queries.values}:
                choices += 2 * [f"rasp.Comparison.{name}" for name in ("EQ", "LT", "LEQ", "GT", "GEQ", "NEQ")]
        predicate = self.draw(st.sampled_from(choices))
        if predicate == "==":
            predicate = f"lambda key, query: key == {self.draw(st.sampled_from(keys.values))!r}"
        if predicate == "in":
            pair = st.tuples(st.sampled_from(keys.values), st.sampled_from(queries.values))
            predicate = f"lambda key, query: (key, query) in {_listed(self.draw(st.sets(pair, min_size=1)))}"
        return f"rasp.Select({keys.name}, {queries.name}, {predicate})"

    def _everywhere(self) -> tuple[str, bool]:
        """Return an always-true selector; its head attends uniformly."""
        keys, queries = self._alike(), self._alike()
        choices = ["rasp.Comparison.TRUE", f"lambda key, query: key >= {keys.values[0]!r}"]
        if keys.values == queries.values and len(keys.values) == 1:
            choices.append("rasp.Comparison.EQ")
        return f"rasp.Select({keys.name}, {queries.name}, {self.draw(st.sampled_from(choices))})", queries.at_bos

    def _alike(self) -> _Expression:
        """Return the tokens, the positions or a constant."""
        kind = self.draw(st.integers(0, 9 if self.left > 1 else 6))
        return self._constant() if kind > 6 else self._indices if kind > 0 else self._tokens

    def _last(self) -> tuple[str, bool]:
        """Return a selector of one of the last three positions."""
        length, back = self._length(), self.draw(st.integers(1, min(3, self.length)))
        return f"rasp.Select(rasp.indices, {length.name}, lambda key, query: key == query - {back})", length.at_bos

    def _of_one_value(self, depth: int, keys: _Expression) -> tuple[str, bool]:
        """Return a selector of all keys with one value, which depends on the query."""
        queries = self.categorical(depth)
        table = self.draw(_tables(queries.values, st.sampled_from(keys.values)))
        selector = f"rasp.Select({keys.name}, {queries.name}, lambda key, query: key == {table!r}.get(query))"
        rests = self._rests_on_bos(selector, keys, queries)
        return (selector, queries.at_bos) if rests else self._at_one_position(depth)

    def _at_one_position(self, depth: int) -> tuple[str, bool]:
        """Return a selector of at most one position for each value of the queries."""
        queries = self.categorical(depth)
        table = self.draw(_tables(queries.values, st.sampled_from(self._indices.values)))
        choices = [f"lambda key, query: key == {table!r}.get(query)"]
        if queries.whole and not queries.undefined:
            choices = ["lambda key, query: key == query", "lambda key, query: key == query - 1", *choices]
        predicate = self.draw(st.sampled_from(choices))
        return f"rasp.Select(rasp.indices, {queries.name}, {predicate})", queries.at_bos

    def _rests_on_bos(self, selector: str, keys: _Expression, queries: _Expression) -> bool:
        """Return whether Tracr attends to BOS wherever nothing is selected, as it should.

        Tracr's selector widths are below 0 at BOS, also after aggregates have moved them. A query that looks for a
        width of 0 and finds none then attends to all positions but BOS.
        """
        moved = keys.sop
        while isinstance(moved, rasp.Aggregate):
            moved = moved.sop
        if not isinstance(moved, rasp.SelectorWidth):
            return True
        selects: Callable[[Any, Any], bool] = eval(selector, self._names()).predicate
        for run, tokens in self._runs:
            widths = run.evaluate(keys.sop, tokens)
            for position, query in enumerate(run.evaluate(queries.sop, tokens)):
                seen = widths[: position + 1] if self.causal else widths
                if selects(0, query) and not any(selects(width, query) for width in seen):
                    return False
        return True

    # Numerical expressions

    def _to_number(self, depth: int) -> _Expression:
        read = self.categorical(depth, defined=True)
        # No value is below 0: Tracr would clip it to 0.
        first = dict.fromkeys(read.values, 0) | {read.values[0]: 1}
        table = first | self.draw(_tables(read.values, st.sampled_from((1, 2, 0.5, 10, 0))))
        return self._write_number(f"rasp.Map(lambda x: {table!r}[x], {read.name})", values=tuple(table.values()))

    def _fraction(self, depth: int) -> _Expression:
        """Write a numerical aggregate, which averages 0 and 1 only."""
        selector, _ = self._last() if depth > 0 and self.draw(st.integers(0, 2)) > 1 else self._selector(depth)
        read = self.categorical(depth, defined=True, attended=True)
        chosen = self.draw(st.sets(st.sampled_from(read.values), min_size=1))
        function = f"lambda x: int(x in {_listed(chosen)})"
        binary = self._write_number(f"rasp.Map({function}, {read.name})", values=_image(function, read.values))
        # Tracr does not tabulate 2/3, although it occurs, nor the default.
        values = tuple(value / n for value in binary.values for n in range(1, self.length + 1))
        return self._write_number(f"rasp.Aggregate({selector}, {binary.name}, default=0)", values=values)

    def _linear(self, depth: int) -> _Expression:
        first, second = self.numerical(depth), self.numerical(depth)
        one, other = (self.draw(st.sampled_from((1, -1, 2, 0.5))) for _ in range(2))
        values = tuple(one * x + other * y for x in first.values for y in second.values)
        code = f"rasp.LinearSequenceMap({first.name}, {second.name}, {one}, {other})"
        return self._write_number(code, values=values)

    def _parallel(self, depth: int) -> _Expression:
        """Write a sum of numbers that read tokens and positions only; most are aggregates, as heads of one layer."""
        term = st.builds(lambda: self._fraction(0) if self.draw(st.integers(0, 9)) else self._to_number(0))
        total, *others = self.draw(st.lists(term, min_size=1, max_size=4))
        for other in others:
            values = tuple({x + y: None for x in total.values for y in other.values})
            code = f"rasp.LinearSequenceMap({total.name}, {other.name}, 1, 1)"
            total = self._write_number(code, values=values)
        return total

    def _rescaled(self, depth: int) -> _Expression:
        read = self.numerical(depth)
        choices = [f for f in ("lambda x: 2 * (x > 0)", "lambda x: 1 - x", "lambda x: x * x") if _agrees(eval(f), read)]
        if max(map(abs, read.values)) > _LARGEST:
            choices = [f for f in choices if "*" not in f or ">" in f]
        if isinstance(read.sop, rasp.Map):  # RASP merges the two maps into one, which Tracr may clip at 0
            choices = [f for f in choices if min(_image(f, read.values)) >= 0]
        if not choices:
            return read
        function = self.draw(st.sampled_from(choices))
        return self._write_number(f"rasp.Map({function}, {read.name})", values=_image(function, read.values))

    # Writing

    def _write(self, code: str, *, values: Sequence[Any], at_bos: bool = False) -> _Expression:
        """Add a line to the program, and return its expression with the values that occur."""
        self.left -= 1
        name = f"s{len(self.written) + 1}"
        self.lines.append(f'{name} = {code}.named("{name}")')
        sop: rasp.SOp = eval(f'{code}.named("{name}")', self._names())
        self.written.append(self._expression(name, sop, values, at_bos=at_bos))
        return self.written[-1]

    def _names(self) -> dict[str, Any]:
        return {"rasp": rasp, **{e.name: e.sop for e in self.written}}

    def _write_number(self, code: str, *, values: Sequence[Any]) -> _Expression:
        return self._write(f"rasp.numerical({code})", values=values)

    def _expression(self, name: str, sop: rasp.SOp, values: Sequence[Any], *, at_bos: bool = False) -> _Expression:
        outputs: set[Any] = {value for run, tokens in self._runs for value in run.evaluate(sop, tokens)}
        return _Expression(name, sop, tuple(sorted(set(values))), frozenset(outputs - {None}), None in outputs, at_bos)


@st.composite
def _new(draw: Draw, writer: Writer, depth: int, makers: Sequence[str]) -> _Expression:
    """Draw an expression from one of `makers`. The draw indexes all makers, so it means the same everywhere."""
    maker: str = draw(st.sampled_from(CATEGORICAL + NUMERICAL).filter(makers.__contains__))
    return getattr(writer, maker)(depth - 1)


def _fits(expression: _Expression, *, defined: bool, attended: bool) -> bool:
    return not (defined and expression.undefined) and not (attended and expression.at_bos)


def _tables(keys: Sequence[Any], values: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[dict[Any, Any]]:
    """A strategy of partial tables from `keys` to `values`, by default 0, 1 and 2."""
    return st.dictionaries(st.sampled_from(keys), st.integers(0, 2) if values is None else values)


def _listed(values: set[Any]) -> str:
    return repr(tuple(sorted(values)))


def _image(function: str, *values: Sequence[Hashable]) -> tuple[Any, ...]:
    """Return every value that the function takes on combinations of `values`."""
    call: Callable[..., Any] = eval(function)
    return tuple({call(*arguments): None for arguments in product(*values)})


def _agrees(function: Callable[[float], float], read: _Expression) -> bool:
    """Return whether Tracr's map of a numerical expression is right on every number that occurs.

    Tracr rounds each number to the nearest tabulated value, with a step halfway between two neighbours.
    """
    known = sorted(set(read.values))
    steps = [(low + high) / 2 for low, high in pairwise(known)]
    if any(high - low < 0.05 for low, high in pairwise(known)):
        return False
    for number in read.occurring:
        nearest = min(known, key=lambda value: abs(value - number))
        if any(abs(number - step) < 0.02 for step in steps) or function(nearest) != function(number):
            return False
    return True
