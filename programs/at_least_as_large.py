from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=4)
def at_least_as_large() -> rasp.SOp:
    """How many tokens are no smaller."""
    no_smaller = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GEQ).named("no_smaller")
    return rasp.SelectorWidth(no_smaller).named("at_least_as_large")
