"""``reduce`` evaluates the drawn pair alone, and a TD target is encoded once for the ensemble."""

NEEDS = ()
MODEL = "torchrl/modules/models/tdmpc2.py"
LOSS = "torchrl/objectives/tdmpc2.py"


def change(tree):
    """Draw the pair before the evaluation, and let the target broadcast over the Q-functions."""
    model = tree.file(MODEL)
    logits = model.within("def _q_logits(")
    logits.after("source: Literal[", "index: torch.Tensor | None = None,")
    logits.after(
        "params, module = self._source(source)",
        """
        if index is not None:
            params = params[index]
        """,
    )
    reduce = model.within("def reduce(")
    reduce.after(
        "two-Q value reduction to the input",
        """

        Only the two sampled Q-functions are evaluated.
        """,
    )
    reduce.replace(
        "logits = self._q_logits(",
        """
        pair = torch.randperm(self.num_q, device=latent.device)[:2]
        logits = self._q_logits(latent, action, source, pair)
        """,
        through="torch.randperm(",
    )
    reduce.replace("logits[qidx]", "logits,")

    tree.file(LOSS).replace(
        "value_target = (",
        """
        # One encoded target broadcasts over the Q-functions.
        value_target = td_targets.select(-2, index).unsqueeze(-2)
        value_per_transition = (
        """,
        through="value_per_transition = (",
    )
