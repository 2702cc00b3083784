from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def ends_in_ab() -> rasp.SOp:
    """Whether the last two tokens are "a" and "b"; undefined where there is one alone."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    last = rasp.Aggregate(at_last, rasp.tokens).named("last")
    at_second_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 2).named("at_second_last")
    second_last = rasp.Aggregate(at_second_last, rasp.tokens).named("second_last")
    return rasp.SequenceMap(lambda x, y: (x, y) == ("a", "b"), second_last, last).named("ends_in_ab")
