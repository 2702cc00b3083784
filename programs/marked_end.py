from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def marked_end() -> rasp.SOp:
    """The token, or "+" in the last place, by a length that is counted among equal lengths."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    same_length = rasp.Select(length, length, rasp.Comparison.EQ).named("same_length")
    again = rasp.SelectorWidth(same_length).named("again")
    at_end = rasp.SequenceMap(lambda n, index: index == n - 1, again, rasp.indices).named("at_end")
    return rasp.SequenceMap(lambda token, x: "+" if x else token, rasp.tokens, at_end).named("marked_end")
