from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def followers_of_a() -> rasp.SOp:
    """How many tokens follow each "a"; 0 at other tokens."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    followers = rasp.SequenceMap(lambda n, index: n - 1 - index, length, rasp.indices).named("followers")
    return rasp.SequenceMap(lambda token, x: x if token == "a" else 0, rasp.tokens, followers).named("followers_of_a")
