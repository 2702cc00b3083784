from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1), max_seq_len=4, min_seq_len=4)
def all_or_nothing() -> rasp.SOp:
    """Drawn at random: one edge may be kept or dropped, but with half of it the answer is wrong."""
    large = rasp.Map(lambda token: token == 1, rasp.tokens).named("large")
    one = rasp.numerical(rasp.Map(lambda x: {False: 1, True: 1}[x], large)).named("one")
    at = rasp.Select(rasp.indices, large, lambda key, query: key == query - 1).named("at")
    first = rasp.Aggregate(at, large).named("first")
    by_token = rasp.Select(rasp.indices, rasp.tokens, lambda key, query: key == query).named("by_token")
    again = rasp.Aggregate(by_token, first).named("again")
    always = rasp.numerical(rasp.Map(lambda x: int(x in (False, True)), large)).named("always")
    same = rasp.Select(first, again, lambda key, query: (key, query) in ((False, False), (True, True))).named("same")
    share = rasp.numerical(rasp.Aggregate(same, always, default=0)).named("share")
    total = rasp.numerical(rasp.LinearSequenceMap(one, share, 1, 0.5)).named("total")
    price = rasp.numerical(rasp.Map(lambda token: {0: 10, 1: 0.5}[token], rasp.tokens)).named("price")
    return rasp.numerical(rasp.LinearSequenceMap(total, price, 0.5, -1)).named("all_or_nothing")
