"""What training rests on: the input pipeline, several devices, optimizers, adversaries."""
