from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def backwards() -> rasp.SOp:
    """The input backwards, by a length that is counted on positions."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    opposite = rasp.SequenceMap(lambda n, index: n - 1 - index, length, rasp.indices).named("opposite")
    at_opposite = rasp.Select(rasp.indices, opposite, rasp.Comparison.EQ).named("at_opposite")
    return rasp.Aggregate(at_opposite, rasp.tokens).named("backwards")
