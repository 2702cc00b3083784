from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def twin_heads() -> rasp.SOp:
    """Whether the first token is "a", from two heads of which either would do."""
    is_a = rasp.numerical(rasp.Map(lambda token: int(token == "a"), rasp.tokens)).named("is_a")
    one = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0).named("one")
    other = rasp.Select(rasp.indices, rasp.tokens, lambda key, query: key == 0).named("other")
    first = rasp.numerical(rasp.Aggregate(one, is_a, default=0)).named("first")
    again = rasp.numerical(rasp.Aggregate(other, is_a, default=0)).named("again")
    both = rasp.numerical(rasp.LinearSequenceMap(first, again, 1, 1)).named("both")
    return rasp.Map(lambda x: x > 0, both).named("twin_heads")
