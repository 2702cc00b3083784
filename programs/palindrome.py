from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def palindrome() -> rasp.SOp:
    """Whether the input reads the same backwards."""
    backwards = lib.make_reverse(rasp.tokens).named("backwards")
    differs = rasp.SequenceMap(lambda x, y: x != y, rasp.tokens, backwards).named("differs")
    at_differing = rasp.Select(differs, differs, lambda key, query: bool(key)).named("at_differing")
    return rasp.Map(lambda width: width == 0, rasp.SelectorWidth(at_differing)).named("palindrome")
