"""Training: input pipeline, distribution strategies, optimizers, momentum encoders, adversarial training."""
