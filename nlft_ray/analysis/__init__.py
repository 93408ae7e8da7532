"""What a finished folder says: saliency, accuracy, a run's record, the model card."""
