from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=2, min_seq_len=2)
def mix_seven_times() -> rasp.SOp:
    """Seven rounds in which each of two tokens is mixed with the other."""
    current: rasp.SOp = rasp.tokens
    partner = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.NEQ).named("partner")
    for step in range(7):
        other = rasp.Aggregate(partner, current).named(f"other_{step}")
        current = rasp.SequenceMap(lambda x, y: (2 * x + y * y + 2 * x * y) % 3, current, other).named(f"mixed_{step}")
    return current
