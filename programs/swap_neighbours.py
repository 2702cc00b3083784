from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def swap_neighbours() -> rasp.SOp:
    """Tokens swapped in pairs; undefined at the last position of an odd length."""
    partner = rasp.Map(lambda index: index ^ 1, rasp.indices).named("partner")
    at_partner = rasp.Select(rasp.indices, partner, rasp.Comparison.EQ).named("at_partner")
    return rasp.Aggregate(at_partner, rasp.tokens).named("swap_neighbours")
