"""Training runs: what pretraining and fine-tuning consist of, from settings to a finished run folder."""
