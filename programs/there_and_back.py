from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def there_and_back() -> rasp.SOp:
    """The token itself, by way of two reversals."""
    return lib.make_reverse(lib.make_reverse(rasp.tokens).named("backwards")).named("there_and_back")
