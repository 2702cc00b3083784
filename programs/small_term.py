from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def small_term() -> rasp.SOp:
    """A hundred times the position, plus one if the token is "a": a small effect beside a large one."""
    is_a = rasp.numerical(rasp.Map(lambda token: float(token == "a"), rasp.tokens)).named("is_a")
    position = rasp.numerical(rasp.Map(lambda index: index, rasp.indices)).named("position")
    return rasp.numerical(rasp.LinearSequenceMap(is_a, position, 1, 100)).named("small_term")
