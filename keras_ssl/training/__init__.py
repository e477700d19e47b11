"""What training rests on: the input pipeline, several devices, optimizers, twins, adversaries."""
