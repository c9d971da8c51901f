"""The bounded store: tenants hold buckets, buckets hold entries; every bound evicts inside the tenant that caused it.

There is no look-up without a tenant. Recency moves for the entry that matched or was stored, its bucket and its tenant,
never for what was only scanned. An entry's TTL is looked at when the entry is: no timer, task or thread exists.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from turnout.core.response_cache.guard import Features, Kind, differs
from turnout.core.response_cache.key import CacheKey
from turnout.core.response_cache.vectors import Frozen, Vector, Vectors

# What the interpreter takes besides bytes of body, head and vectors, as measured: key with its digests, entry, answer,
# features and their places in four dictionaries; per bucket its key, its dictionary and the objects of its matrices.
ENTRY_BYTES, BUCKET_BYTES = 1792, 1280
_ROUNDING = 1e-6  # the same sum in another order
_BucketKey = tuple[tuple[str | int | bytes, ...], int, str]


class Bounds(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How much is kept."""

    tenants: int = 1024
    buckets_per_tenant: int = 512
    entries_per_bucket: int = 1024
    tenant_bytes: int = 32 * 1024 * 1024
    total_bytes: int = 256 * 1024 * 1024
    body_bytes: int = 1024 * 1024
    ttl_s: float = 3600.0


class Answer(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A stored answer: bytes as they went out, and what a replay reports."""

    status: int
    head: tuple[tuple[bytes, bytes], ...]
    body: bytes
    source: str
    """Call id of the exchange that produced it."""
    cost_nusd: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    usage: bytes = b""
    """Of a stream, whose events are stored without it: as JSON."""

    @property
    def size(self) -> int:
        """Bytes of body, usage and head."""
        return len(self.body) + len(self.usage) + sum(len(name) + len(value) for name, value in self.head)


class Entry:
    """One stored answer in its place."""

    __slots__ = ("answer", "bucket", "features", "key", "row", "sequence", "size", "stored_at_s")

    def __init__(
        self, key: CacheKey, answer: Answer, bucket: Bucket, stored_at_s: float, sequence: int, size: int
    ) -> None:
        self.key, self.answer, self.bucket, self.stored_at_s = key, answer, bucket, stored_at_s
        self.sequence, self.size = sequence, size
        self.row = -1
        self.features: Features | None = None


class Bucket:
    """Entries that differ in their last message only, under one cluster and one embedder."""

    __slots__ = ("entries", "key", "vectors")

    def __init__(self, key: _BucketKey) -> None:
        self.key = key
        # A plain dict in the order of use: at most `entries_per_bucket`, so its oldest is found quickly.
        self.entries: dict[Entry, None] = {}
        self.vectors: Vectors[Entry] | None = None


class _Tenant:
    __slots__ = ("buckets", "bytes", "entries", "exact", "matches", "saved_nusd")

    def __init__(self) -> None:
        self.buckets: OrderedDict[_BucketKey, Bucket] = OrderedDict()
        self.entries: OrderedDict[Entry, None] = OrderedDict()
        self.exact: dict[CacheKey, Entry] = {}
        self.bytes = 0
        self.matches = 0
        self.saved_nusd = 0


class Match(msgspec.Struct, frozen=True, gc=False):
    """An answer that may be replayed."""

    answer: Answer
    kind: str
    similarity: float
    age_s: float


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where a semantic request looks or files: clusters nearest first, its vector, its text's features."""

    clusters: tuple[int, ...]
    embedder: str
    vector: Vector
    features: Features


class TenantStats(msgspec.Struct, frozen=True, gc=False):
    """What one tenant holds."""

    entries: int
    bytes: int
    matches: int
    saved_nusd: int


class Scan:
    """One semantic look-up: the rows to compare, as they were when it was asked for.

    Rows may move while another thread reads them, so `ResponseStore.pick` computes again what it returns.
    """

    __slots__ = ("floats", "key", "near", "place", "threshold")

    def __init__(
        self,
        key: CacheKey,
        place: Place,
        threshold: Callable[[int], float],
        near: tuple[tuple[Frozen[Entry], float], ...],
    ) -> None:
        self.key, self.place, self.threshold, self.near = key, place, threshold, near
        self.floats = sum([rows.floats for rows, _ in near])
        """Numbers to read: what it costs."""

    def run(self) -> list[tuple[float, Entry]]:
        """Return (similarity, entry) of all that reach their bucket's threshold."""
        found: list[tuple[float, Entry]] = []
        for rows, threshold in self.near:
            found += rows.at_least(self.place.vector, threshold)
        return found


class ResponseStore:
    """All stored answers. Times are monotonic seconds."""

    __slots__ = ("_bounds", "_sequence", "_tenants", "bytes", "entries", "evictions", "rejections")

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._sequence = 0
        self.bytes = 0
        self.entries = 0
        self.evictions: Counter[str] = Counter()
        self.rejections: Counter[Kind] = Counter()

    def exact(self, key: CacheKey, now: float) -> Match | None:
        """Return the answer stored under exactly this key."""
        tenant = self._tenants.get(key.tenant)
        entry = tenant.exact.get(key) if tenant is not None else None
        if tenant is None or entry is None or self._expired(tenant, entry, now):
            return None
        self._used(key.tenant, tenant, entry)
        return Match(entry.answer, "exact", 1.0, now - entry.stored_at_s)

    def semantic(
        self, key: CacheKey, place: Place, threshold: Callable[[int], float], now: float, *, strict: bool
    ) -> Match | None:
        """Return the most similar answer of this tenant that passes threshold and guard; equal ones: the newest.

        Args:
            key: of the request; its `last` is not compared.
            place: clusters to look in, vector and features of the text.
            threshold: least similarity by cluster.
            now: monotonic seconds.
            strict: compare content words, too.

        """
        scan = self.scan(key, place, threshold)
        return self.pick(scan, scan.run(), now, strict=strict)

    def scan(self, key: CacheKey, place: Place, threshold: Callable[[int], float]) -> Scan:
        """Set out what a semantic look-up has to compare; `run` of it may be called on another thread."""
        tenant = self._tenants.get(key.tenant)
        near = []
        for cluster in place.clusters if tenant is not None else ():
            bucket = tenant.buckets.get((key.bucket, cluster, place.embedder))  # type: ignore[union-attr]  # see above
            if bucket is not None and bucket.vectors is not None and len(bucket.vectors):
                near.append((bucket.vectors.frozen(), threshold(cluster)))
        return Scan(key, place, threshold, tuple(near))

    def pick(self, scan: Scan, found: list[tuple[float, Entry]], now: float, *, strict: bool) -> Match | None:
        """Return the best of what a scan found that is still there; what changed meanwhile is a miss."""
        key, place = scan.key, scan.place
        tenant = self._tenants.get(key.tenant)
        if tenant is None:
            return None
        found.sort(key=lambda one: (-one[0], -one[1].sequence))
        for _, entry in found:
            if tenant.exact.get(entry.key) is not entry or self._expired(tenant, entry, now):
                continue
            bucket = entry.bucket
            assert bucket.vectors is not None
            similarity = bucket.vectors.similarity(entry.row, place.vector)
            if similarity < scan.threshold(bucket.key[1]) - _ROUNDING:
                continue
            assert entry.features is not None
            kind = differs(place.features, entry.features, strict=strict)
            if kind is not None:
                self.rejections[kind] += 1
                continue
            self._used(key.tenant, tenant, entry)
            return Match(entry.answer, "semantic", similarity, now - entry.stored_at_s)
        return None

    def put(self, key: CacheKey, answer: Answer, now: float, place: Place | None = None) -> bool:
        """Store an answer under its nearest cluster; False: too large for one body or for the bytes allowed."""
        bounds = self._bounds
        dim = 0 if place is None else len(place.vector)
        size = answer.size + ENTRY_BYTES
        alone = size + BUCKET_BYTES + 2 * 4 * (dim + 3)  # in a bucket of its own
        if len(answer.body) > bounds.body_bytes or alone > min(bounds.tenant_bytes, bounds.total_bytes):
            return False
        tenant = self._tenant(key.tenant)
        old = tenant.exact.get(key)
        if old is not None:
            self._remove(tenant, old)
            if not old.bucket.entries:
                self._forget(tenant, old.bucket)
        cluster = place.clusters[0] if place is not None else -1
        bucket_key = (key.bucket, cluster, place.embedder if place is not None else "")
        bucket = tenant.buckets.get(bucket_key)
        if bucket is None:
            while len(tenant.buckets) >= bounds.buckets_per_tenant:
                self._drop_bucket(tenant, next(iter(tenant.buckets.values())), "buckets")
            bucket = tenant.buckets[bucket_key] = Bucket(bucket_key)
            self._charge(tenant, BUCKET_BYTES)
        while len(bucket.entries) >= bounds.entries_per_bucket:
            self._evict(tenant, next(iter(bucket.entries)), "entries", keep=bucket)
        self._sequence += 1
        entry = Entry(key, answer, bucket, now, self._sequence, size)
        bucket.entries[entry] = None
        tenant.entries[entry] = None
        tenant.exact[key] = entry
        self._charge(tenant, size)
        self.entries += 1
        if place is not None:
            entry.features = place.features
            before = 0 if bucket.vectors is None else bucket.vectors.nbytes
            if bucket.vectors is None:
                bucket.vectors = Vectors(dim)
            entry.row = bucket.vectors.add(np.asarray(place.vector, dtype=np.float32), entry)
            self._charge(tenant, bucket.vectors.nbytes - before)
        self._used(key.tenant, tenant, entry)
        self._shrink(tenant)
        return True

    def matched(self, tenant: str, saved_nusd: int) -> None:
        """Count what a replay saved its tenant."""
        held = self._tenants.get(tenant)
        if held is not None:
            held.matches += 1
            held.saved_nusd += saved_nusd

    def drop(self, keep: Callable[[CacheKey], bool], reason: str) -> int:
        """Drop every entry that `keep` does not want: a version that left, or an administrator's purge."""
        dropped = 0
        for tenant in self._tenants.values():
            for entry in [entry for entry in tenant.entries if not keep(entry.key)]:
                self._evict(tenant, entry, reason)
                dropped += 1
        for name in [name for name, tenant in self._tenants.items() if not tenant.entries]:
            del self._tenants[name]
        return dropped

    def stats(self) -> dict[str, TenantStats]:
        """Return what each tenant holds."""
        return {
            name: TenantStats(len(held.entries), held.bytes, held.matches, held.saved_nusd)
            for name, held in self._tenants.items()
        }

    def keys(self, tenant: str) -> Sequence[CacheKey]:
        """Return a tenant's keys, least recently used first."""
        held = self._tenants.get(tenant)
        return [] if held is None else [entry.key for entry in held.entries]

    def _tenant(self, name: str) -> _Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            if len(self._tenants) >= self._bounds.tenants:
                self._drop_tenant(next(iter(self._tenants)), "tenants")
            tenant = self._tenants[name] = _Tenant()
        return tenant

    def _shrink(self, tenant: _Tenant) -> None:
        bounds = self._bounds
        while tenant.bytes > bounds.tenant_bytes:
            self._evict(tenant, next(iter(tenant.entries)), "tenant_bytes")
        while self.bytes > bounds.total_bytes:
            _, _, largest = max((held.bytes, _Reversed(name), held) for name, held in self._tenants.items())
            self._evict(largest, next(iter(largest.entries)), "total_bytes")

    def _used(self, name: str, tenant: _Tenant, entry: Entry) -> None:
        entries = entry.bucket.entries
        del entries[entry]
        entries[entry] = None
        tenant.entries.move_to_end(entry)
        tenant.buckets.move_to_end(entry.bucket.key)
        self._tenants.move_to_end(name)

    def _expired(self, tenant: _Tenant, entry: Entry, now: float) -> bool:
        if now - entry.stored_at_s <= self._bounds.ttl_s:
            return False
        self._evict(tenant, entry, "ttl")
        return True

    def _evict(self, tenant: _Tenant, entry: Entry, reason: str, keep: Bucket | None = None) -> None:
        self.evictions[reason] += 1
        self._remove(tenant, entry)
        if not entry.bucket.entries and entry.bucket is not keep:
            self._forget(tenant, entry.bucket)

    def _remove(self, tenant: _Tenant, entry: Entry) -> None:
        bucket = entry.bucket
        del bucket.entries[entry]
        del tenant.entries[entry]
        del tenant.exact[entry.key]
        self._charge(tenant, -entry.size)
        self.entries -= 1
        if entry.row >= 0 and bucket.vectors is not None:
            before = bucket.vectors.nbytes
            moved = bucket.vectors.remove(entry.row)
            self._charge(tenant, bucket.vectors.nbytes - before)
            if moved is not None:
                moved.row = entry.row
            entry.row = -1

    def _drop_bucket(self, tenant: _Tenant, bucket: Bucket, reason: str) -> None:
        for entry in list(bucket.entries):
            self._remove(tenant, entry)
            self.evictions[reason] += 1
        self._forget(tenant, bucket)

    def _forget(self, tenant: _Tenant, bucket: Bucket) -> None:
        if tenant.buckets.pop(bucket.key, None) is not None:
            self._charge(tenant, -BUCKET_BYTES - (bucket.vectors.nbytes if bucket.vectors is not None else 0))

    def _charge(self, tenant: _Tenant, change: int) -> None:
        tenant.bytes += change
        self.bytes += change

    def _drop_tenant(self, name: str, reason: str) -> None:
        tenant = self._tenants[name]
        for bucket in list(tenant.buckets.values()):
            self._drop_bucket(tenant, bucket, reason)
        del self._tenants[name]


class _Reversed:
    """Orders names backwards: of tenants that hold equally much the smaller name gives way."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __lt__(self, other: _Reversed) -> bool:
        return self.name > other.name
