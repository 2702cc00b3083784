from tracr.rasp import rasp

from tracr_bridge import rasp_program


def exchange(length: int, index: int) -> int:
    """The other end for each end, and every other position itself."""
    return length - 1 - index if index in (0, length - 1) else index


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def swap_ends() -> rasp.SOp:
    """The input with its first and last tokens exchanged."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    partner = rasp.SequenceMap(exchange, length, rasp.indices).named("partner")
    at_partner = rasp.Select(rasp.indices, partner, rasp.Comparison.EQ).named("at_partner")
    return rasp.Aggregate(at_partner, rasp.tokens).named("swap_ends")
