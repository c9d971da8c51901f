"""The newest completed turn of each session that selection chose a model for: what pins are rebuilt from at start."""

from __future__ import annotations

from typing import Final

from turnout.ledger import queries
from turnout.ledger.backend import Turn

_MOST: Final = 100_000
_TURNS: Final = (
    "SELECT tenant, session_id, knobs_hash, selected_model, provider, tokens_in, ended_at_ms FROM (SELECT c.tenant,"
    " c.session_id, c.knobs_hash, c.selected_model, r.provider, c.tokens_in, c.ended_at_ms, c.seq, ROW_NUMBER() OVER"
    " (PARTITION BY c.tenant, c.session_id, c.knobs_hash ORDER BY c.ended_at_ms DESC, c.seq DESC) AS place"
    " FROM calls c JOIN routes r ON r.route_id = c.route_id WHERE c.ended_at_ms >= :since AND c.session_id IS NOT NULL"
    " AND c.knobs_hash <> '' AND c.outcome = 'completed' AND (c.user_id IS NULL OR c.session_id <> c.user_id)) t"
    " WHERE place = 1 ORDER BY ended_at_ms DESC, seq DESC LIMIT :most"
)


def recent_turns(url: str, since_ms: int, most: int = _MOST) -> list[Turn]:
    """Give the newest turns, newest first. Blocks: call it on a thread.

    Raises:
        Exception: the database does not answer (`queries.errors`).
    """
    with queries.reading(url) as conn:
        return [Turn(*row) for row in queries.rows(conn, _TURNS, since=since_ms, most=most)]
