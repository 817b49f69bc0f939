"""How the store's own statements run beside its units: on connections of their own, each batch one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from tidewire.kit.postgres.errors import is_rerun, is_server, state_of
from tidewire.kit.postgres.place import PostgresPlace
from tidewire.kit.postgres.pool import PostgresPool
from tidewire.kit.postgres.wire import Answers, Statement
from tidewire.stores.postgres.migrate import STORE_ERRORS

__all__ = ["OLDEST_WRITE", "PLAN", "Access"]

_RERUNS_MAX = 5
PLAN: Statement = (
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), "
    "set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)",
    (),
)
"""Plans are kept with the connection, and the tables are empty when most of them are made: they are to fit full ones.
Goes ahead of a statement in its transaction."""
OLDEST_WRITE = (
    "(SELECT (extract(epoch FROM max(age)) * 1000000)::bigint FROM (SELECT clock_timestamp() - xact_start AS age "
    "FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() UNION ALL "
    "SELECT clock_timestamp() - prepared FROM pg_prepared_xacts) AS writing)"
)
"""For how many microseconds the oldest transaction that has written is open, in any database of the server. Those of
other roles are seen by members of ``pg_read_all_stats`` only."""


class Access:
    """The store's own statements. *pool* is not that of the units, who would wait for each other otherwise."""

    def __init__(self, place: PostgresPlace, pool: PostgresPool) -> None:
        self.place = place
        self._pool = pool

    def table(self, name: str) -> str:
        """Return the qualified name of a table."""
        return self.place.named(name)

    async def run(self, what: str, *statements: Statement) -> Answers:
        """Run *statements* in one transaction, durably, in one round trip. Conflicts with others are tried again.

        Raises:
            StoreUnavailable: the database cannot be reached or written now; where the connection broke, what was sent
                may have happened.
            StoreRefused: a person must act.
        """
        answers = await self._once(statements)
        for _ in range(_RERUNS_MAX):
            if answers.error is None or answers.lost or not is_rerun(answers.error):
                break
            answers = await self._once(statements)
        error = answers.error
        if error is None:
            return answers
        if is_server(error) or answers.lost:
            self._pool.forget_idle()
        if answers.lost and not state_of(error):
            raise STORE_ERRORS.lost(what, error) from error
        raise STORE_ERRORS.typed(what, error) from error

    async def _once(self, statements: Sequence[Statement]) -> Answers:
        async with self._pool.lent() as wire:
            return await wire.run(*statements)
