from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def capital_end() -> rasp.SOp:
    """The token, as a capital in the last place, by a length that one letter asks for everywhere."""
    letter = rasp.Map(lambda token: "a", rasp.tokens).named("letter")
    everywhere = rasp.Select(rasp.indices, letter, lambda key, query: True).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_end = rasp.SequenceMap(lambda n, index: index == n - 1, length, rasp.indices).named("at_end")
    return rasp.SequenceMap(lambda x, end: str(x).upper() if end else x, rasp.tokens, at_end).named("capital_end")
