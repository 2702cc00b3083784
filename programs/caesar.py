from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=4)
def caesar() -> rasp.SOp:
    """The token plus its position, modulo 3."""
    return rasp.SequenceMap(lambda token, index: (token + index) % 3, rasp.tokens, rasp.indices).named("caesar")
