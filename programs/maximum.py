from tracr.rasp import rasp

from tracr_bridge import rasp_program


# Where the largest comes several times, the mean of equal tokens is the token.
@rasp_program(vocab=(0, 1, 2), max_seq_len=4)
def maximum() -> rasp.SOp:
    """The largest token, at every position."""
    larger = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GT).named("larger")
    above = rasp.SelectorWidth(larger).named("above")
    at_top = rasp.Select(above, above, lambda key, query: key == 0).named("at_top")
    return rasp.Aggregate(at_top, rasp.tokens).named("maximum")
