"""How busy each candidate is, from our own counts and from engine reports that may be late or missing (scheduling §4).

Unknown is not zero: an endpoint without a fresh report is taken to carry as much foreign load as the others on average.
"""

from __future__ import annotations

from turnout.core.fleet.endpoint import EndpointState

MAX_AGE_S = 5.0  # load.max_age_s

Report = tuple[int | None, int | None, float | None]


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
    reports = tuple([_report(member, now) for member in members])
    foreign = [
        None if running is None or waiting is None else _foreign(member, running + waiting)
        for member, (running, waiting, _) in zip(members, reports, strict=True)
    ]
    known = [value for value in foreign if value is not None]
    # Rounded like every cost, so that equal estimates stay equal.
    mean = round(sum(known) / len(known), 6) if known else 0
    busy = [count + (mean if value is None else value) for count, value in zip(in_flight, foreign, strict=True)]
    return busy, reports


def _report(member: EndpointState, now: float) -> Report:
    observed_at = member.observed_at
    if observed_at is None or now - observed_at > MAX_AGE_S or member.running is None or member.waiting is None:
        return None, None, None
    return member.running, member.waiting, now - observed_at


def _foreign(member: EndpointState, reported: int) -> int:
    """Requests at the endpoint beyond our own: never less than none."""
    return max(0, reported - member.in_flight_at_report)
