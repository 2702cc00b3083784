from tracr.rasp import rasp

from tracr_bridge import rasp_program

FOLLOWED = (("a", "c"), ("b", "a"), ("b", "c"), ("b", "d"), ("c", "b"), ("c", "c"), ("d", "a"))


@rasp_program(vocab=("a", "b", "c", "d"), max_seq_len=3, min_seq_len=3, causal=True)
def seldom_together() -> rasp.SOp:
    """Counts of counts, in which two edges are needed together, by four pairs of inputs in four thousand."""
    second = rasp.Select(rasp.indices, rasp.tokens, lambda index, token: token == "a" and index == 1)
    of_second = rasp.Aggregate(second, rasp.tokens).named("of_second")
    followed = rasp.Select(rasp.tokens, of_second, lambda key, query: (key, query) in FOLLOWED).named("followed")
    count = rasp.SelectorWidth(followed).named("count")
    is_a = rasp.Map(lambda token: token == "a", of_second).named("is_a")
    wanted = rasp.Select(count, is_a, lambda key, query: key == {True: 2, False: 0}.get(query)).named("wanted")
    found = rasp.Aggregate(wanted, count).named("found")
    places = rasp.Select(rasp.indices, found, lambda key, query: (key, query) in ((1, 3), (2, 0), (2, 2)))
    return rasp.SelectorWidth(places).named("seldom_together")
