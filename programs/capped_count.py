from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=3)
def capped_count() -> rasp.SOp:
    """How many of the token being "a" and the position being odd hold, but one at the most."""
    is_a = rasp.numerical(rasp.Map(lambda token: int(token == "a"), rasp.tokens)).named("is_a")
    is_odd = rasp.numerical(rasp.Map(lambda index: index % 2, rasp.indices)).named("is_odd")
    both = rasp.numerical(rasp.LinearSequenceMap(is_a, is_odd, 1, 1)).named("both")
    return rasp.numerical(rasp.Map(lambda x: min(x, 1), both)).named("capped_count")
