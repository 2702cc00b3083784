from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "x"), max_seq_len=4, causal=True)
def share_of_others() -> rasp.SOp:
    """One minus the fraction of "x" so far: a circuit that needs a constant."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("everywhere")
    is_x = rasp.numerical(rasp.Map(lambda token: int(token == "x"), rasp.tokens)).named("is_x")
    one = rasp.numerical(rasp.Map(lambda token: 1, rasp.tokens)).named("one")
    share = rasp.numerical(rasp.Aggregate(everywhere, is_x, default=0)).named("share")
    return rasp.numerical(rasp.LinearSequenceMap(one, share, 1, -1)).named("share_of_others")
