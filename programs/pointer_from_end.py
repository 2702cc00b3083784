from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=3)
def pointer_from_end() -> rasp.SOp:
    """The token as far before the last one as this token says; undefined before the start."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    target = rasp.SequenceMap(lambda n, token: n - 1 - token, length, rasp.tokens).named("target")
    at_target = rasp.Select(rasp.indices, target, rasp.Comparison.EQ).named("at_target")
    return rasp.Aggregate(at_target, rasp.tokens).named("pointer_from_end")
