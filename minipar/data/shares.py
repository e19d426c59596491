"""Whole samples in proportion to weights: how a batch is cut for ranks that are not alike."""


def apportion(total, weights, at_least=0):
    """Cut `total` into whole numbers in proportion to `weights`; a tuple that sums to `total`.

    By largest remainder (Hamilton): everyone has the whole part of total x weight / sum; what is
    left goes to the largest fractions, of equal ones to the first. at_least: whoever would have
    fewer has so many, and the others share out the rest.
    Raises ValueError, with the arithmetic, if there are not so many for all.
    """
    if total < at_least * len(weights):
        raise ValueError(f"{total} samples < {at_least} for each of {len(weights)}")
    shares, free = {}, list(range(len(weights)))
    while free:
        rest, whole = total - sum(shares.values()), sum(weights[i] for i in free)
        quotas = {i: rest * weights[i] / whole for i in free}
        found = {i: int(quota) for i, quota in quotas.items()}
        largest = sorted(free, key=lambda i: found[i] - quotas[i])
        for i in largest[:rest - sum(found.values())]:
            found[i] += 1
        low = [i for i in free if found[i] < at_least]
        shares.update({i: at_least for i in low} or found)
        free = [i for i in free if i not in shares]
    return tuple(shares[i] for i in range(len(weights)))
