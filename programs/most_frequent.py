from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def most_frequent() -> rasp.SOp:
    """Whether no token is more frequent than this one."""
    count = lib.make_hist().named("count")
    more = rasp.Select(count, count, rasp.Comparison.GT).named("more")
    return rasp.Map(lambda width: width == 0, rasp.SelectorWidth(more)).named("most_frequent")
