from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def roll_left() -> rasp.SOp:
    """The next token, and the first one at the last position, by a length that is counted on positions."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    after = rasp.SequenceMap(lambda n, index: (index + 1) % n if n else 0, length, rasp.indices).named("after")
    at_after = rasp.Select(rasp.indices, after, rasp.Comparison.EQ).named("at_after")
    return rasp.Aggregate(at_after, rasp.tokens).named("roll_left")
