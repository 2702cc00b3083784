from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def second_half() -> rasp.SOp:
    """The token in the second half of the input, "-" in the first; a middle one is of the second."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    late = rasp.SequenceMap(lambda n, index: 2 * index + 1 >= n, length, rasp.indices).named("late")
    return rasp.SequenceMap(lambda token, x: token if x else "-", rasp.tokens, late).named("second_half")
