from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def mostly_a() -> rasp.SOp:
    """Whether more than half of the tokens are "a", by a length that is counted on positions."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_a = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a").named("at_a")
    count = rasp.SelectorWidth(at_a).named("count")
    return rasp.SequenceMap(lambda x, n: 2 * x > n, count, length).named("mostly_a")
