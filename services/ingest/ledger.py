"""The work that is open: what waits, what a worker holds, what failed. Kept in Redis.

An object is in line at most once, however many events name it. A worker holds it under a lease;
when the worker dies, the lease runs out and the object is back in line with one loss more.
"""

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from cra.shared import tracing
from cra.shared.domain import ObjectRef, Version
from cra.shared.errors import UnavailableError
from cra.shared.metrics import DEPENDENCY_ERRORS

WAITING: Final = "cra:waiting"  # sorted set: image_id by the time from which it may be taken
SINCE: Final = "cra:since"  # sorted set: image_id by the time from which it is open
TRACES: Final = "cra:traces"  # hash: image_id to the traceparent of what put it in line
CLAIMED: Final = "cra:claimed"  # sorted set: image_id by the end of its lease
LOSSES: Final = "cra:losses"  # hash: image_id to how many workers died over it
RETRIES: Final = "cra:retries"  # hash: image_id to how often it was put back
BLAMES: Final = "cra:blames"  # hash: image_id to how often it failed by itself
FAILURES: Final = "cra:failures"  # hash: image_id to a Failure as JSON
CALLED: Final = "cra:called"  # string, while a call for workers is on its way
RECONCILE: Final = "cra:reconcile"  # string: the last reconcile as JSON
RECONCILING: Final = "cra:reconciling"  # lock: of the worker that reconciles
SYNCED: Final = "cra:synced:"  # counters, one for each ten seconds

CALL_LASTS: Final = 60.0
"""Seconds after which a call that no worker has heard is taken for lost. Calls that wait while
workers are busy are not lost, and the tick looks at the line meanwhile."""

LONGEST_PAUSE: Final = 30.0
"""Seconds; the most that a retry is put off."""

MOST_TRACED: Final = 64
"""Objects put in line at once that are followed; a whole bucket in one trace is no help."""

ANSWERS_WITHIN: Final = 5.0
"""Seconds."""

_CLAIM = """
local now, lease, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
for _, id in ipairs(expired) do
  redis.call('ZREM', KEYS[2], id)
  redis.call('HINCRBY', KEYS[3], id, 1)
  redis.call('ZADD', KEYS[1], 'NX', now, id)
end
local taken, lost, open = {}, 0, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit * 8)) do
  if #taken >= limit then break end
  -- Held by another worker: it stays in line until that one is done with it.
  if not redis.call('ZSCORE', KEYS[2], id) then
    local losses = tonumber(redis.call('HGET', KEYS[3], id) or '0')
    if losses > 0 and #taken == 0 then
      -- It was there when a worker died: alone, so that it takes no neighbour with it.
      taken, lost = {id}, losses
      break
    elseif losses == 0 then
      table.insert(taken, id)
    end
  end
end
for _, id in ipairs(taken) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZADD', KEYS[2], lease, id)
  table.insert(open, redis.call('ZSCORE', KEYS[4], id) or '')
  table.insert(open, redis.call('HGET', KEYS[5], id) or '')
end
return {lost, taken, open, #expired}
"""

_FINISH = """
for _, id in ipairs(ARGV) do
  redis.call('ZREM', KEYS[1], id)
  local again = redis.call('ZSCORE', KEYS[2], id)
  if again then
    -- Put in line anew meanwhile: it is open since then, for the reason of then.
    redis.call('ZADD', KEYS[3], again, id)
  else
    redis.call('ZREM', KEYS[3], id)
    redis.call('HDEL', KEYS[4], id)
  end
  for key = 5, #KEYS do
    redis.call('HDEL', KEYS[key], id)
  end
end
"""
_FINISHED: Final = (CLAIMED, WAITING, SINCE, TRACES, LOSSES, RETRIES, BLAMES)
"""What forgets an object that is done or failed: the first by its place in the next three."""

_ERRORS: Final = DEPENDENCY_ERRORS.labels("redis")

T = TypeVar("T")


@dataclass(frozen=True)
class Claim:
    """Objects that a worker holds."""

    refs: list[ObjectRef]
    losses: int
    """Workers that died over it, for a claim of one object; 0 otherwise."""
    traces: Mapping[ObjectRef, str] = field(default_factory=dict)
    """Traceparents of what put them in line; of those alone that are traced."""
    waited: Mapping[ObjectRef, float] = field(default_factory=dict)
    """Seconds since they were put in line, of those of which it is known."""
    expired: int = 0
    """Leases that were found to have run out."""


@dataclass(frozen=True)
class Line:
    """How much is open."""

    waiting: int
    claimed: int
    failed: int
    oldest_seconds: float


@dataclass(frozen=True)
class Failure:
    """Why an object is not in the index."""

    ref: ObjectRef
    reason: str
    message: str
    version: Version
    attempts: int
    failed_at: float
    """Unix seconds."""


class Ledger:
    """The waiting line and the failure list.

    Every method raises UnavailableError while Redis does not answer.
    """

    def __init__(self, url: str, lease_seconds: float, clock: Callable[[], float] = time.time):
        self._redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=ANSWERS_WITHIN,
            socket_connect_timeout=ANSWERS_WITHIN,
            # It is back within seconds after it was killed, and what was done is not done in vain.
            # Silence is not waited for again: a caller who is told late is not told.
            retry=Retry(
                ExponentialWithJitterBackoff(cap=1, base=0.05), 6, (redis.ConnectionError,)
            ),
        )
        self._lease = lease_seconds
        self._clock = clock
        self._claim = self._redis.register_script(_CLAIM)
        self._finish = self._redis.register_script(_FINISH)
        # Renewed on another thread than that which takes it.
        self._reconciling = self._redis.lock(RECONCILING, timeout=lease_seconds, thread_local=False)

    def ping(self) -> None:
        """Return if Redis answers."""
        _call(self._redis.ping)

    def add(self, refs: Iterable[ObjectRef], *, changed: bool = False) -> int:
        """Put objects in line, to be taken at once; return how many were new there.

        Each has the place in a trace of whoever puts it there, if that is traced and they are few.

        Args:
            refs: the objects.
            changed: somebody says that they are no longer what they were; so what the earlier ones
                did to workers is not held against them.
        """
        now = self._clock()
        line: dict[Any, Any] = {ref.image_id: now for ref in refs}
        if not line:
            return 0
        trace = tracing.sampled()

        def write() -> int:
            with self._redis.pipeline() as pipe:
                # LT: one that waits for a later retry is taken now.
                pipe.zadd(WAITING, line, lt=True)
                pipe.zadd(SINCE, line, nx=True)
                if changed:
                    pipe.hdel(LOSSES, *line)
                    pipe.hdel(BLAMES, *line)
                if trace and len(line) <= MOST_TRACED:
                    pipe.hset(TRACES, mapping=dict.fromkeys(line, trace))
                return int(pipe.execute()[0])

        return int(_call(write))

    def call(self) -> bool:
        """Return whether workers are to be called; not while an earlier call is on its way."""
        return bool(_call(lambda: self._redis.set(CALLED, 1, nx=True, px=round(CALL_LASTS * 1000))))

    def heard(self) -> None:
        """Note that a worker has come: who calls now calls another."""
        _call(lambda: self._redis.delete(CALLED))

    def claim(self, limit: int) -> Claim:
        """Take up to `limit` objects that are due, those in line longest first."""
        now = self._clock()
        lost, taken, known, expired = _call(
            lambda: self._claim(
                keys=[WAITING, CLAIMED, LOSSES, SINCE, TRACES],
                args=[now, now + self._lease, limit],
            )
        )
        refs = [ObjectRef.parse(image_id) for image_id in taken]
        return Claim(
            refs,
            int(lost),
            {ref: trace for ref, trace in zip(refs, known[1::2], strict=True) if trace},
            {
                ref: max(0.0, now - float(since))
                for ref, since in zip(refs, known[::2], strict=True)
                if since
            },
            int(expired),
        )

    def renew(self, refs: Sequence[ObjectRef]) -> None:
        """Extend the leases of objects that are still held."""
        lease = self._clock() + self._lease
        line: dict[Any, Any] = {ref.image_id: lease for ref in refs}
        if line:
            _call(lambda: self._redis.zadd(CLAIMED, line, xx=True))

    def done(self, refs: Sequence[ObjectRef]) -> None:
        """Let go of objects that are in sync with the index; they are no failures any more."""
        if not refs:
            return
        ids = [ref.image_id for ref in refs]

        def write() -> None:
            with self._redis.pipeline() as pipe:
                pipe.hdel(FAILURES, *ids)
                slot = f"{SYNCED}{int(self._clock()) // 10}"
                pipe.incrby(slot, len(ids))
                pipe.expire(slot, 120)
                self._finish(keys=_FINISHED, args=ids, client=pipe)
                pipe.execute()

        _call(write)

    def fail(self, failures: Sequence[Failure]) -> None:
        """Let go of objects that cannot be indexed, and list them with the reason."""
        if not failures:
            return
        rows: dict[Any, Any] = {f.ref.image_id: _to_json(f) for f in failures}

        def write() -> None:
            with self._redis.pipeline() as pipe:
                pipe.hset(FAILURES, mapping=rows)
                self._finish(keys=_FINISHED, args=list(rows), client=pipe)
                pipe.execute()

        _call(write)

    def put_back(self, refs: Sequence[ObjectRef]) -> None:
        """Put objects back in line after a pause that doubles with each try, with jitter."""
        if not refs:
            return
        ids = [ref.image_id for ref in refs]

        def write() -> None:
            now = self._clock()
            line: dict[Any, Any] = {
                image_id: now
                + min(LONGEST_PAUSE, 0.5 * 2 ** min(tries, 10)) * random.uniform(0.5, 1)  # noqa: S311
                for image_id, tries in zip(ids, self._count(RETRIES, ids), strict=True)
            }
            with self._redis.pipeline() as pipe:
                pipe.zadd(WAITING, line, lt=True)
                pipe.zrem(CLAIMED, *ids)
                pipe.execute()

        _call(write)

    def blame(self, refs: Sequence[ObjectRef]) -> list[int]:
        """Count a failure against each object itself; return how many each has by now."""
        return list(_call(lambda: self._count(BLAMES, [ref.image_id for ref in refs])))

    def _count(self, counts: str, ids: Sequence[str]) -> list[int]:
        with self._redis.pipeline() as pipe:
            for image_id in ids:
                pipe.hincrby(counts, image_id, 1)
            return list(map(int, pipe.execute()))

    def waiting(self) -> set[ObjectRef]:
        """Return what is in line or held by a worker."""
        ids = _call(
            lambda: [
                *self._redis.zrange(WAITING, 0, -1),
                *self._redis.zrange(CLAIMED, 0, -1),
            ]
        )
        return {ObjectRef.parse(image_id) for image_id in ids}

    def line(self) -> Line:
        """Count what is open, without looking at any of it."""

        def read() -> list[Any]:
            with self._redis.pipeline() as pipe:
                pipe.zcard(WAITING)
                pipe.zcard(CLAIMED)
                pipe.hlen(FAILURES)
                pipe.zrange(SINCE, 0, 0, withscores=True)
                return list(pipe.execute())

        waiting, claimed, failed, oldest = _call(read)
        seconds = max(0.0, self._clock() - float(oldest[0][1])) if oldest else 0.0
        return Line(int(waiting), int(claimed), int(failed), seconds)

    def failures(self) -> list[Failure]:
        """Return the failure list, by image_id."""
        rows = _call(lambda: self._redis.hvals(FAILURES))
        return sorted(map(_from_json, rows), key=lambda failure: failure.ref.image_id)

    def forget(self, refs: Sequence[ObjectRef]) -> None:
        """Take objects off the failure list: they are gone."""
        if refs:
            _call(lambda: self._redis.hdel(FAILURES, *[ref.image_id for ref in refs]))

    def rate(self) -> float:
        """Return objects synced a second, over the last minute."""
        slot = int(self._clock()) // 10
        counts = _call(lambda: self._redis.mget([f"{SYNCED}{slot - n}" for n in range(6)]))
        return sum(int(count or 0) for count in counts) / 60

    def begin_reconcile(self) -> bool:
        """Return whether this worker is to reconcile: not while another one does."""
        return bool(_call(lambda: self._reconciling.acquire(blocking=False)))

    def renew_reconcile(self) -> None:
        """Have no other worker reconcile for another lease."""
        _call(self._reconciling.reacquire)

    def end_reconcile(self) -> None:
        """Let others reconcile, who may at the end of the lease at the latest."""
        with contextlib.suppress(redis.RedisError):
            self._reconciling.release()

    def note_reconcile(self, summary: dict[str, Any]) -> None:
        """Keep the summary of a reconcile that ended."""
        _call(lambda: self._redis.set(RECONCILE, json.dumps(summary)))

    def last_reconcile(self) -> dict[str, Any] | None:
        """Return the summary of the last reconcile that ended."""
        text = _call(lambda: self._redis.get(RECONCILE))
        return json.loads(text) if text else None


def _to_json(failure: Failure) -> str:
    return json.dumps(asdict(failure), ensure_ascii=False)


def _from_json(text: str) -> Failure:
    row = json.loads(text)
    return Failure(**{**row, "ref": ObjectRef(**row["ref"]), "version": Version(**row["version"])})


def _call(function: Callable[[], T]) -> Any:
    try:
        return function()
    except redis.RedisError as error:
        _ERRORS.inc()
        raise UnavailableError(f"Redis does not answer: {error}") from error
