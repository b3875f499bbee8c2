"""From shards to what is published: gathered in bf16, under the names of the model directory, as anchors and deltas."""

from learner.weights.gather import gather, refuse_unpublishable, stored_form
from learner.weights.wire import Publication, Wire, as_stored, write_files

__all__ = ["Publication", "Wire", "as_stored", "gather", "refuse_unpublishable", "stored_form", "write_files"]
