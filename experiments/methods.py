"""The methods that are compared: which examples each is trained on, and by which policy."""

from dataclasses import dataclass
from typing import Literal

Examples = Literal["own", "worked", "star"]
"""`own`: the model's own responses, with judgments. `worked`: worked solutions. `star`: its own correct responses, and
those of a second try with the answer as a hint."""


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning, as nlft-ray does it."""

    policy: str
    data: Examples
    needs: tuple[str, ...]
    """Stages before training whose seconds and tokens are its costs. The chain runs others too, for other methods."""
    what: str
    """What it learns from, in a few words."""


_ALL = ("sample", "judge", "score")

METHODS = {
    "sft_bare": Method("sft", "own", (), "standard answers, as they stand in the data"),
    "sft_worked": Method("rft", "worked", (), "worked solutions (SFT)"),
    "rft": Method("rft", "own", ("sample",), "own correct responses (rejection sampling)"),
    "star": Method("rft", "star", ("sample", "hint"), "the same, and second tries with the answer as a hint (STaR)"),
    "cut": Method("cut", "own", _ALL, "own responses, judgments (Contrastive Unlikelihood Training)"),
    "dft": Method("dft", "own", ("sample", "score"), "own correct responses, weighed by their probabilities (DFT)"),
    "nlft": Method("nlft", "own", _ALL, "own responses, judgments, standard answers (NLFT)"),
    "released": Method("released", "own", _ALL, "the same, by the weights of NLFT's released code"),
    "origin": Method("origin", "own", _ALL, "the same, lowering only the token where a mistake begins"),
}
"""Every method by its name."""
