from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def above_average() -> rasp.SOp:
    """The fraction of "a" so far less the fraction of "a" in the whole input."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    is_a = rasp.numerical(rasp.Map(lambda token: int(token == "a"), rasp.tokens)).named("is_a")
    so_far = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ).named("so_far")
    here = rasp.numerical(rasp.Aggregate(so_far, is_a, default=0)).named("here")
    overall = rasp.numerical(rasp.Aggregate(everywhere, is_a, default=0)).named("overall")
    return rasp.numerical(rasp.LinearSequenceMap(here, overall, 1, -1)).named("above_average")
