from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=4, causal=True)
def larger_before() -> rasp.SOp:
    """How many tokens before this one are larger."""
    larger = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GT).named("larger")
    return rasp.SelectorWidth(larger).named("larger_before")
