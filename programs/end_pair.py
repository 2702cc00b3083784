from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1), max_seq_len=3)
def end_pair() -> rasp.SOp:
    """The sum of the last two tokens, at every position; undefined where there is one alone."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    at_second_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 2).named("at_second_last")
    last = rasp.Aggregate(at_last, rasp.tokens).named("last")
    second_last = rasp.Aggregate(at_second_last, rasp.tokens).named("second_last")
    return rasp.SequenceMap(lambda x, y: x + y, last, second_last).named("end_pair")
