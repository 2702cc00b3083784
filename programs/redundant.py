from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=3)
def redundant() -> rasp.SOp:
    """Twice the number of equal tokens, counted twice over."""
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("same")
    same_again = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == query).named("same_again")
    count, again = rasp.SelectorWidth(same).named("count"), rasp.SelectorWidth(same_again).named("count_again")
    return rasp.SequenceMap(lambda x, y: x + y, count, again).named("redundant")
