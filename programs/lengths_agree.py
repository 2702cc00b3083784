from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def lengths_agree() -> rasp.SOp:
    """The token, if two ways to count the length agree, as they always do; else "-"."""
    on_tokens = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("on_tokens")
    on_positions = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("on_positions")
    one = rasp.SelectorWidth(on_tokens).named("one")
    other = rasp.SelectorWidth(on_positions).named("other")
    agree = rasp.SequenceMap(lambda x, y: x == y, one, other).named("agree")
    return rasp.SequenceMap(lambda token, x: token if x else "-", rasp.tokens, agree).named("lengths_agree")
