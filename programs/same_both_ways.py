from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def same_both_ways() -> rasp.SOp:
    """Whether the input reads the same backwards, by a length that is counted on positions."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    opposite = rasp.SequenceMap(lambda n, index: n - 1 - index, length, rasp.indices).named("opposite")
    at_opposite = rasp.Select(rasp.indices, opposite, rasp.Comparison.EQ).named("at_opposite")
    mirrored = rasp.Aggregate(at_opposite, rasp.tokens).named("mirrored")
    differs = rasp.SequenceMap(lambda x, y: x != y, rasp.tokens, mirrored).named("differs")
    at_differing = rasp.Select(differs, differs, lambda key, query: bool(key)).named("at_differing")
    differing = rasp.SelectorWidth(at_differing).named("differing")
    return rasp.Map(lambda width: width == 0, differing).named("same_both_ways")
