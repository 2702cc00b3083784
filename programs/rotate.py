from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def rotate() -> rasp.SOp:
    """The next token, and the first one at the last position."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    after = rasp.SequenceMap(lambda index, n: (index + 1) % n if n else 0, rasp.indices, length).named("after")
    at_after = rasp.Select(rasp.indices, after, rasp.Comparison.EQ).named("at_after")
    return rasp.Aggregate(at_after, rasp.tokens).named("rotate")
