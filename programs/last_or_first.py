from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def last_or_first() -> rasp.SOp:
    """The last token at an "a", the first at other tokens."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    place = rasp.SequenceMap(lambda n, token: n - 1 if token == "a" else 0, length, rasp.tokens).named("place")
    at_place = rasp.Select(rasp.indices, place, rasp.Comparison.EQ).named("at_place")
    return rasp.Aggregate(at_place, rasp.tokens).named("last_or_first")
