from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def last_by_constants() -> rasp.SOp:
    """The last token, at every position, by a length that is counted on a letter that a map gives everywhere."""
    letter = rasp.Map(lambda token: "a", rasp.tokens).named("letter")
    everywhere = rasp.Select(letter, letter, rasp.Comparison.EQ).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    return rasp.Aggregate(at_last, rasp.tokens).named("last_by_constants")
