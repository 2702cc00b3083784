from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def count_over_length() -> rasp.SOp:
    """The count of "a" over the length, as a quotient of two whole numbers."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_a = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a").named("at_a")
    count = rasp.SelectorWidth(at_a).named("count")
    return rasp.SequenceMap(lambda x, n: x / n if n else 0, count, length).named("count_over_length")
