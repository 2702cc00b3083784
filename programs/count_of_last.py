from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def count_of_last() -> rasp.SOp:
    """How often the last token occurs."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    last = rasp.Aggregate(at_last, rasp.tokens).named("last")
    same = rasp.Select(rasp.tokens, last, rasp.Comparison.EQ).named("same")
    return rasp.SelectorWidth(same).named("count_of_last")
