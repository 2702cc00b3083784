from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def even_in_capitals() -> rasp.SOp:
    """The token, as a capital if the length is even."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    return rasp.SequenceMap(lambda x, n: x if n % 2 else str(x).upper(), rasp.tokens, length).named("even_in_capitals")
