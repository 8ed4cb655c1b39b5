"""The rules of growing ids in plain Python: dicts, loops and unlimited integers.

Nothing here is shared with the package. An id at a time, a slot at a time.
"""

import zlib

import numpy as np

MASK = (1 << 64) - 1


def rotl(x, bits):
    return ((x << bits) | (x >> (64 - bits))) & MASK


def fmix(k):
    k ^= k >> 33
    k = k * 0xFF51AFD7ED558CCD & MASK
    k ^= k >> 33
    k = k * 0xC4CEB9FE1A85EC53 & MASK
    return k ^ (k >> 33)


def murmur(x, y=0, seed=0):
    """murmur_hash3_2x64, as FBGEMM's faster_hash has it."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = seed
    h1 ^= rotl(x * c1 & MASK, 31) * c2 & MASK
    h1 = (((rotl(h1, 27) + h2) & MASK) * 5 + 0x52DCE729) & MASK
    h2 ^= rotl(y * c2 & MASK, 33) * c1 & MASK
    h2 = (((rotl(h2, 31) + h1) & MASK) * 5 + 0x38495AB5) & MASK
    h1, h2 = h1 ^ 16, h2 ^ 16
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    h1, h2 = fmix(h1), fmix(h2)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    return h1 ^ h2


def splitmix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def bits(seed, name, item, number, salt):
    key = splitmix((seed & MASK) ^ (zlib.crc32(name.encode()) << 32) ^ salt)
    return splitmix((splitmix((item & MASK) ^ key) + number) & MASK)


def uniform(seed, name, item, number, salt):
    return np.float32(bits(seed, name, item, number, salt) >> 40) * np.float32(2**-24)


def initial_row(seed, name, item, width, limit):
    low, span = np.float32(-limit), np.float32(limit) - np.float32(-limit)
    units = [uniform(seed, name, item, column, 1) for column in range(width)]
    return np.array([low + unit * span for unit in units], np.float32)


class Simulator:
    """One table.

    Args:
        name: Name of the table.
        num_rows: Its vocabulary size.
        rules: A `GrowingIds`; only its fields are read.
    """

    def __init__(self, name, num_rows, rules):
        self.name, self.rules = name, rules
        shared = max(1, num_rows // 64) if rules.fallback == "shared" else 0
        self.size, self.num_shared = num_rows - shared, shared
        self.ids = [-1] * self.size
        self.last_seen, self.hits = [0] * self.size, [0] * self.size
        self.slot_of, self.protected = {}, set()
        self.now = 0
        self.expired_before = 0  # by event time
        # Counting table, or sketch
        self.count_ids = [-1] * self.size
        self.count_seen, self.counts = [0] * self.size, [0] * self.size
        self.count_slot_of = {}
        self.cells = 1
        while self.cells < self.size:
            self.cells *= 2
        self.sketch = [[0] * self.cells for _ in range(4)]
        self.sketch_total = 0
        self.num = dict(lookups=0, claims=0, evictions=0, fallbacks=0, waiting=0)
        self.evicted = []

    def range_of(self, item):
        start = murmur(item) % self.size
        probes = min(self.rules.max_probes, self.size)
        return [(start + k) % self.size for k in range(probes)]

    def step(self, items, starts=True):
        """Look up one step's ids; return their rows."""
        self.now += starts
        order, count = [], {}
        for item in items:
            if item == -1:
                continue
            self.num["lookups"] += 1
            if item not in count:
                order.append(item)
                count[item] = 0
            count[item] += 1
        for item in order:
            if item in self.slot_of:
                slot = self.slot_of[item]
                self.last_seen[slot] = self.now
                self.hits[slot] += count[item]
        waiting = [item for item in order if item not in self.slot_of]
        admitted = self.admit(waiting, count)
        self.evicted, claimed = [], []
        for item in waiting:
            if item not in admitted:
                self.num["waiting"] += 1
                continue
            slot = self.choose(item)
            if slot is None:
                continue
            old = self.ids[slot]
            if old != -1:
                self.evicted.append(old)
                del self.slot_of[old]
            self.ids[slot], self.slot_of[item] = item, slot
            self.last_seen[slot], self.hits[slot] = self.now, count[item]
            claimed.append(item)
            if item in self.count_slot_of:
                self.counts[self.count_slot_of[item]] = 0
        self.num["claims"] += len(claimed)
        self.num["evictions"] += len(self.evicted)
        rows = self.read(items)
        known = [item for item in items if item != -1]
        self.num["fallbacks"] += sum(item not in self.slot_of for item in known)
        return rows

    def choose(self, item):
        slots = self.range_of(item)
        for slot in slots:
            if self.ids[slot] == -1:
                return slot
        free = [
            slot
            for slot in slots
            if self.last_seen[slot] != self.now and self.ids[slot] not in self.protected
        ]
        for slot in free:
            if self.has_expired(slot):
                return slot
        if self.rules.evict is None or not free:
            return None
        if self.rules.evict == "lru":
            return min(free, key=lambda slot: self.last_seen[slot])
        return min(free, key=lambda slot: (self.hits[slot], self.last_seen[slot]))

    def has_expired(self, slot):
        limit = self.rules.expire_after_steps
        if limit is not None and self.now - self.last_seen[slot] > limit:
            return True
        return self.last_seen[slot] < self.expired_before

    def admit(self, waiting, count):
        rules = self.rules
        if isinstance(rules.admission, float):
            share = np.float32(rules.admission)
            seed, name, now = rules.seed, self.name, self.now
            return {i for i in waiting if uniform(seed, name, i, now, 2) < share}
        if rules.min_count == 1:
            return set(waiting)
        if rules.admission == "sketch":
            for item in waiting:
                for row, cell in enumerate(self.cells_of(item)):
                    self.sketch[row][cell] += count[item]
                self.sketch_total += count[item]
            result = {
                item
                for item in waiting
                if min(self.sketch[r][c] for r, c in enumerate(self.cells_of(item)))
                >= rules.min_count
            }
            if self.sketch_total >= self.cells:
                self.sketch = [[v // 2 for v in row] for row in self.sketch]
                self.sketch_total = 0
            return result
        new = []
        for item in waiting:
            if item in self.count_slot_of:
                slot = self.count_slot_of[item]
                self.count_seen[slot] = self.now
                self.counts[slot] += count[item]
            else:
                new.append(item)
        for item in new:
            slots = self.range_of(item)
            empty = [slot for slot in slots if self.count_ids[slot] == -1]
            old = [slot for slot in slots if self.count_seen[slot] != self.now]
            if empty:
                slot = empty[0]
            elif old:
                slot = min(old, key=lambda slot: self.count_seen[slot])
                del self.count_slot_of[self.count_ids[slot]]
            else:
                continue
            self.count_ids[slot], self.count_slot_of[item] = item, slot
            self.count_seen[slot], self.counts[slot] = self.now, count[item]
        return {
            item
            for item in waiting
            if item in self.count_slot_of
            and self.counts[self.count_slot_of[item]] >= rules.min_count
        }

    def cells_of(self, item):
        return [
            bits(self.rules.seed, self.name, item, row, 3) % self.cells
            for row in range(4)
        ]

    def read(self, items):
        """Return the row of each id, claiming nothing."""
        rows = []
        for item in items:
            if item == -1:
                rows.append(-1)
            elif item in self.slot_of:
                rows.append(self.slot_of[item])
            elif self.num_shared:
                share = murmur(item) // self.size % self.num_shared
                rows.append(self.size + share)
            else:
                rows.append(-1)
        return rows
