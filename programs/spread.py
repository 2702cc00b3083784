from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=3)
def spread() -> rasp.SOp:
    """The largest token minus the smallest."""
    above = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GT)).named("above")
    below = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LT)).named("below")
    top = rasp.Aggregate(rasp.Select(above, above, lambda key, query: key == 0), rasp.tokens).named("top")
    bottom = rasp.Aggregate(rasp.Select(below, below, lambda key, query: key == 0), rasp.tokens).named("bottom")
    return rasp.SequenceMap(lambda x, y: x - y, top, bottom).named("spread")
