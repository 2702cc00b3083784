from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "x"), max_seq_len=4)
def majority() -> rasp.SOp:
    """Whether more than half of the tokens are "x"."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("everywhere")
    at_x = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "x").named("at_x")
    length = rasp.SelectorWidth(everywhere).named("length")
    return rasp.SequenceMap(lambda x, n: 2 * x > n, rasp.SelectorWidth(at_x).named("xs"), length).named("majority")
