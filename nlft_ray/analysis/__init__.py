"""Readings of finished folders: saliency, figures, accuracy, a run's record, the model card."""
