from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def count_by_constant() -> rasp.SOp:
    """How often "a" occurs, where each position looks for it whatever its token is."""
    wanted = rasp.Map(lambda token: "a", rasp.tokens).named("wanted")
    same = rasp.Select(rasp.tokens, wanted, rasp.Comparison.EQ).named("same")
    return rasp.SelectorWidth(same).named("count_by_constant")
