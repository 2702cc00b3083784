from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def every_other_from_end() -> rasp.SOp:
    """Each token whose distance from the end is even, "-" in the place of the others."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    kept = rasp.SequenceMap(lambda n, index: (n - index) % 2 == 1, length, rasp.indices).named("kept")
    return rasp.SequenceMap(lambda token, x: token if x else "-", rasp.tokens, kept).named("every_other_from_end")
