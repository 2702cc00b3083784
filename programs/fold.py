from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=3)
def fold() -> rasp.SOp:
    """The token plus the mirrored one, by a length that is counted on positions."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    opposite = rasp.SequenceMap(lambda n, index: n - 1 - index, length, rasp.indices).named("opposite")
    at_opposite = rasp.Select(rasp.indices, opposite, rasp.Comparison.EQ).named("at_opposite")
    mirrored = rasp.Aggregate(at_opposite, rasp.tokens).named("mirrored")
    return rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, mirrored).named("fold")
