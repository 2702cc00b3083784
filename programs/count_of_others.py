from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=3)
def count_of_others() -> rasp.SOp:
    """How many tokens are different: the length less the number of those that are the same."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("same")
    count = rasp.SelectorWidth(same).named("count")
    return rasp.SequenceMap(lambda n, x: n - x, length, count).named("count_of_others")
