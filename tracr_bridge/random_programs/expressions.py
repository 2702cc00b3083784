"""Writes a random program, expression by expression, of what Tracr compiles alone."""

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
"""What writes an expression, simplest first."""

Draw = Callable[..., Any]
"""Hypothesis's own name for it cannot be checked at run time."""

_MOST_VALUES: Final = 6
"""Values that a drawn sequence map may take: each is a dimension of the compiled model."""

_LARGEST: Final = 10
"""The largest number that is squared: of larger squares single precision keeps too few digits."""


@dataclass(frozen=True)
class _Expression:
    """What has been written so far under one name."""

    name: str
    sop: rasp.SOp
    values: tuple[Any, ...]
    """Every value that Tracr reckons with, in order; those that occur are among them, or lie between if numerical."""

    occurring: frozenset[Any]
    undefined: bool
    """Whether it is None anywhere."""

    at_bos: bool
    """Whether Tracr's model gives it a value at BOS too, where a selector finds it though RASP has nothing there: so it
    is for what is mapped from numbers, which are 0 at BOS."""

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers, so that there is arithmetic on them."""
        return all(isinstance(value, int) for value in self.values)


@dataclass
class Writer:
    """Writes a program line by line, drawing what each line is."""

    draw: Draw
    vocab: TokenSequence
    shortest: int
    length: int
    causal: bool
    left: int
    """Expressions that may still be written."""

    lines: list[str] = field(default_factory=list)
    written: list[_Expression] = field(default_factory=list)
    lengths: list[_Expression] = field(default_factory=list)
    """Widths of selectors that are always true."""

    constants: list[_Expression] = field(default_factory=list)

    def __post_init__(self) -> None:
        kind = CausalInterpreter if self.causal else Interpreter
        domain = [tokens for n in range(self.shortest, self.length + 1) for tokens in product(self.vocab, repeat=n)]
        self._runs = [(kind(), list(tokens)) for tokens in domain]
        self._tokens = self._expression("rasp.tokens", rasp.tokens, self.vocab)
        self._indices = self._expression("rasp.indices", rasp.indices, tuple(range(self.length)))

    # What an expression may read

    def categorical(self, depth: int, *, defined: bool = False, attended: bool = False) -> _Expression:
        """Something categorical: the tokens, the positions, something written before, or something new.

        Args:
            depth: how deeply it may be nested.
            defined: whether it must have a value everywhere.
            attended: whether it is looked for or moved by a selector, and must have no value at BOS.
        """
        # A strategy of its own, so that Hypothesis may put what such an expression reads in its place.
        fits = partial(_fits, defined=defined, attended=attended)
        return self.draw(st.builds(self._categorical, st.just(depth), st.just(fits)))

    def output(self, depth: int) -> _Expression:
        """Something new."""
        return self.draw(_new(self, depth, CATEGORICAL + NUMERICAL))

    def computed(self, depth: int) -> _Expression:
        """Something new and categorical."""
        return self.draw(_new(self, depth, CATEGORICAL))

    def numerical(self, depth: int) -> _Expression:
        """Something new and numerical."""
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
        """A categorical aggregate: whatever is selected, it has one value."""
        moved = self._movable(depth)
        # Of several equal values RASP takes the mean, which words do not have and None would spoil.
        mean = moved.whole and not moved.undefined and self.draw(st.booleans())
        selector, at_bos = self._of_one_value(depth, moved) if mean else self._at_one_position(depth)
        return self._write(f"rasp.Aggregate({selector}, {moved.name})", values=moved.values, at_bos=at_bos)

    def _movable(self, depth: int) -> _Expression:
        # Tracr has no room for more values in a head than the head has keys to look for.
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
        """What stands at a place counted from the end."""
        moved = self._movable(depth)
        selector, at_bos = self._last()
        return self._write(f"rasp.Aggregate({selector}, {moved.name})", values=moved.values, at_bos=at_bos)

    def _with_length(self, depth: int) -> _Expression:
        """A function of something and the length."""
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
        """The width of a selector that is always true; under a causal mask, the number of positions so far."""
        if self.lengths and self.draw(st.booleans()):
            return self.draw(st.sampled_from(self.lengths))
        self.lengths.append(self._width_of(self._everywhere()))
        return self.lengths[-1]

    def _constant(self) -> _Expression:
        """A map that gives one value, whatever it reads."""
        if self.constants and self.draw(st.booleans()):
            return self.draw(st.sampled_from(self.constants))
        read = self.draw(st.sampled_from((self._tokens, self._indices, *self.constants)))
        value = self.draw(st.sampled_from(read.values))
        self.constants.append(self._write(f"rasp.Map(lambda x: {value!r}, {read.name})", values=(value,)))
        return self.constants[-1]

    # Selectors

    # Each with whether its queries have a value at BOS, so that what is computed with it has one there too.

    def _selector(self, depth: int) -> tuple[str, bool]:
        """Any selector at all."""
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
        """A selector with any predicate. What it needs is drawn last, so that a simple one is short to shrink to."""
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
        """A selector that is always true: its head attends uniformly."""
        keys, queries = self._alike(), self._alike()
        choices = ["rasp.Comparison.TRUE", f"lambda key, query: key >= {keys.values[0]!r}"]
        if keys.values == queries.values and len(keys.values) == 1:
            choices.append("rasp.Comparison.EQ")
        return f"rasp.Select({keys.name}, {queries.name}, {self.draw(st.sampled_from(choices))})", queries.at_bos

    def _alike(self) -> _Expression:
        """The tokens, the positions or a constant."""
        kind = self.draw(st.integers(0, 9 if self.left > 1 else 6))
        return self._constant() if kind > 6 else self._indices if kind > 0 else self._tokens

    def _last(self) -> tuple[str, bool]:
        """A selector of the last position, or of one before it."""
        length, back = self._length(), self.draw(st.integers(1, min(3, self.length)))
        return f"rasp.Select(rasp.indices, {length.name}, lambda key, query: key == query - {back})", length.at_bos

    def _of_one_value(self, depth: int, keys: _Expression) -> tuple[str, bool]:
        """A selector of those keys that have one value, which depends on the query."""
        queries = self.categorical(depth)
        table = self.draw(_tables(queries.values, st.sampled_from(keys.values)))
        selector = f"rasp.Select({keys.name}, {queries.name}, lambda key, query: key == {table!r}.get(query))"
        rests = self._rests_on_bos(selector, keys, queries)
        return (selector, queries.at_bos) if rests else self._at_one_position(depth)

    def _at_one_position(self, depth: int) -> tuple[str, bool]:
        """A selector of one position for each value of the queries."""
        queries = self.categorical(depth)
        table = self.draw(_tables(queries.values, st.sampled_from(self._indices.values)))
        choices = [f"lambda key, query: key == {table!r}.get(query)"]
        if queries.whole and not queries.undefined:
            choices = ["lambda key, query: key == query", "lambda key, query: key == query - 1", *choices]
        predicate = self.draw(st.sampled_from(choices))
        return f"rasp.Select(rasp.indices, {queries.name}, {predicate})", queries.at_bos

    def _rests_on_bos(self, selector: str, keys: _Expression, queries: _Expression) -> bool:
        """Whether Tracr attends to BOS wherever nothing is selected, as it means to.

        Its widths are less than nothing at BOS, wherever they are moved: who looks for a width of 0 there, and finds
        none, sees all but BOS.
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
        # Nothing below 0, to which Tracr would clip it.
        first = dict.fromkeys(read.values, 0) | {read.values[0]: 1}
        table = first | self.draw(_tables(read.values, st.sampled_from((1, 2, 0.5, 10, 0))))
        return self._write_number(f"rasp.Map(lambda x: {table!r}[x], {read.name})", values=tuple(table.values()))

    def _fraction(self, depth: int) -> _Expression:
        """A numerical aggregate, of 0 and 1 alone."""
        selector, _ = self._last() if depth > 0 and self.draw(st.integers(0, 2)) > 1 else self._selector(depth)
        read = self.categorical(depth, defined=True, attended=True)
        chosen = self.draw(st.sets(st.sampled_from(read.values), min_size=1))
        function = f"lambda x: int(x in {_listed(chosen)})"
        binary = self._write_number(f"rasp.Map({function}, {read.name})", values=_image(function, read.values))
        # Tracr reckons with no 2/3, though it occurs, nor with the default.
        values = tuple(value / n for value in binary.values for n in range(1, self.length + 1))
        return self._write_number(f"rasp.Aggregate({selector}, {binary.name}, default=0)", values=values)

    def _linear(self, depth: int) -> _Expression:
        first, second = self.numerical(depth), self.numerical(depth)
        one, other = (self.draw(st.sampled_from((1, -1, 2, 0.5))) for _ in range(2))
        values = tuple(one * x + other * y for x in first.values for y in second.values)
        code = f"rasp.LinearSequenceMap({first.name}, {second.name}, {one}, {other})"
        return self._write_number(code, values=values)

    def _parallel(self, depth: int) -> _Expression:
        """A sum of numbers that come from tokens and positions alone: most are aggregates, and heads of one layer."""
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
        if isinstance(read.sop, rasp.Map):  # the two become one map, which Tracr may clip at 0
            choices = [f for f in choices if min(_image(f, read.values)) >= 0]
        if not choices:
            return read
        function = self.draw(st.sampled_from(choices))
        return self._write_number(f"rasp.Map({function}, {read.name})", values=_image(function, read.values))

    # Writing

    def _write(self, code: str, *, values: Sequence[Any], at_bos: bool = False) -> _Expression:
        """Add a line, and find out what it gives."""
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
    """An expression from one of `makers`, drawn by its place among all: a choice means the same wherever it is put."""
    maker: str = draw(st.sampled_from(CATEGORICAL + NUMERICAL).filter(makers.__contains__))
    return getattr(writer, maker)(depth - 1)


def _fits(expression: _Expression, *, defined: bool, attended: bool) -> bool:
    return not (defined and expression.undefined) and not (attended and expression.at_bos)


def _tables(keys: Sequence[Any], values: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[dict[Any, Any]]:
    """Partial tables from `keys`, to 0, 1 and 2 unless told otherwise."""
    return st.dictionaries(st.sampled_from(keys), st.integers(0, 2) if values is None else values)


def _listed(values: set[Any]) -> str:
    return repr(tuple(sorted(values)))


def _image(function: str, *values: Sequence[Hashable]) -> tuple[Any, ...]:
    """Every value that the function takes."""
    call: Callable[..., Any] = eval(function)
    return tuple({call(*arguments): None for arguments in product(*values)})


def _agrees(function: Callable[[float], float], read: _Expression) -> bool:
    """Whether Tracr's map of a numerical expression is right on every number that occurs.

    It takes each number for the nearest of those that it reckons with, by a step halfway between two neighbours.
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
