from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=3)
def is_sorted() -> rasp.SOp:
    """Whether every token is at least as large as the one before it."""
    before = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == max(query - 1, 0)).named("before")
    previous = rasp.Aggregate(before, rasp.tokens).named("previous")
    falls = rasp.SequenceMap(lambda x, y: x < y, rasp.tokens, previous).named("falls")
    at_fall = rasp.Select(falls, falls, lambda key, query: bool(key)).named("at_fall")
    return rasp.Map(lambda width: width == 0, rasp.SelectorWidth(at_fall)).named("is_sorted")
