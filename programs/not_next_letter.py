from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def not_next_letter() -> rasp.SOp:
    """How many tokens are neither this one nor the letter after it."""
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("same")
    follows = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: ord(key) == ord(query) + 1).named("follows")
    return rasp.SelectorWidth(~(same | follows)).named("not_next_letter")
