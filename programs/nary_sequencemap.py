from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


def mix(token: int, previous: int, position: int) -> int:
    """A function of three values."""
    return (token + 2 * previous + position) % 3


@rasp_program(vocab=(0, 1, 2), max_seq_len=4)
def nary_sequencemap() -> rasp.SOp:
    """Token plus twice the token before plus the position, modulo 3; undefined at the first position."""
    return lib.make_nary_sequencemap(mix, rasp.tokens, lib.shift_by(1, rasp.tokens), rasp.indices)
