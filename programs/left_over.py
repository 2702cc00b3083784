from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=6, min_seq_len=6)
def left_over() -> rasp.SOp:
    """Each odd position, plus twice their share among some; what all other edges leave over is not quite nothing."""
    width = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LEQ)).named("width")
    fifth = rasp.Select(rasp.indices, rasp.tokens, lambda index, token: token == "a" and index == 4)
    width_of_fifth = rasp.Aggregate(fifth, width).named("width_of_fifth")
    is_odd = rasp.numerical(rasp.Map(lambda index: index % 2, rasp.indices)).named("is_odd")
    chosen = rasp.Select(width, width_of_fifth, lambda key, query: (key, query) in ((1, 2), (3, 1), (4, 5), (4, 6)))
    share = rasp.numerical(rasp.Aggregate(chosen, is_odd, default=0)).named("share")
    return rasp.numerical(rasp.LinearSequenceMap(share, is_odd, 2, 1)).named("left_over")
