"""How busy each candidate is, from our own counts and from engine reports that may be late or missing (scheduling §4).

Unknown is not zero: an endpoint without a fresh report is taken to carry as much foreign load as the others on average.
"""

from __future__ import annotations

from typing import Final

from turnout.core.fleet.endpoint import EndpointState

Report = tuple[int | None, int | None, float | None]

_NOTHING: Final[Report] = (None, None, None)


def busy_column(
    members: list[EndpointState], in_flight: list[float], now: float
) -> tuple[list[float], tuple[Report, ...]]:
    """Return `busy` per member and (running, waiting, age_s) of its report; an age of None means estimated.

    While nobody has ever reported, the in-flight column itself is returned, and no reports.
    """
    for member in members:
        if member.observed_at is not None:
            break
    else:
        return in_flight, ()
    busy: list[float] = []
    reports: list[Report] = []
    unknown: list[int] = []
    beyond = 0
    # One loop without calls: it runs over all candidates of every decision.
    for member, count in zip(members, in_flight):  # noqa: B905 - parallel by construction
        observed_at = member.observed_at
        running, waiting = member.running, member.waiting
        if observed_at is None or running is None or waiting is None or now > member.prefill.heard_until:
            unknown.append(len(busy))
            reports.append(_NOTHING)
            busy.append(count)
            continue
        reports.append((running, waiting, now - observed_at))
        # Requests at the endpoint beyond our own: never less than none.
        foreign = running + waiting - member.in_flight_at_report
        if foreign > 0:
            beyond += foreign
            busy.append(count + foreign)
        else:
            busy.append(count)
    if unknown and len(unknown) < len(busy):
        # Rounded like every cost, so that equal estimates stay equal.
        mean = round(beyond / (len(busy) - len(unknown)), 6)
        for position in unknown:
            busy[position] += mean
    return busy, tuple(reports)
