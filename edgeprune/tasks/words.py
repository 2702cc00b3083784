"""Words that prompts are filled with."""

from collections.abc import Callable, Sequence
from typing import Final

from edgeprune.errors import TaskError

WOMEN: Final = tuple(
    "Mary Anna Emma Laura Sarah Julia Kate Alice Jane Lisa Amy Emily Grace Helen Rose Lucy Claire Rachel Maria Linda "
    "Susan Karen Nancy Betty Sandra Ashley Michelle Angela Melissa Rebecca Amanda Stephanie Christine Catherine Diana "
    "Elizabeth Victoria Olivia Sophia Charlotte Caroline Martha Ruth Sharon Cynthia Kathleen Nicole Monica Vanessa Eva "
    "Jennifer Jessica Barbara Patricia Margaret Samantha Hannah Natalie Andrea Heather".split()
)

MEN: Final = tuple(
    "John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Mark Paul Steven Andrew "
    "Kevin Brian George Edward Ronald Tim Jason Jeff Ryan Jacob Gary Nick Eric Jonathan Stephen Larry Justin Scott "
    "Brandon Ben Samuel Greg Frank Alex Patrick Jack Dennis Jerry Tyler Aaron Henry Adam Peter Nathan Kyle Walter "
    "Jeremy Keith Roger Carl Arthur Lawrence Sean Christian".split()
)

NAMES: Final = WOMEN + MEN

PLACES: Final = tuple("market garden office station library museum kitchen hotel school park theater beach".split())

OBJECTS: Final = tuple("book ring letter ticket basket coin lamp bottle flower camera jacket drink".split())

ADJECTIVES: Final = tuple(
    "good kind decent patient careful brave clever cheerful quiet gentle loyal generous polite modest curious friendly "
    "funny calm humble warm".split()
)

PEOPLE: Final = tuple(
    "friend neighbor teacher doctor student writer singer dancer lawyer painter driver cook player manager guest host "
    "worker leader speaker artist".split()
)

EVENTS: Final = tuple(
    "war siege trial journey expedition dispute reign drought famine strike voyage campaign truce alliance debate "
    "project rebellion revolt crisis festival conflict treaty program tour mission pilgrimage occupation migration "
    "quarrel feud experiment negotiation inquiry exhibition partnership marriage regency plague epidemic blockade "
    "exile construction restoration excavation study survey ban boycott embargo ceasefire apprenticeship collaboration "
    "tournament feast winter flood storm eruption recession boom career friendship correspondence investigation".split()
)


def enough(words: Sequence[str], usable: Callable[[str], bool], least: int, kind: str) -> list[str]:
    """Return the usable words.

    Raises:
        TaskError: fewer than `least` words are usable.
    """
    found = [word for word in words if usable(word)]
    if len(found) < least:
        raise TaskError(
            f"Expected a tokenizer that knows at least {least} of {len(words)} {kind} as single tokens; "
            f"it knows {len(found)}: {', '.join(found) or 'none'}"
        )
    return found
