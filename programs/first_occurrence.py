from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4, causal=True)
def first_occurrence() -> rasp.SOp:
    """Whether the token comes for the first time."""
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("same")
    return rasp.Map(lambda width: width == 1, rasp.SelectorWidth(same)).named("first_occurrence")
