"""How far a subscriber has applied each shard of a stream: kept in the target, beside what was applied."""

from __future__ import annotations

from upwell.targets.postgres import PostgresTarget


class PostgresShardCheckpoints:
    """How far each shard has been applied, in a table of upwell's in the target; see ports.ShardCheckpoints."""

    def __init__(self, target: PostgresTarget) -> None:
        self._target = target

    def load(self, stream: str) -> dict[str, str | None]:
        with self._target.session() as session:
            return dict(session.query("SELECT shard, sequence FROM upwell.shard WHERE stream = %s", [stream]))

    def save(self, stream: str, shard: str, sequence: str | None) -> None:
        with self._target.session() as session:
            session.query(
                "INSERT INTO upwell.shard VALUES (%s, %s, %s)"
                " ON CONFLICT (stream, shard) DO UPDATE SET sequence = EXCLUDED.sequence",
                [stream, shard, sequence],
            )
