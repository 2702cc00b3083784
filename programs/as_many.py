from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def as_many() -> rasp.SOp:
    """Whether "a" and "b" come equally often: whether the count of "a" is half the length."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_a = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a").named("at_a")
    count = rasp.SelectorWidth(at_a).named("count")
    return rasp.SequenceMap(lambda x, n: 2 * x == n, count, length).named("as_many")
