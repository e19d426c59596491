"""The bucket as it is: what data parallelism does without a hook, as a hook."""


def allreduce_hook(process_group, bucket):
    """Sum the bucket over the ranks, and divide by their number.

    process_group: a Communicator; the bucket's own if None. Buckets as DistributedDataParallel
    makes them have the right divisor (1 where gradients are summed).
    Sends 2 n (p-1)/p elements of n on each of p ranks (Patarasuk & Yuan 2009), bit for bit what
    they were.
    """
    comm = bucket.comm if process_group is None else process_group

    def divide(future):
        buffer = future.value()[0]
        if bucket.divisor > 1:
            buffer.array[...] /= bucket.divisor
        return buffer
    return comm.all_reduce(bucket.buffer(), async_op=True).get_future().then(divide)
