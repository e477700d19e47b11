"""Training: input pipeline, distribution, optimizers, loss scaling, momentum encoders and GANs."""
