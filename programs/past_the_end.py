from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def past_the_end() -> rasp.SOp:
    """The token after as many places as the input has "a"; undefined past the end."""
    at_a = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a").named("at_a")
    count = rasp.SelectorWidth(at_a).named("count")
    place = rasp.SequenceMap(lambda x, index: x + index, count, rasp.indices).named("place")
    at_place = rasp.Select(rasp.indices, place, rasp.Comparison.EQ).named("at_place")
    return rasp.Aggregate(at_place, rasp.tokens).named("past_the_end")
