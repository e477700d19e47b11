"""Contrastive methods: views of an image have similar embeddings, and different images do not."""
