"""LRU caches and stacks in plain Python: slow, and plain to see that they are right."""

import collections


def distances(ids):
    """Distinct ids since the last access of the same; -1 at the first."""
    stack, result = [], []
    for i in ids:
        result.append(stack.index(i) if i in stack else -1)
        if i in stack:
            stack.remove(i)
        stack.insert(0, i)
    return result


def accesses(depths):
    """Ids at depths of the stack; too large a depth is the next new id."""
    stack, result, size = [], [], 0
    for depth in depths:
        if depth < len(stack):
            i = stack.pop(depth)
        else:
            i, size = size, size + 1
        stack.insert(0, i)
        result.append(i)
    return result


def hits(ids, cache_rows):
    """Share of accesses that find their id in a cache of `cache_rows`."""
    cache, num_hits = collections.OrderedDict(), 0
    for i in ids:
        if i in cache:
            num_hits += 1
            cache.move_to_end(i)
        else:
            cache[i] = True
            if len(cache) > cache_rows:
                cache.popitem(last=False)
    return num_hits / len(ids)
