from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1), max_seq_len=4)
def parity() -> rasp.SOp:
    """Whether the number of ones is odd."""
    ones = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == 1).named("ones")
    return rasp.Map(lambda width: width % 2, rasp.SelectorWidth(ones)).named("parity")
