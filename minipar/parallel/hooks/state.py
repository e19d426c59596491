"""What the states of communication hooks have in common: what they keep can be saved.

    own, common = state.keep(bucket)    {what: [an array or None for each of bucket.parameters()]}
    state.restore(bucket, own, common)

`own` is what this rank keeps for itself, `common` what all ranks keep together, equal on each.
Both by parameters, not by buckets: another layout cuts other buckets. Collective over the
bucket's ranks. "owed" (arrays of the parameters' shapes) is what error feedback still has to send:
where one rank left, another one may owe it, for only the sum over the ranks counts. What else
there is, `residuals.py` knows by name, which puts it into checkpoints.
"""


class HookState:
    """Base class of hooks' states, of one that keeps nothing."""

    def keep(self, bucket):
        """(own, common): all that is kept for a bucket; {} for what nothing is kept of."""
        return {}, {}

    def restore(self, bucket, own, common):
        """Take over what `keep` returned, here or in another layout. What is missing starts anew,
        as 0 where it is owed."""


class FlatResiduals(HookState):
    """Base class of states with `residuals`: {bucket: (n,)}, what this rank owes."""

    def keep(self, bucket):
        residual = self.residuals.get(bucket.index())
        return ({} if residual is None else {"owed": bucket.split(residual)}), {}

    def restore(self, bucket, own, common):
        if "owed" in own:
            self.residuals[bucket.index()] = bucket.join(own["owed"])

