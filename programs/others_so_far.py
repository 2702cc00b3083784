from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4, causal=True)
def others_so_far() -> rasp.SOp:
    """How many tokens up to here are not "a": the number of positions less the count of "a"."""
    earlier = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("earlier")
    positions = rasp.SelectorWidth(earlier).named("positions")
    at_a = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a").named("at_a")
    count = rasp.SelectorWidth(at_a).named("count")
    return rasp.SequenceMap(lambda n, x: n - x, positions, count).named("others_so_far")
