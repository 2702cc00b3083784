from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4, causal=True)
def next_to() -> rasp.SOp:
    """How many tokens so far stand next to this one in the alphabet."""
    before = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: ord(key) == ord(query) - 1).named("before")
    after = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: ord(key) == ord(query) + 1).named("after")
    return rasp.SelectorWidth(before | after).named("next_to")
