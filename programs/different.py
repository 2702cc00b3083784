from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def different() -> rasp.SOp:
    """How many tokens are different."""
    unlike = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.NEQ).named("unlike")
    return rasp.SelectorWidth(unlike).named("different")
