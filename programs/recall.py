from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


def keys_and_values(tokens: tuple[str, ...]) -> bool:
    """Whether each key is followed by a value, no key is given twice, and then a key is asked for."""
    keys, values, asked = tokens[0:-1:2], tokens[1:-1:2], tokens[-1]
    return (
        len(tokens) % 2 == 1
        and len(set(keys)) == len(keys)
        and {*keys, asked} <= {"k", "l"}
        and set(values) <= {"0", "1"}
    )


@rasp_program(vocab=("k", "l", "0", "1"), max_seq_len=4, causal=True, valid=keys_and_values)
def recall() -> rasp.SOp:
    """The value that last followed this key; undefined if none did."""
    previous = lib.shift_by(1, rasp.tokens).named("previous")
    asked = rasp.Select(previous, rasp.tokens, lambda key, query: key == query and query in ("k", "l")).named("asked")
    return rasp.Aggregate(asked, rasp.tokens).named("recall")
