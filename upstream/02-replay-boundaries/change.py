"""``TdMpc2Trainer`` refuses data whose end flags do not separate trajectories."""

NEEDS = ()
FILE = "torchrl/trainers/algorithms/tdmpc2.py"


def change(tree):
    """Look at the end flags of every batch before it is stored, where a sampler relies on them."""
    file = tree.file(FILE)
    file.within("class TdMpc2Trainer").replace(
        "Replay buffer containing training trajectories.",
        """
        replay_buffer (ReplayBuffer): Replay buffer containing training trajectories. Batches
            are stored flat, one trajectory after another. With several environments its
            sampler must therefore read trajectory ids, as in
            ``SliceSampler(traj_key=("collector", "traj_ids"), ...)``: end flags alone do
            not separate an unfinished trajectory from the next one.
        """,
    )
    hook = file.within("def _extend_replay_batch")
    hook.before(
        "mask = batch.get(",
        """
        starts = torch.zeros(batch.batch_size, dtype=torch.bool)
        starts[..., :1] = True
        """,
    )
    hook.after("batch = batch[mask]", "starts = starts[mask.cpu()]")
    hook.after("batch = batch.reshape(-1)", "starts = starts.reshape(-1)")
    hook.before(
        "return replay_hook.extend", "self._check_replay_boundaries(batch, starts)"
    )
    file.within("class TdMpc2Trainer").before(
        "def _extend_replay_batch",
        '''
    def _check_replay_boundaries(
        self, batch: TensorDictBase, starts: torch.Tensor
    ) -> None:
        """Refuse flat data in which no end flag separates two trajectories.

        Args:
            batch: Transitions as they are stored, with batch size ``[N]``.
            starts: Boolean tensor ``[N]`` that marks where a row of the collector's
                batch begins.
        """
        ids_key = ("collector", "traj_ids")
        sampler = self._tdmpc2_replay_buffer.replay_buffer.sampler
        traj_keys = [sampler.traj_key]
        if getattr(sampler, "_traj_key_auto", False):
            traj_keys = [ids_key, "episode"]
        if any(key is not None and key in batch.keys(True) for key in traj_keys):
            return  # the sampler reads ids, which differ between trajectories

        end_keys = sampler.end_keys or [sampler.end_key]
        ends = [batch.get(key, default=None) for key in end_keys]
        ends = [end.reshape(len(batch), -1).cpu() for end in ends if end is not None]
        if not ends:
            return  # the sampler says what it misses
        end = torch.cat(ends, -1).any(-1)
        ids = batch.get(ids_key, default=None)
        if ids is not None:
            ids = ids.reshape(-1).cpu()
            starts[1:] |= ids[1:] != ids[:-1]
        if (starts[1:] & ~end[:-1]).any():
            raise ValueError(
                "The collected batch holds trajectories that no end flag under "
                f"{', '.join(map(repr, end_keys))} separates: replayed slices would "
                "cross from one trajectory to another. Pass "
                "traj_key=('collector', 'traj_ids') to the SliceSampler, and also "
                "fragmented=True with a step_key if a batch holds fewer steps of each "
                "environment than a slice."
            )

''',
    )
