from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "e"), max_seq_len=4, causal=True)
def share_of_vowels() -> rasp.SOp:
    """The fraction of vowels among the tokens so far."""
    vowel = rasp.Map(lambda token: token in "aeiou", rasp.tokens).named("vowel")
    return lib.make_frac_prevs(vowel).named("share_of_vowels")
