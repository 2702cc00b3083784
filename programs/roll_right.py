from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def roll_right() -> rasp.SOp:
    """The token before, and the last one at the first position."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    before = rasp.SequenceMap(lambda n, index: (index or n) - 1, length, rasp.indices).named("before")
    at_before = rasp.Select(rasp.indices, before, rasp.Comparison.EQ).named("at_before")
    return rasp.Aggregate(at_before, rasp.tokens).named("roll_right")
