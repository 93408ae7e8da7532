"""Time and money of scoring as the table grows, from a rate that is measured or assumed.

    python benchmarks/growth.py                                          # docs/scaling.md, as it stands
    python benchmarks/growth.py --model 8B --tokens-per-second 17000     # with a rate of your own

A rate is tokens through the model per second on one GPU: `python benchmarks/scoring.py` measures it. Without one, it is
a fraction of the GPU's peak over 2 FLOP for each parameter and token (Kaplan et al., arXiv 2001.08361, section 2.1).
"""

import argparse
from dataclasses import dataclass, replace

SIZES = [10**power for power in range(4, 10)]
TERAFLOPS = {"H100": 989, "A100": 312, "L4": 121}
"""Peak in bf16 without sparsity, by the makers' data sheets."""
BYTES_PER_TOKEN = 60
"""A response token in the scored table, uncompressed: fifteen numbers of four bytes (nlft_ray/tables/schema.py)."""


@dataclass(frozen=True)
class Model:
    """A model, and how well it can use a GPU: an assumption, to be replaced by a rate."""

    parameters: float
    fraction_of_peak: float
    gpus: int = 1
    """GPUs that hold one copy. Its layers work one after another, so that one of them is busy at a time."""


MODELS = {"1B": Model(1.24e9, 0.25), "8B": Model(8.03e9, 0.4), "70B": Model(70.6e9, 0.4, gpus=4)}


@dataclass(frozen=True)
class Scoring:
    """One model on one kind of GPU, and how long an example is."""

    model: Model
    gpu: str = "H100"
    tokens: int = 1200
    """Tokens of an example that go through the model: the question once, then the rests of three contexts and three
    responses of 300 tokens."""
    response_tokens: int = 300
    dollars_per_hour: float = 3.0
    tokens_per_second: float | None = None

    def rate(self) -> float:
        """Tokens per second of one copy of the model."""
        if self.tokens_per_second:
            return self.tokens_per_second
        return self.model.fraction_of_peak * TERAFLOPS[self.gpu] * 1e12 / (2 * self.model.parameters)

    def gpu_hours(self, examples: int) -> float:
        return examples * self.tokens / self.rate() / 3600 * self.model.gpus

    def dollars(self, examples: int) -> float:
        return self.gpu_hours(examples) * self.dollars_per_hour

    def gigabytes(self, examples: int) -> float:
        return examples * (self.response_tokens * BYTES_PER_TOKEN) / 1e9


def rounded(value: float) -> str:
    """Two figures, which is more than the assumptions are worth."""
    if value < 10:
        return f"{value:.2g}"
    digits = len(f"{value:.0f}")
    return f"{round(value, 2 - digits):,.0f}"


def rows(scorings: dict[str, Scoring]) -> list[str]:
    """A Markdown table: for each size of the table, GPU hours and cost by model, and what is stored."""
    names = list(scorings)
    lines = ["| examples | " + " | ".join(f"{name}: GPU hours, cost" for name in names) + " | scored table |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for size in SIZES:
        cells = [f"{rounded(one.gpu_hours(size))} h, ${rounded(one.dollars(size))}" for one in scorings.values()]
        stored = rounded(next(iter(scorings.values())).gigabytes(size))
        lines.append(f"| {size:,} | " + " | ".join(cells) + f" | {stored} GB |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=MODELS, help="one model alone")
    parser.add_argument("--gpu", choices=TERAFLOPS, default="H100", help="whose peak is taken")
    parser.add_argument("--tokens", type=int, default=1200, help="tokens of an example through the model")
    parser.add_argument("--dollars", type=float, default=3.0, help="price of a GPU for an hour")
    parser.add_argument("--tokens-per-second", type=float, help="measured rate of one copy of the model")
    arguments = parser.parse_args()
    base = Scoring(
        MODELS["8B"],
        gpu=arguments.gpu,
        tokens=arguments.tokens,
        dollars_per_hour=arguments.dollars,
        tokens_per_second=arguments.tokens_per_second,
    )
    chosen = [arguments.model] if arguments.model else list(MODELS)
    print("\n".join(rows({name: replace(base, model=MODELS[name]) for name in chosen})))


if __name__ == "__main__":
    main()
