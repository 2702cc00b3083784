from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=3)
def vote() -> rasp.SOp:
    """The letter that comes most often, the earlier in the alphabet if two do."""
    a = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a")).named("as")
    b = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "b")).named("bs")
    c = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "c")).named("cs")
    first = rasp.SequenceMap(lambda x, y: (x, "a") if x >= y else (y, "b"), a, b).named("first")
    return rasp.SequenceMap(lambda x, y: x[1] if x[0] >= y else "c", first, c).named("vote")
