"""The pattern of the method's first release: an example at a time, its three contexts in a padded batch (a correct
response has its base context twice), a float32 softmax over all positions, growing in a Python loop that reads a tensor
for each neighbour."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlft_ray.stages.score.contexts import Context, ScoringRow


class Released(NamedTuple):
    """Facts about the n response tokens."""

    p_base: Tensor
    p_judge: Tensor
    p_standard: Tensor
    hidden: Tensor
    """(n, d)."""
    salient: Tensor
    """(n,) bool."""


def released_facts(model: Any, row: ScoringRow) -> Released:
    """Run an example; with gradients, where they are on."""
    wrong = "judge" in row.prompts
    contexts: tuple[Context, ...] = ("base", "judge" if wrong else "base", "standard")
    sequences = [row.prompts[context] + row.response_ids for context in contexts]
    longest = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences], device=model.device)
    mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences])
    output = model(input_ids=ids, attention_mask=mask.to(model.device), output_hidden_states=True)
    probabilities = output.logits.float().softmax(dim=-1)
    n = len(row.response_ids)
    targets = torch.tensor(row.response_ids, device=model.device)[:, None]
    p_base, p_judge, p_standard = (
        probabilities[index, len(sequence) - n - 1 : len(sequence) - 1].gather(1, targets)[:, 0]
        for index, sequence in enumerate(sequences)
    )
    start = len(sequences[0]) - n - 1
    hidden = output.hidden_states[-1][0, start : start + n].detach()
    losing = (p_judge / p_base > 1.5) & (p_judge / p_standard > 1.5) & (p_judge > 0.01)
    salient = losing if wrong else p_standard > 0.95
    salient[::16] = True  # random weights find hardly any; 6 % is what a response may have
    return Released(p_base, p_judge, p_standard, hidden, salient)


def grow(hidden: Tensor, salient: list[int]) -> set[int]:
    """Neighbours of the salient tokens, left and then right, taken in one by one while their distance to the moving
    centre is above 0.4 (a similarity was meant)."""
    near = set()
    for token in salient:
        centre = hidden[token]
        for step in (-1, 1):
            at = token + step
            while 0 <= at < len(hidden):
                if 1 - torch.nn.functional.cosine_similarity(centre, hidden[at], dim=0).item() <= 0.4:
                    break
                near.add(at)
                centre, at = (centre + hidden[at]) / 2, at + step
    return near - set(salient)
