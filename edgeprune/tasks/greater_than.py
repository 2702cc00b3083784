"""Greater-than: something begins in one year, and ends in a later year of the same century.

The task is from Hanna, Liu and Variengien, "How does GPT-2 compute greater-than?", arXiv:2305.00586. "lasted from the
year 1732 to the year 17" is to go on with 33 to 99. In corrupted prompts the first year ends in 01, after which almost
any year may come. The metric is the probability of later years minus that of the others.

Note: events and verbs are our own. Years that the tokenizer does not split into their two halves are left out.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from edgeprune.errors import TaskError
from edgeprune.tasks.encode import Encoder
from edgeprune.tasks.example import Example
from edgeprune.tasks.words import EVENTS

TEMPLATE: Final = "The {event} {verb} from the year {century}{year} to the year {century}"
VERBS: Final = (
    "lasted", "went on", "continued", "dragged on", "ran", "stretched", "persisted", "was under way", "kept going"
)  # fmt: skip
CENTURIES: Final = range(11, 18)
_CORRUPTED: Final = "01"


def drawer(encoder: Encoder) -> Callable[[Random], Example]:
    """Return a function that draws examples with years of two tokens.

    Raises:
        TaskError: there is no century with enough years of two tokens.
    """
    years = {century: _years(encoder, century) for century in CENTURIES}
    usable = [century for century, known in years.items() if _CORRUPTED in known and len(known) > 2]
    if not usable:
        raise TaskError(
            "Expected a tokenizer that splits years such as 1732 into 17 and 32; it does so for no century from "
            f"{min(CENTURIES)} to {max(CENTURIES)}"
        )

    def draw(random: Random) -> Example:
        century = random.choice(usable)
        known = years[century]
        # The year has known years before and after it. It is later than 01, the corrupted year.
        year = random.choice([each for each in known[1:-1] if each > _CORRUPTED])
        event, verb = random.choice(EVENTS), random.choice(VERBS)
        clean, corrupted = (
            TEMPLATE.format(event=event, verb=verb, century=century, year=each) for each in (year, _CORRUPTED)
        )
        later = [each for each in known if each > year]
        return Example.ending(clean, corrupted, later, [each for each in known if each <= year])

    return draw


def _years(encoder: Encoder, century: int) -> list[str]:
    """Return, in order, the years of a century that are one token after the century's digits."""
    years = [f"{year:02}" for year in range(100)]
    return [year for year in years if encoder.continuation(f" {century}", year) is not None]
