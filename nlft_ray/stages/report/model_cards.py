"""The cards of the models that a run exported: once the run is known as a whole, they tell its results."""

from nlft_ray.analysis.model_card import CARD, refreshed_card
from nlft_ray.analysis.run import Run, StageRecord
from nlft_ray.config import ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.log import log


def refresh_cards(run: Run) -> None:
    """Write the part of each card that is nlft-ray's own anew; what could not be written is said in a line.

    The report itself is what was asked for, so a model folder that may not be written to is no reason to fail.
    """
    for exported in run.of_stage("export"):
        training = run.origin(exported)
        if training is None or not exported.folder.has(CARD):
            continue
        try:
            card = exported.folder.read_text(CARD)
            refreshed = refreshed_card(card, run, training, _evaluation(run, exported))
            if refreshed not in (None, card):
                exported.folder.write_text(CARD, refreshed)
        except (OSError, ValueError, UserError) as error:
            log(f"report: {exported.name}/{CARD} stays as it was: {error}")


def _evaluation(run: Run, exported: StageRecord) -> StageRecord | None:
    """The evaluation of this model's weights, wherever they lay when they were evaluated."""
    from nlft_ray.models.loading import model_fingerprint

    evaluations = run.of_stage("evaluate")
    is_model = exported.folder.has("config.json")  # no adapter, which nothing evaluates
    if not evaluations or not is_model:
        return None
    weights = model_fingerprint(ModelConfig(path=exported.folder.uri))
    return next((record for record in evaluations if record.manifest.identity.model == weights), None)
