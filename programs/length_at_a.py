from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def length_at_a() -> rasp.SOp:
    """The length of the input at each "a", 0 at other tokens: every key is the same letter."""
    letter = rasp.Map(lambda index: "a", rasp.indices).named("letter")
    same = rasp.Select(letter, rasp.tokens, rasp.Comparison.EQ).named("same")
    return rasp.SelectorWidth(same).named("length_at_a")
