from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2, 3), max_seq_len=3)
def between() -> rasp.SOp:
    """How many tokens are above this one and below 3."""
    above = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GT).named("above")
    below = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key < 3).named("below")
    return rasp.SelectorWidth(above & below).named("between")
