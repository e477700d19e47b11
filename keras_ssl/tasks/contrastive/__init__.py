"""Contrastive methods: embeddings of the views of an image are alike, those of different images are not."""
