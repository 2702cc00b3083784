from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4, causal=True)
def distinct_so_far() -> rasp.SOp:
    """How many different tokens have come up to here."""
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("same")
    new = rasp.Map(lambda width: width == 1, rasp.SelectorWidth(same)).named("new")
    at_new = rasp.Select(new, new, lambda key, query: bool(key)).named("at_new")
    return rasp.SelectorWidth(at_new).named("distinct_so_far")
