"""The sandbox: an embedded world of word problems, and a small model that already speaks its language.

The model knows the arithmetic, how to judge a response, and how to answer from a standard answer or from a
judgment. On some skills it has a bad habit in the base context: it subtracts where it should add. It understands
the criticism and does it wrong anyway, which is what Natural Language Fine-Tuning corrects.

`world` generates the problems, `skills` and `arithmetic` say what they and their mistakes are, `tokenizer` builds
the closed vocabulary, `quickstart.yaml` holds the prompts. `pipelines/sandbox/train.py` trains the model, and
`pipelines/sandbox/abilities.py` measures what it can do.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL_FOLDER = FOLDER / "model"
"""The embedded checkpoint, a Hugging Face model folder."""
QUICKSTART = FOLDER / "quickstart.yaml"
"""The quickstart's configuration; its prompts are those that the model was trained on."""
