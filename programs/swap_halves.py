from tracr.rasp import rasp

from tracr_bridge import rasp_program


def even(tokens: tuple[str, ...]) -> bool:
    """Whether the length is even."""
    return len(tokens) % 2 == 0


@rasp_program(vocab=("a", "b"), max_seq_len=4, valid=even)
def swap_halves() -> rasp.SOp:
    """The second half, then the first."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    other = rasp.SequenceMap(lambda index, n: (index + n // 2) % n if n else 0, rasp.indices, length).named("other")
    at_other = rasp.Select(rasp.indices, other, rasp.Comparison.EQ).named("at_other")
    return rasp.Aggregate(at_other, rasp.tokens).named("swap_halves")
