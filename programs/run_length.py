from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def run_length() -> rasp.SOp:
    """How many times the token has come in a row, up to here."""
    before = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == max(query - 1, 0)).named("before")
    first_again = rasp.Map(lambda index: index == 0, rasp.indices).named("first_again")
    previous = rasp.Aggregate(before, rasp.tokens).named("previous")
    same = rasp.SequenceMap(lambda x, y: x == y, rasp.tokens, previous).named("same")
    longer = rasp.SequenceMap(lambda x, first: bool(x) and not first, same, first_again).named("longer")
    longer_before = rasp.Aggregate(before, longer).named("longer_before")
    return rasp.SequenceMap(lambda x, y: 1 + bool(x) * (1 + bool(y)), longer, longer_before).named("run_length")
