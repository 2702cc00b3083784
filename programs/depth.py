from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("(", ")"), max_seq_len=4, causal=True)
def depth() -> rasp.SOp:
    """How many brackets are open here, or less than 0 if too many were closed."""
    opened = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "(")).named("opened")
    closed = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == ")")).named("closed")
    return rasp.SequenceMap(lambda x, y: x - y, opened, closed).named("depth")
