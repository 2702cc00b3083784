from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def alternating() -> rasp.SOp:
    """Whether no token is the same as the one before it: as many steps change it as there are."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    before = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == max(query - 1, 0)).named("before")
    previous = rasp.Aggregate(before, rasp.tokens).named("previous")
    changed = rasp.SequenceMap(lambda x, y: x != y, rasp.tokens, previous).named("changed")
    at_change = rasp.Select(changed, changed, lambda key, query: bool(key)).named("at_change")
    changes = rasp.SelectorWidth(at_change).named("changes")
    return rasp.SequenceMap(lambda x, n: x == n - 1, changes, length).named("alternating")
