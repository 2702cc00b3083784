from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "e"), max_seq_len=3)
def is_vowel() -> rasp.SOp:
    """Whether the token is a vowel."""
    return rasp.Map(lambda token: token in "aeiou", rasp.tokens).named("is_vowel")
