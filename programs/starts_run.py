from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def starts_run() -> rasp.SOp:
    """Whether the token differs from the one before it; at the first position, always."""
    before = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == max(query - 1, 0)).named("before")
    previous = rasp.Aggregate(before, rasp.tokens).named("previous")
    differs = rasp.SequenceMap(lambda x, y: x != y, rasp.tokens, previous).named("differs")
    return rasp.SequenceMap(lambda x, index: bool(x) or index == 0, differs, rasp.indices).named("starts_run")
