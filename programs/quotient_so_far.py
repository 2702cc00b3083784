from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3, causal=True)
def quotient_so_far() -> rasp.SOp:
    """The count of "a" so far over the number of positions, as a quotient of two whole numbers."""
    earlier = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("earlier")
    positions = rasp.SelectorWidth(earlier).named("positions")
    at_a = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a").named("at_a")
    count = rasp.SelectorWidth(at_a).named("count")
    return rasp.SequenceMap(lambda x, n: x / n if n else 0, count, positions).named("quotient_so_far")
